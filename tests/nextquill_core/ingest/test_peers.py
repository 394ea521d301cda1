"""Peers: other users' reviews of an item, and which of them a method may use."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nextquill_core.ingest import sequences
from nextquill_core.ingest.peers import Peers, Place
from nextquill_core.ingest.reader import read_examples
from nextquill_core.schemas import Example
from tests.nextquill_core.ingest.world import World, item, plain_category, review


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """Four users who review items 0 to 5 in this order: item i by user u at the time 10 i + u + 1."""
    monkeypatch.setattr(sequences, "USERS_PER_SHARD", 3)
    world = World(tmp_path)
    world.ingest(*plain_category())
    return world


def at(*names: str) -> list[Place]:
    """Places written as `USER:POSITION`."""
    return [Place("C", name.partition(":")[0], int(name.partition(":")[2])) for name in names]


def example(world: World, name: str) -> Example:
    return next(one for one in read_examples(world.out) if one.example_id == name)


def test_a_place_is_a_review_of_the_tables(world: World) -> None:
    peers = Peers(world.out)
    assert [peers.review(place).text for place in at("u3:5", "u0:0")] == ["text 3 of 5", "text 0 of 0"]
    last = peers.review(*at("u3:5"))
    assert peers.place("C", last) == at("u3:5")[0]
    test = example(world, "C:u1:5")
    assert [peers.review(place) for place in peers.history(test)] == list(test.history)


def test_a_text_is_compared_with_all_others_of_the_item_and_of_the_user(world: World) -> None:
    peers, val = Peers(world.out), example(world, "C:u1:4")
    assert peers.of_target(val) == at("u0:4", "u2:4", "u3:4")
    assert peers.others_of_user(val) == at("u1:0", "u1:1", "u1:2", "u1:3", "u1:5")


def test_a_method_sees_no_held_out_target_and_nothing_that_was_written_later(world: World) -> None:
    peers = Peers(world.out)
    test, train = example(world, "C:u1:5"), example(world, "C:u1:3")
    assert peers.known_before(test, *at("u1:3")) == at("u0:3", "u2:3", "u3:3")
    assert peers.known_before(test, *at("u1:4")) == [], "the targets of val are held out"
    assert peers.known_before(train, *at("u1:2")) == at("u0:2", "u2:2", "u3:2")
    # The target of `train` was written at 32: user 0 wrote the fourth review at 31, user 2 at 33.
    assert peers.profile_before(train, *at("u0:0")) == at("u0:0", "u0:1", "u0:2", "u0:3")
    assert peers.profile_before(train, *at("u2:0")) == at("u2:0", "u2:1", "u2:2")
    assert Peers(world.out, dated=False).profile_before(train, *at("u2:0")) == at("u2:0", "u2:1", "u2:2", "u2:3")


def test_reviews_of_the_same_item_are_no_other_reviews_of_the_user(tmp_path: Path) -> None:
    """Without the protocol's rule against repeats a user may review an item twice."""
    world = World(tmp_path)
    reviews, _ = plain_category()
    again = [review("u1", "i5", 70, "once more"), *(review("u1", f"i{i}", 80 + i, f"more {i}") for i in range(6, 8))]
    world.ingest([*reviews, *again], [item(f"i{i}") for i in range(8)])
    peers = Peers(world.out)
    last = example(world, "C:u1:7")
    assert [peers.review(place).item.title for place in peers.others_of_user(last)] == [f"Item i{i}" for i in range(7)]
    assert peers.of_target(last) == []


def test_a_user_with_several_reviews_of_an_item_is_one_user(world: World) -> None:
    """Published examples may hold such users: here user 2 has written about item 0 three times."""
    for path in (world.out / "sequences").glob("*.parquet"):
        table = pq.read_table(path)
        rows = table.to_pylist()
        for row in rows:
            for position in (1, 2):
                row["reviews"][position]["item_id"] = "i0" if row["user_id"] == "u2" else f"i{position}"
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    peers, test = Peers(world.out), example(world, "C:u1:5")
    assert peers.known_before(test, *at("u1:0")) == at("u0:0", "u2:0", "u2:1", "u2:2", "u3:0")
    assert peers.users_before(test, *at("u1:0")) == at("u0:0", "u2:0", "u3:0")
