"""Both sources keep the contract, and bad cards are reported."""

# ruff: noqa: S101

from pathlib import Path

import pytest
from nextquill_bookclub import BookClubCards

from nextquill_core.config import RawInput
from nextquill_core.ingest.conformance import assert_conforms
from nextquill_core.ingest.sources import source

SAMPLE = Path(__file__).parent.parent / "sample"


@pytest.mark.parametrize(("name", "ending"), [("bookclub-json", "jsonl"), ("bookclub-cards", "cards")])
def test_it_conforms(name: str, ending: str) -> None:
    """Each source keeps the contract in docs/reference/sources.md."""
    files = {part: str(SAMPLE / f"{part}.{ending}") for part in ("reviews", "items")}
    assert_conforms(source(name), RawInput(category="BookClub", **files))


def test_bad_cards_are_named(tmp_path: Path) -> None:
    """A card without an id is a bad row."""
    path = tmp_path / "items.cards"
    path.write_text("title: Nameless\n\nitem_id: b1\ntitle: The Ferry")
    (batch,) = BookClubCards().read("items", path)
    assert [(row.line, row.reason) for row in batch.bad] == [(1, "missing-item_id")]
    assert batch.rows["line"].to_list() == [2]
