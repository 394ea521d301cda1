from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from nextquill_core import schemas
from nextquill_core.ingest import sequences
from nextquill_core.ingest.reader import base_profiles, read_examples
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
