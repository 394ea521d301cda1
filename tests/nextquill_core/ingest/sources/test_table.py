"""The source `table`: options, times, and what is the same in every format."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from nextquill_core.errors import DataError
from nextquill_core.ingest.formats import parquet_files
from nextquill_core.ingest.sources import source
from tests.amazon import real_2023, write_2023
from tests.nextquill_core.ingest.tables import (
    CANONICAL,
    NOON,
    OPTIONS,
    REVIEWS,
    ROW,
    accounted,
    as_csv,
    bad,
    batches,
    rows,
    write_csv,
    write_lines,
    write_parquet,
)
from tests.nextquill_core.ingest.world import AS_TABLE, World, plain_category


@pytest.mark.parametrize(
    ("times", "value", "expected"),
    [
        ("ms", NOON, NOON),
        ("s", NOON // 1000, NOON),
        ("s", -1, -1000),
        ("iso", "2018-07-07 12:00:00", NOON),
        ("iso", "2018-07-07T12:00Z", NOON),
        ("iso", "2018-07-07T14:00:00.250+02:00", NOON + 250),
        ("iso", "2018-07-07T02:30:00-0930", NOON),
        ("iso", "2018-07-07", NOON - 12 * 3600_000),
        ("%d.%m.%Y %H:%M", "07.07.2018 12:00", NOON),
        ("%Y-%m-%d", "2018-07-07", NOON - 12 * 3600_000),
        ("%Y-%m-%dT%H:%M:%S.%f%z", "2018-07-07T14:00:00.250+0200", NOON + 250),
    ],
)
def test_times(tmp_path: Path, times: str, value: Any, expected: int) -> None:
    options = {"timestamp": times}
    row = ROW | {"date": value}
    for path in (write_lines(tmp_path, row), write_csv(tmp_path, as_csv([row]))):
        assert rows(batches(path, options=options)) == [CANONICAL | {"timestamp_ms": expected}]
    path = write_parquet(tmp_path, {key: [given] for key, given in row.items()})
    assert rows(batches(path, options=options)) == [CANONICAL | {"timestamp_ms": expected}]


@pytest.mark.parametrize(
    ("times", "value"),
    [
        ("iso", "2018-13-07"),
        ("iso", "2018-07-07 25:00"),
        ("iso", "yesterday"),
        ("iso", "1530964800000"),
        ("iso", "2018-07-07 12:00:00 PM"),
        ("%Y-%m-%d", "2018-07-07 12:00"),
        ("%Y-%m-%d", "2018-02-30"),
        ("s", str(2**62)),
    ],
)
def test_times_that_are_none_are_bad(tmp_path: Path, times: str, value: str) -> None:
    good = "1530964800" if times == "s" else "2018-07-07"
    table = [ROW | {"date": good}, ROW | {"date": value}, ROW | {"date": None}]
    for path, line in ((write_lines(tmp_path, *table), 2), (write_csv(tmp_path, as_csv(table)), 3)):
        found = batches(path, options={"timestamp": times})
        assert bad(found) == [(line, "wrong-type-date")]
        assert [row["timestamp_ms"] is None for row in rows(found)] == [False, True]
        accounted(found, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "table needs `reviews`"),
        (OPTIONS | {"delimeter": ","}, "unknown option `delimeter`; did you mean `delimiter`?"),
        (OPTIONS | {"reviews": REVIEWS | {"txt": "x"}}, "options.reviews: unknown option `txt`; did you mean `text`"),
        (OPTIONS | {"reviews": {"user_id": "u"}}, "ingest.options.reviews: table needs `item_id`"),
        (OPTIONS | {"reviews": REVIEWS | {"text": 7.5}}, "`text`: Input should be a valid string; got 7.5"),
        (OPTIONS | {"timestamp": "minutes"}, "`timestamp`: s, ms, us, ns, iso or a pattern"),
        (OPTIONS | {"timestamp": "%Q"}, "`timestamp`: s, ms, us, ns, iso or a pattern"),
        (OPTIONS | {"timestamp": "%d/%d/%Y"}, "`timestamp`: s, ms, us, ns, iso or a pattern"),
        (OPTIONS | {"ratings": [5, 1]}, "`ratings`: the lowest rating must be less"),
        (OPTIONS | {"delimiter": ", "}, "`delimiter`: one character is needed"),
        (OPTIONS | {"encoding": "latin-x"}, "`encoding`: Python knows no such encoding"),
        (OPTIONS | {"encoding": "rot13"}, "`encoding`: Python knows no such encoding"),
        (OPTIONS | {"encoding": "idna"}, "`encoding`: Python knows no such encoding"),
        (OPTIONS | {"encoding": "undefined"}, "`encoding`: Python knows no such encoding"),
        (OPTIONS | {"quote": "''"}, "`quote`: one character or `none` is needed"),
        (OPTIONS | {"header": ["a", "a"]}, "`header`: the name of every column is needed, each once"),
        (OPTIONS | {"rating_words": {True: 1}}, 'put words such as "yes" and "no" in quotes'),
        (OPTIONS | {"items": {"titel": "t"}}, "options.items: unknown option `titel`; did you mean `title`?"),
        (OPTIONS | {"files": {"items": {"encodin": "x"}}}, "unknown option `encodin`; did you mean `encoding`?"),
    ],
)  # fmt: skip
def test_a_wrong_option_is_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        source("table", options)
    assert message in str(caught.value)
    assert str(caught.value).startswith("ingest.options")
    assert "\n" not in str(caught.value)


def test_a_pattern_without_a_day_and_a_name_without_a_format(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the pattern '%H:%M' does not give a date"):
        batches(write_lines(tmp_path, ROW), options={"timestamp": "%H:%M"})
    for name in ("r.txt", "r.parquet.gz", "csv", "r.gz"):
        path = write_csv(tmp_path, b"x", name)
        with pytest.raises(DataError, match="its name does not show a format"):
            source("table", OPTIONS).find(World(tmp_path).config(path, path).inputs[0], fetch=False)


def test_what_is_not_mapped_is_absent() -> None:
    assert source("table", OPTIONS).absent == set()
    reviews = {key: REVIEWS[key] for key in ("user_id", "item_id", "text", "timestamp")}
    reader = source("table", {"reviews": reviews, "items": {"item_id": "b"}, "ratings": [0, 10]})
    told = {"reviews.rating", "reviews.title", "items.title", "items.description", "items.categories"}
    assert reader.absent == {*told, "items.rating_number"}
    assert reader.ratings == (0, 10)


def converted(
    folder: Path, reviews: list[dict[str, Any]], items: list[dict[str, Any]], options: dict[str, Any], **settings: Any
) -> tuple[dict[str, list[Any]], list[Any]]:
    """Return the sequences, examples and items that each format gives, and the stats.

    Args:
        folder: Where the files go.
        reviews: Raw rows.
        items: Raw rows.
        options: Of the source `table`.
    """
    world, found, stats = World(folder), {}, []
    one = [row | {key: " ".join(value) for key, value in row.items() if isinstance(value, list)} for row in items]
    names = {"jsonl": ("r.jsonl", "i.jsonl"), "csv": ("r.csv.gz", "i.csv"), "parquet": ("r.parquet", "i.parquet")}
    world.write("r.jsonl", reviews)
    world.write("i.jsonl", items)
    write_csv(folder, as_csv(reviews), "r.csv.gz")
    write_csv(folder, as_csv(one), "i.csv")
    pl.DataFrame(reviews, infer_schema_length=None).write_parquet(folder / "r.parquet")
    pl.DataFrame(items, infer_schema_length=None).write_parquet(folder / "i.parquet")
    for kind, (review_file, item_file) in names.items():
        for size in (700, 64 << 20) if len(reviews) < 100 else (64 << 20,):
            out = folder / f"{kind}-{size}"
            config = world.config(folder / review_file, folder / item_file, source="table", options=options, **settings)
            stats.append(world.run(config, size, out))
            found[out.name] = [world.table(name, out) for name in ("sequences", "items", "examples")]
    return found, stats


def without_rows(value: Any) -> Any:
    """Numbers of rows differ between formats: CSV has a header."""
    if isinstance(value, dict):
        return {key: without_rows(each) for key, each in value.items() if key != "row"}
    return [without_rows(each) for each in value] if isinstance(value, list) else value


def test_every_format_and_size_of_batch_gives_the_same_sequences(tmp_path: Path) -> None:
    reviews, items = plain_category()
    for number, row in enumerate(reviews):
        row["text"] += f' "{number}",\nnext line'
    found, stats = converted(tmp_path, reviews, items, AS_TABLE)
    first, *others = map(without_rows, found.values())
    assert len(first[0]) == 4
    assert [each == first for each in others] == [True] * 5
    assert all(each == stats[0] for each in stats)


@pytest.mark.parametrize("made", [True, False], ids=["rows of ours", "real rows"])
def test_rows_of_a_release_are_the_same_in_every_format(tmp_path: Path, made: bool) -> None:
    raw = write_2023(tmp_path / "raw") if made else real_2023()

    def read(path: Path, keys: dict[str, str]) -> list[dict[str, Any]]:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            return [{key: row.get(key) for key in keys.values()} for row in map(json.loads, file)]

    reviews, items = read(raw.reviews, AS_TABLE["reviews"]), read(raw.items, AS_TABLE["items"])
    protocol = {"min_user_reviews": 4, "min_item_users": 2, "min_text_chars": 200}
    found, _ = converted(tmp_path, reviews, items, AS_TABLE, **protocol)
    lines, table, parquet = (without_rows(each) for each in found.values())
    assert len(lines[0]) > 10
    assert lines == table == parquet
    world = World(tmp_path)
    world.run(world.config(*raw, **protocol))
    assert [without_rows(world.table(name)) for name in ("sequences", "items", "examples")] == lines


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_killed_scan_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    from nextquill_core.ingest.scan import _FileScan

    monkeypatch.setattr(parquet_files, "BATCH_ROWS", 5)
    world = World(tmp_path)
    table = [ROW | {"uid": f"u{n}", "body": f"text {n}", "date": NOON + n} for n in range(23)]
    world.write("r.jsonl", table)
    write_csv(tmp_path, as_csv(table))
    pl.DataFrame(table).write_parquet(tmp_path / "r.parquet")
    world.write("i.jsonl", [{"bid": "i1"}])
    columns = {"user_id": "uid", "item_id": "bid", "text": "body", "timestamp": "date"}
    options = {"reviews": columns, "items": {"item_id": "bid"}}
    config = world.config(tmp_path / f"r.{kind}", tmp_path / "i.jsonl", source="table", options=options)
    world.scan(config, 120, tmp_path / "whole")
    write, written = _FileScan._write, []

    def dies(self: _FileScan, *args: Any) -> None:
        written.append(args[0])
        if len(written) == 4:
            raise KeyboardInterrupt
        write(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(_FileScan, "_write", dies)
        with pytest.raises(KeyboardInterrupt):
            world.scan(config, 120, tmp_path / "killed")
    world.scan(config, 120, tmp_path / "killed")

    def found(name: str) -> list[tuple[int, str]]:
        paths = sorted((tmp_path / name).rglob("reviews/*.parquet"))
        assert len(paths) > 3
        return [row for path in paths for row in pl.read_parquet(path).select("row", "text").iter_rows()]

    assert found("killed") == found("whole")
    assert [text for _, text in found("whole")] == [f"text {n}" for n in range(23)]
