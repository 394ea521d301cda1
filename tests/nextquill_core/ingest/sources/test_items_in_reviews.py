"""Tables whose reviews carry the item's title: no file of items is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nextquill_core.config import IngestConfig, ProtocolConfig, RawInput
from nextquill_core.errors import DataError
from nextquill_core.ingest.conformance import assert_conforms
from nextquill_core.ingest.sources import source
from tests.nextquill_core.ingest.world import SMALL, World

REVIEWS = {"user_id": "user", "item_id": "item", "text": "body", "timestamp": "t"}
TITLED = {"reviews": {**REVIEWS, "item_title": "name", "item_description": "about"}}


def config(world: World, rows: list[str], options: dict[str, Any], **protocol: Any) -> IngestConfig:
    path = world.write("r.csv", ("user,item,body,t,name,about\n" + "\n".join(rows) + "\n").encode())
    raw = RawInput(category="C", reviews=str(path))
    return IngestConfig(
        source="table", options=options, inputs=(raw,), protocol=ProtocolConfig(**SMALL | protocol),
        max_bad_share=1.0, suspect_rows="ignore",
    )  # fmt: skip


ROWS = [
    "ann,i1,text 1,1600000000001,First,about i1",
    "ann,i2,text 2,1600000000002,Second,",
    "ann,i3,text 3,1600000000003,Third,about i3",
    "bob,i1,b 1,1600000000004,,",
    "bob,i2,b 2,1600000000005,Second Edition,about i2",
    "bob,i3,b 3,1600000000006,Third,about i3",
]


def test_items_come_from_the_reviews_that_name_them(tmp_path: Path) -> None:
    world = World(tmp_path)
    stats = world.run(config(world, ROWS, TITLED))
    assert [(row["item_id"], row["title"], row["description"]) for row in world.table("items")] == [
        ("i1", "First", "about i1"),  # bob's row has no title
        ("i2", "Second Edition", "about i2"),  # the last row with a title counts
        ("i3", "Third", "about i3"),
    ]
    assert stats["items"] == {"read": 6, "kept": 3, "dropped": {"no_title": 1, "repeat_item": 2}}
    assert stats["reviews"] == {"read": 6, "kept": 6, "dropped": {}}
    assert_conforms(source("table", TITLED), RawInput(category="C", reviews=str(tmp_path / "r.csv")))


def test_items_without_any_title_pass(tmp_path: Path) -> None:
    world = World(tmp_path)
    assert world.run(config(world, ROWS, {"reviews": REVIEWS}))["users"] == 2
    assert {(row["title"], row["description"]) for row in world.table("items")} == {("", "")}


def test_options_and_files_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    world = World(tmp_path)
    both = {"reviews": TITLED["reviews"], "items": {"item_id": "item"}}
    with pytest.raises(DataError, match=r"leave out `items` or reviews\.item_title"):
        source("table", both)
    plain = config(world, ROWS, {"reviews": REVIEWS, "items": {"item_id": "item"}})
    with pytest.raises(DataError, match=r"no path to the items; set ingest\.inputs\[\]\.items, or, .*item_title"):
        world.run(plain)
    with pytest.raises(DataError, match=r"the columns of items are not named; name them for i\.csv"):
        source("table", TITLED).find(
            RawInput(category="C", reviews=str(tmp_path / "r.csv"), items="i.csv"), fetch=False
        )
