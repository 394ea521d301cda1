"""Targets that stand in an earlier review of the same user are counted by split."""

from __future__ import annotations

from pathlib import Path

import pytest

from nextquill_core.ingest.repeated import MIN_CHARS, is_repeated
from nextquill_core.ingest.report import account_rows
from tests.nextquill_core.ingest.world import World, plain_category

QUOTED = "Real singers and real musicians who make real music."


@pytest.mark.parametrize(
    ("text", "earlier", "repeated"),
    [
        (QUOTED, ["other", f"As I said: {QUOTED} Buy it."], True),
        (QUOTED, [QUOTED[:-1]], False),
        (QUOTED, [QUOTED.upper()], False),
        (QUOTED, [], False),
        ("Great CD", ["A Great CD indeed"], False),
        ("Great CD", ["Great CD"], True),
        ("x" * MIN_CHARS, ["y" + "x" * MIN_CHARS], True),
        ("x" * (MIN_CHARS - 1), ["y" + "x" * (MIN_CHARS - 1)], False),
    ],
)
def test_what_counts_as_repeated(text: str, earlier: list[str], repeated: bool) -> None:
    assert is_repeated(text, earlier) is repeated


def test_repeated_targets_are_counted_by_split_and_shown(tmp_path: Path) -> None:
    """u0's test target and u1's val target are quoted in earlier reviews, white space aside; u2's comes later only."""
    reviews, items = plain_category()
    texts = {row["user_id"] + row["parent_asin"]: row for row in reviews}
    texts["u0i5"]["text"], texts["u0i1"]["text"] = QUOTED.replace(" ", "  "), f"Listen:\n{QUOTED}"
    texts["u1i4"]["text"], texts["u1i3"]["text"] = QUOTED, f"{QUOTED} Again."
    texts["u2i3"]["text"], texts["u2i5"]["text"] = QUOTED, f"{QUOTED} And again."
    found = World(tmp_path).ingest(reviews, items)
    expected = {"train": 0, "val": 1, "test": 1}
    assert found["repeated_targets"] == found["per_category"]["C"]["repeated_targets"] == expected
    shown = {row["outcome"]: row["rows"] for row in account_rows(found) if row["what"] == "examples"}
    assert shown["test: text in an earlier review of the user"] == 1
    assert "train: text in an earlier review of the user" not in shown


def test_equal_texts_are_none_since_the_protocol_keeps_one(tmp_path: Path) -> None:
    reviews, items = plain_category()
    for row in reviews:
        if row["user_id"] == "u0" and row["parent_asin"] in ("i1", "i5"):
            row["text"] = QUOTED
    assert World(tmp_path).ingest(reviews, items)["repeated_targets"] == {"train": 0, "val": 0, "test": 0}
