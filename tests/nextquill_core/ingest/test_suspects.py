"""Rows that can be read but are hardly true, and rows that are there twice."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from nextquill_core.errors import DataError
from tests.nextquill_core.ingest.world import World, item, plain_category, review

NOW = datetime.now(UTC)
GOOD = 1_500_000_000_000


def ms(when: datetime) -> int:
    return int(when.timestamp() * 1000)


SUSPECTS = [
    (review("s", "i0", -5, "a"), "negative-timestamp"),
    (review("s", "i1", GOOD // 1000, "b"), "timestamp-in-seconds"),
    (review("s", "i2", ms(NOW + timedelta(days=2)), "c"), "future-timestamp"),
    (review("s", "i3", GOOD, "d", rating=6.0), "rating-out-of-range"),
    (review("s", "i4", GOOD, "e", rating=0.5), "rating-out-of-range"),
    (review("s", "i5", GOOD, "f", rating=0.0), "rating-out-of-range"),
]
FINE = [
    review("f", "i0", ms(NOW - timedelta(days=2)), "a"),
    review("f", "i1", GOOD, "b", rating=1),
    review("f", "i2", GOOD, "c", rating=None),
    review("f", "i3", 100_000_000_000, "d"),
]


def folder(parent: Path, name: str) -> Path:
    (parent / name).mkdir()
    return parent / name


def world_with(tmp_path: Path, **settings: Any) -> tuple[World, dict[str, Any]]:
    world = World(tmp_path)
    rows = [*FINE, *(row for row, _ in SUSPECTS)]
    return world, world.ingest(rows, [item(f"i{i}") for i in range(6)], **settings)


def test_suspect_rows_are_kept_and_listed(tmp_path: Path) -> None:
    world, stats = world_with(tmp_path, suspect_rows="list")
    assert [(row["line"], row["reason"]) for row in world.table("quarantine")] == [
        (line, reason) for line, (_, reason) in enumerate(SUSPECTS, len(FINE) + 1)
    ]
    assert world.table("quarantine")[0]["raw"] == json.dumps(SUSPECTS[0][0])
    assert stats["reviews"]["dropped"] == {"no_rating": 2}  # the protocol's own rule: null and 0
    assert stats["reviews"]["kept"] == 8
    assert stats["reviews"]["suspect"] == {
        "future-timestamp": 1, "negative-timestamp": 1, "rating-out-of-range": 3, "timestamp-in-seconds": 1,
    }  # fmt: skip


def test_suspect_rows_can_count_as_bad(tmp_path: Path) -> None:
    world, stats = world_with(tmp_path, suspect_rows="bad")
    assert stats["reviews"]["dropped"] == {
        "future-timestamp": 1, "negative-timestamp": 1, "rating-out-of-range": 3, "timestamp-in-seconds": 1,
        "no_rating": 1,
    }  # fmt: skip
    assert stats["reviews"]["kept"] == 3
    assert len(world.table("quarantine")) == 6
    with pytest.raises(DataError, match=r"6 of 10 rows cannot be read .* rating-out-of-range 3× \(r\.jsonl:8: {"):
        world_with(folder(tmp_path, "b"), suspect_rows="bad", max_bad_share=0.5)
    with pytest.raises(DataError, match=r"reviews of C: .*set ingest\.bad_rows to quarantine"):
        world_with(folder(tmp_path, "c"), suspect_rows="bad", bad_rows="fail")


def test_suspect_rows_can_be_ignored(tmp_path: Path) -> None:
    world, stats = world_with(tmp_path, suspect_rows="ignore")
    assert world.table("quarantine") == []
    assert "suspect" not in stats["reviews"]


def test_a_row_that_is_there_twice_is_dropped_once_and_listed_with_its_line(tmp_path: Path) -> None:
    reviews, items = plain_category()
    world = World(tmp_path)
    other_title = reviews[5] | {"title": "another"}
    stats = world.ingest([*reviews, reviews[5], other_title, reviews[5]], items)
    assert stats["reviews"]["dropped"] == {"duplicate_row": 2, "repeat_item": 1}
    listed = world.table("quarantine")
    assert [(row["file"], row["line"], row["reason"]) for row in listed] == [
        ("r.jsonl", 25, "duplicate_row"), ("r.jsonl", 27, "duplicate_row"),
    ]  # fmt: skip
    assert json.loads(listed[0]["raw"])["text"] == reviews[5]["text"]


def test_the_line_of_a_duplicate_is_found_in_any_file(tmp_path: Path) -> None:
    reviews, items = plain_category()
    world = World(tmp_path)
    world.write("p-1.jsonl", [*reviews[:9], b"", reviews[9]])
    world.write("p-2.jsonl.gz", [*reviews[10:], reviews[0]])
    world.run(world.config(tmp_path / "p-*", world.write("i.jsonl", items)))
    assert [(row["file"], row["line"]) for row in world.table("quarantine")] == [("p-2.jsonl.gz", 15)]


def test_a_run_that_goes_wrong_stops_before_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nextquill_core.ingest import scan

    monkeypatch.setattr(scan, "TELLING_ROWS", 100)
    reviews, items = plain_category()
    rows: list[Any] = [*reviews, *([b"x"] * 300), *([review("u", f"i{i}", i) for i in range(400)])]
    world = World(tmp_path)
    config = world.config(world.write("r.jsonl", rows), world.write("i.jsonl", items), max_bad_share=0.2)
    with pytest.raises(DataError, match=r"of 4\d\d rows cannot be read .*not-json"):
        world.run(config, batch_bytes=500)
    assert world.run(config.model_copy(update={"max_bad_share": 0.5}), batch_bytes=500)["reviews"]["read"] == 724


def test_a_share_that_the_rest_of_the_file_mends_is_no_reason_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nextquill_core.ingest import scan

    monkeypatch.setattr(scan, "TELLING_ROWS", 10)
    reviews, items = plain_category()
    world = World(tmp_path)
    config = world.config(
        world.write("r.jsonl", [b"x", b"y", *reviews * 20]), world.write("i.jsonl", items), max_bad_share=0.01
    )
    assert world.run(config, batch_bytes=2000)["reviews"]["dropped"]["not-json"] == 2
