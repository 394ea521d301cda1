"""The layouts of the Amazon review collections."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nextquill_core.ingest.canonical import CANONICAL
from nextquill_core.ingest.sources import JsonLines, source
from tests.amazon import real_2014, real_2023, write_2014, write_2023
from tests.nextquill_core.ingest.world import World


@pytest.mark.parametrize("name", ["amazon-2014", "amazon-2018", "amazon-2023"])
def test_columns_that_a_layout_lacks_are_absent(name: str) -> None:
    reader = source(name)
    assert isinstance(reader, JsonLines)
    for part, columns in reader.columns.items():
        assert columns.keys() == {name for name in CANONICAL[part] if f"{part}.{name}" not in reader.absent}


def test_the_older_metadata_become_the_same_columns(tmp_path: Path) -> None:
    nested = {"asin": "i1", "title": "T", "description": "d", "categories": [["a", "b"], ["c"]]}
    flat = {"asin": "i1", "title": "T", "description": ["d"], "category": ["a", "b", "c"]}
    expected = {
        "line": 1, "item_id": "i1", "title": "T", "description": ["d"], "categories": ["a", "b", "c"],
        "rating_number": None,
    }  # fmt: skip
    for name, row in (("amazon-2014", nested), ("amazon-2018", flat)):
        for line in (repr(row), json.dumps(row)):
            path = tmp_path / "items.json"
            path.write_text(line)
            (batch,) = source(name).read("items", path)
            assert batch.rows.to_dicts() == [expected]


@pytest.mark.parametrize(("made", "users"), [(True, 20), (False, 100)], ids=["rows of ours", "real rows"])
def test_the_2014_and_the_2023_layout_of_the_same_reviews_give_the_same_sequences(
    tmp_path: Path, made: bool, users: int
) -> None:
    folder = tmp_path / "raw"
    layouts = {
        "amazon-2014": write_2014(folder) if made else real_2014(),
        "amazon-2023": write_2023(folder) if made else real_2023(),
    }
    world, tables, accounts = World(tmp_path), [], []
    for name, (reviews, items) in layouts.items():
        thresholds = {"min_text_chars": 200, "min_user_reviews": 4, "max_description_chars": 2000}
        config = world.config(reviews, items, source=name, **thresholds)
        accounts.append(world.run(config, out=tmp_path / name))
        tables.append([world.table(table, tmp_path / name) for table in ("sequences", "examples", "items")])
    assert accounts[0]["users"] > users
    assert tables[0] == tables[1]
    assert accounts[0]["reviews"] == accounts[1]["reviews"]
