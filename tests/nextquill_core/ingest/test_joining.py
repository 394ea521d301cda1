"""Item ids of reviews and items that do not meet: both sides are shown, with what makes them the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from nextquill_core.errors import DataError
from nextquill_core.ingest.joining import same_if
from tests.nextquill_core.ingest.world import World, item, plain_category


@pytest.mark.parametrize(
    ("ours", "theirs", "words"),
    [
        ("100.0", "100", "without the `.0`"),
        (" B01", "B01", "without the blanks"),
        ("000123", "123", "without leading zeros"),
        ("b01", "B01", "in the same case"),
        ("978-3-16", "978316", "without hyphens"),
        ("'B01'", "B01", "without quotes"),
        ("https://shop/items/B01", "B01", "last part of a path"),
    ],
)
def test_what_makes_the_ids_the_same_is_said(ours: str, theirs: str, words: str) -> None:
    for one, other in ((ours, theirs), (theirs, ours)):
        found = same_if([one], ["unlike", other])
        assert found is not None
        assert words in found


def test_ids_that_nothing_joins() -> None:
    assert same_if(["100", "0"], ["200", "00"]) is None
    assert same_if([], ["200"]) is None


def test_both_sides_are_shown(tmp_path: Path) -> None:
    reviews, items = plain_category()
    with pytest.raises(DataError) as caught:
        World(tmp_path).ingest([row | {"parent_asin": f"{row['parent_asin'][1:]}.0"} for row in reviews],
                               [row | {"parent_asin": row["parent_asin"][1:]} for row in items])  # fmt: skip
    assert str(caught.value) == (
        "C: the metadata matches no review: none of the items of 24 reviews is in i.jsonl; the reviews have `0.0`, "
        "`1.0`, `2.0`, …, the items have `0`, `1`, `2`, …; the ids are the same without the `.0` at the end: write "
        "them in the same way in both files"
    )
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match="give the metadata of the same category"):
        World(tmp_path / "other").ingest(reviews, [item("other")])
