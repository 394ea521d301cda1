"""The artifact is read back, and targets that stand in earlier reviews are counted."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from nextquill_core import schemas
from nextquill_core.ingest import sequences
from nextquill_core.ingest.account import account_rows
from nextquill_core.ingest.reader import MIN_REPEATED_CHARS, base_profiles, is_repeated, read_examples
from tests.nextquill_core.ingest.world import World, plain_category


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(sequences, "USERS_PER_SHARD", 3)
    world = World(tmp_path)
    world.ingest(*plain_category())
    return world


def test_examples_come_in_order_with_the_whole_history(world: World) -> None:
    examples = list(read_examples(world.out))
    assert [example.example_id for example in examples] == [f"C:u{u}:{t}" for u in range(4) for t in (3, 4, 5)]
    last = examples[-1]
    assert (last.user_id, last.category, last.split) == ("u3", "C", "test")
    assert last.target.text == "text 3 of 5"
    assert last.target.item == schemas.Item("Item i5", "d")
    assert [past.text for past in last.history] == [f"text 3 of {i}" for i in range(5)]
    assert [past.timestamp_ms for past in last.history] == [10 * i + 4 for i in range(5)]


def test_splits_are_chosen_and_unknown_ones_refused(world: World) -> None:
    assert [example.split for example in read_examples(world.out, ["val"])] == ["val"] * 4
    assert [example.split for example in read_examples(world.out, ("test", "train"))] == ["train", "test"] * 4
    assert not list(read_examples(world.out, ()))
    with pytest.raises(ValueError, match="no such split: dev"):
        list(read_examples(world.out, ["dev"]))


def test_a_review_is_held_once_however_often_it_is_read(world: World) -> None:
    first, second, third = list(read_examples(world.out))[:3]
    assert second.history[0] is first.history[0]
    assert third.history[3] is first.target


def test_base_profiles_are_what_was_written_before_the_first_target(world: World) -> None:
    profiles = base_profiles(world.out)
    assert [[review.text for review in profile] for profile in profiles] == [
        [f"text {u} of {i}" for i in range(3)] for u in range(4)
    ]


def test_tables_have_exactly_the_columns_of_the_schemas(world: World) -> None:
    wanted = {
        "sequences": schemas.SEQUENCES,
        "items": schemas.ITEMS,
        "examples": schemas.EXAMPLES,
        "quarantine": schemas.QUARANTINE,
    }
    for name, schema in wanted.items():
        files = sorted((world.out / name).glob("*.parquet"))
        assert files
        for file in files:
            assert pq.read_schema(file).remove_metadata() == schema, name
    assert sum(pq.read_table(file).num_rows for file in (world.out / "sequences").glob("*.parquet")) == 4


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
        ("x" * MIN_REPEATED_CHARS, ["y" + "x" * MIN_REPEATED_CHARS], True),
        ("x" * (MIN_REPEATED_CHARS - 1), ["y" + "x" * (MIN_REPEATED_CHARS - 1)], False),
    ],
)
def test_what_counts_as_repeated(text: str, earlier: list[str], repeated: bool) -> None:
    assert is_repeated(text, earlier) is repeated


def test_repeated_targets_are_counted_by_split_and_shown(tmp_path: Path) -> None:
    """Two targets are quoted in earlier reviews, white space aside; u2's target is quoted in a later one only."""
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
