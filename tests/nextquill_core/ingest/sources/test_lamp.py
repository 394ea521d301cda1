"""The source `lamp`: profiles of LaMP and LongLaMP, streamed from one large array or from lines."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nextquill_core.errors import DataError
from nextquill_core.ingest.batches import Batch, Part
from nextquill_core.ingest.sources import source
from tests.nextquill_core.ingest.tables import bad, write_csv
from tests.nextquill_core.ingest.world import World

REVIEW = {"task": "longlamp-product-review"}


def entry(number: int, **change: Any) -> dict[str, Any]:
    """An entry of a LongLaMP profile."""
    plain = {"overall": "4.0", "summary": f"s{number}", "reviewText": f"text {number}", "description": f"d{number}"}
    return plain | change


def told(overall: str = "5.0", description: str = "own d", summary: str = "own s") -> str:
    return (
        f'Generate the review text written by a reviewer who has a given an overall rating of "{overall}" for a '
        f'product with description "{description}". The summary of the review text is "{summary}".'
    )


def person(name: Any = "u1", profile: Any = None, **change: Any) -> dict[str, Any]:
    found = [entry(1), entry(2)] if profile is None else profile
    return {"reviewerId": name, "input": told(), "output": "own text", "profile": found} | change


def digest(kind: str, text: str) -> str:
    return hashlib.sha256(f"{kind}\0{text}".encode()).hexdigest()[:32]


def write(folder: Path, found: Any, name: str = "r.json") -> Path:
    return write_csv(folder, found if isinstance(found, bytes) else json.dumps(found).encode(), name)


def batches(path: Path, options: dict[str, Any], part: Part = "reviews", size: int | None = None) -> list[Batch]:
    reader = source("lamp", options)
    if size:
        reader.batch_bytes = size
    return list(reader.read(part, path))


def rows(found: list[Batch]) -> list[dict[str, Any]]:
    return [row for batch in found for row in batch.rows.to_dicts()]


def test_a_product_review_row_is_its_profile_and_then_itself(tmp_path: Path) -> None:
    path = write(tmp_path, [person(), person(7, [entry(1, overall=3)])])
    common = {"user_id": "u1", "rating": 4.0, "split": None, "example": 1, "own": False}
    found = batches(path, REVIEW)
    assert rows(found) == [
        common | {"line": 1, "item_id": digest("description", "d1"), "title": "s1", "text": "text 1",
                  "timestamp_ms": 1},
        common | {"line": 2, "item_id": digest("description", "d2"), "title": "s2", "text": "text 2",
                  "timestamp_ms": 2},
        common | {"line": 3, "item_id": digest("description", "own d"), "rating": 5.0, "title": "own s",
                  "text": "own text", "timestamp_ms": 3, "own": True},
        common | {"line": 4, "user_id": "7", "item_id": digest("description", "d1"), "rating": 3.0, "title": "s1",
                  "text": "text 1", "timestamp_ms": 1, "example": 4},
        common | {"line": 5, "user_id": "7", "item_id": digest("description", "own d"), "rating": 5.0,
                  "title": "own s", "text": "own text", "timestamp_ms": 2, "example": 4, "own": True},
    ]  # fmt: skip
    assert found[-1].last_line == 5
    items = rows(batches(path, REVIEW, "items"))
    assert [(row["line"], row["item_id"], row["description"], row["title"]) for row in items[:3]] == [
        (1, digest("description", "d1"), ["d1"], None),
        (2, digest("description", "d2"), ["d2"], None),
        (3, digest("description", "own d"), ["own d"], None),
    ]
    without = batches(path, REVIEW | {"own": False})
    assert [row["line"] for row in rows(without)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("task", "entry", "expected"),
    [
        ("lamp-1", {"id": "9", "title": "t", "abstract": "a"}, ("a", "t", None, digest("id", "9"))),
        ("lamp-2", {"id": "9", "tag": "g", "description": "d"}, ("g", None, None, digest("description", "d"))),
        ("lamp-3", {"id": "9", "text": "x", "score": "4"}, ("x", None, 4.0, digest("id", "9"))),
        ("lamp-4", {"id": 9, "text": "x", "title": "t"}, ("x", "t", None, digest("id", "9"))),
        ("lamp-5", {"id": "9", "title": "t", "abstract": "a"}, ("a", "t", None, digest("id", "9"))),
        ("lamp-6", {"id": "9", "text": "x", "title": "t"}, ("x", "t", None, digest("id", "9"))),
        ("lamp-7", {"id": "9", "text": "x"}, ("x", None, None, digest("id", "9"))),
    ],
)
def test_the_profiles_of_lamp(tmp_path: Path, task: str, entry: dict[str, Any], expected: tuple[Any, ...]) -> None:
    path = write(tmp_path, [{"id": "q", "input": "?", "profile": [entry]}])
    row = rows(batches(path, {"task": task}))[0]
    assert (row["text"], row["title"], row["rating"], row["item_id"]) == expected
    assert (row["user_id"], row["timestamp_ms"], row["line"]) == ("q", 1, 1)
    reader = source("lamp", {"task": task})
    assert ("reviews.rating" in reader.absent) == (row["rating"] is None)
    assert ("items.description" in reader.absent) == (task != "lamp-2")
    assert not reader.dated


@pytest.mark.parametrize(
    ("task", "row"),
    [
        ("longlamp-abstract-generation", {"name": "q", "profile": [{"title": "t", "abstract": "x"}]}),
        ("longlamp-topic-writing", {"author": "q", "profile": [{"summary": "t", "content": "x"}]}),
    ],
)
def test_the_other_tasks_of_longlamp(tmp_path: Path, task: str, row: dict[str, Any]) -> None:
    found = rows(batches(write(tmp_path, [row]), {"task": task}))
    assert [(each["user_id"], each["title"], each["text"]) for each in found] == [("q", "t", "x")]
    assert found[0]["item_id"] == digest("text", "x")


POST = {"author": "q", "profile": [{"author": "q", "id": "7", "summary": "s", "content": "c"}]}
PAPER = {"name": "q", "profile": [{"id": "7", "title": "s", "abstract": "c", "year": 2019}]}


@pytest.mark.parametrize(
    ("task", "row", "question", "expected"),
    [
        ("topic_writing_user", POST, "Generate the content for a reddit post My cat", ("My cat", None)),
        ("topic_writing_temporal", POST, 'generate the content for a Reddit post: "My cat"', ("My cat", None)),
        ("longlamp-topic-writing", POST, 'Generate the content for a reddit post My "cat"', ('My "cat"', None)),
        ("topic_writing_user", POST, "Write about cats.", ("Write about cats.", None)),
        ("abstract_generation_user", PAPER, 'Generate an abstract for the title "On "cats"" using the following items: '
         "1. cats\n2. sleep", ('On "cats"', ["1. cats\n2. sleep"])),
        ("abstract_generation_temporal", PAPER, 'Generate an abstract for the title "Cats".', ("Cats", None)),
        ("longlamp-abstract-generation", PAPER, "An abstract on cats", ("An abstract on cats", None)),
    ],
)  # fmt: skip
def test_the_output_of_a_topic_and_of_an_abstract_is_the_newest_text(
    tmp_path: Path, task: str, row: dict[str, Any], question: str, expected: tuple[str, list[str] | None]
) -> None:
    path = write(tmp_path, [row | {"input": question, "output": "own"}], "train.json")
    reader = source("lamp", {"task": task})
    (batch,) = reader.read("reviews", path)
    found = batch.rows.select("title", "text", "own", "example", "split").rows()
    assert found == [("s", "c", False, 1, "train"), (expected[0], "own", True, 1, "train")]
    (items,) = reader.read("items", path)
    assert items.rows["description"].to_list() == [None, expected[1]]
    assert [len(one.rows) for one in batches(path, {"task": task, "own": False})] == [1]
    assert reader.writes == ("post" if "topic" in task else "abstract")


def test_parquet_gives_the_same_rows_as_json(tmp_path: Path) -> None:
    people = [person(), person(7, [entry(1, overall=3)] * 70), person("u3", [])]
    expected = batches(write(tmp_path, people), REVIEW)
    people[1]["reviewerId"] = "7"
    people[1]["profile"] = [entry(1, overall="3")] * 70  # a column has one type
    table = pa.Table.from_pylist(people)
    pq.write_table(table, tmp_path / "a.parquet")
    with pa.ipc.new_stream(tmp_path / "b.arrow", table.schema) as stream:
        stream.write_table(table)
    with pa.ipc.new_file(tmp_path / "c.arrow", table.schema) as file:
        file.write_table(table)
    for name in ("a.parquet", "b.arrow", "c.arrow"):
        found = batches(tmp_path / name, REVIEW)
        assert rows(found) == rows(expected), name
        assert [batch.position for batch in found] == [(tmp_path / name).stat().st_size]
        small = batches(tmp_path / name, REVIEW, size=100)
        assert len(small) == 3
        assert rows(small) == rows(expected)
        positions = [batch.position for batch in small]
        assert positions == sorted(positions)


@pytest.mark.parametrize("content", [b"PAR1 and no more", b"ARROW1 and no more", b"\xff\xff\xff\xff and no more"])
def test_a_damaged_table_is_one_line(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DataError, match="is damaged") as caught:
        batches(write(tmp_path, content, "a.parquet"), REVIEW)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00002.parquet", "train"),
        ("val-00000-of-00001.parquet", "val"),
        ("validation.jsonl.gz", "val"),
        ("topic_writing_dev.json", "val"),
        ("TEST.json", "test"),
        ("test/0000.parquet", "test"),
        ("test/train.json", "train"),
        ("latest.json", None),
        ("train_and_test.json", None),
    ],
)
def test_the_split_is_read_from_the_name(tmp_path: Path, name: str, split: str | None) -> None:
    assert source("lamp", REVIEW).split_of(tmp_path / name) == split


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2018-07-07", 1530921600000),
        ("2018-7-7", 1530921600000),
        ("2018-07", 1530403200000),
        (2018, 1514764800000),
        ("2018-07-07 12:00:00", 1530964800000),
        ("2018-07-07T14:00:00+02:00", 1530964800000),
        (None, "missing-date"),
        ("2018-02-30", "wrong-type-date"),
        ("long ago", "wrong-type-date"),
        (True, "wrong-type-date"),
    ],
)
def test_dates(tmp_path: Path, value: Any, expected: Any) -> None:
    path = write(tmp_path, [{"id": "q", "user_id": "u", "profile": [{"id": "9", "text": "x", "date": value}]}])
    options = {"task": "lamp-7", "dates": True}
    found = batches(path, options)
    assert source("lamp", options).dated
    if isinstance(expected, str):
        assert bad(found) == [(1, expected)]
    else:
        assert [(row["user_id"], row["timestamp_ms"]) for row in rows(found)] == [("u", expected)]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b"nonsense", "not-json"),
        (b'{"reviewerId": NaN}', "not-json"),
        (b'{"reviewerId": "\\ud800"}', "not-json"),
        (b"", "not-json"),
        (b'"a, [text]"', "not-an-object"),
        (b"[1, [2]]", "not-an-object"),
        (b'{"reviewerId": "\xff"}', "invalid-utf8"),
        (person(None), "missing-reviewerId"),
        (person(""), "missing-reviewerId"),
        (person(1.5), "wrong-type-reviewerId"),
        ({"reviewerId": "u"}, "missing-profile"),
        (person(profile={"a": 1}), "wrong-type-profile"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: Any, reason: str) -> None:
    middle = row if isinstance(row, bytes) else json.dumps(row).encode()
    good = json.dumps(person()).encode()
    found = batches(write(tmp_path, b"[" + b" ,\n".join([good, middle, good]) + b"]\n"), REVIEW)
    assert bad(found) == [(4, reason)]
    assert [each["line"] for each in rows(found)] == [1, 2, 3, 5, 6, 7]
    found = batches(write(tmp_path, b"\n".join([good, middle, good]), "r.jsonl.gz"), REVIEW)
    assert bad(found) == ([(4, reason)] if middle else [])
    assert [each["line"] for each in rows(found)] == [1, 2, 3, 5, 6, 7]
    assert sum(batch.blank for batch in found) == (not middle)


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ("text", "not-an-object"),
        (entry(1, reviewText=5), "wrong-type-reviewText"),
        (entry(1, overall="five"), "wrong-type-overall"),
        (entry(1, overall=True), "wrong-type-overall"),
        (entry(1, description=["d"]), "wrong-type-description"),
        ({"overall": 1, "summary": "s", "description": "d"}, "missing-reviewText"),
        ({"reviewText": "x", "summary": "s", "description": "d"}, "missing-overall"),
    ],
)
def test_a_bad_entry_leaves_the_others(tmp_path: Path, entry: Any, reason: str) -> None:
    good = person()["profile"]
    found = batches(write(tmp_path, [person(profile=[good[0], entry, good[1]])]), REVIEW)
    assert bad(found) == [(2, reason)]
    assert [(row["line"], row["timestamp_ms"]) for row in rows(found)] == [(1, 1), (3, 3), (4, 4)]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"input": "Write a review."}, "unknown-input"),
        ({"input": told(summary='x". The summary of the review text is "y')}, "unknown-input"),
        ({"input": None}, "missing-input"),
        ({"output": None}, "missing-output"),
        ({"output": 5}, "wrong-type-output"),
    ],
)
def test_a_row_whose_own_review_cannot_be_read_is_named(tmp_path: Path, change: Any, reason: str) -> None:
    found = batches(write(tmp_path, [person() | change]), REVIEW)
    assert bad(found) == [(3, reason)]
    assert len(rows(found)) == 2


def test_an_empty_profile_is_blank(tmp_path: Path) -> None:
    found = batches(write(tmp_path, [{"id": "1", "profile": []}] * 3), {"task": "lamp-7"})
    assert [(batch.blank, batch.last_line, batch.rows.height) for batch in found] == [(3, 3, 0)]
    assert batches(write(tmp_path, b" [ ] "), {"task": "lamp-7"}) == []


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"nothing", "is neither a JSON array nor JSON lines"),
        (b"  ", "is neither a JSON array nor JSON lines"),
        (b'"text"', "is neither a JSON array nor JSON lines"),
        (b'[{"id": 1}, {"id"', "the array breaks off in element 2"),
        (b'[{"id": 1}', "the array breaks off in element 1"),
        (b'[{"id": "never closed}]', "the array breaks off in element 1"),
        (b'[{"id": 1}] [2]', "something follows the array"),
    ],
)
def test_a_file_that_is_no_array_is_one_line(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        batches(write(tmp_path, data), {"task": "lamp-7"})
    assert "\n" not in str(caught.value)


def test_a_damaged_or_misnamed_gzip_is_one_line(tmp_path: Path) -> None:
    path = write(tmp_path, [person()] * 50, "r.json.gz")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match="gzip data are damaged or break off"):
        batches(path, REVIEW)
    path.write_bytes(b"[]")
    with pytest.raises(DataError, match=r"its name ends in \.gz, but it is not gzip"):
        batches(path, REVIEW)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "lamp needs `task`"),
        ({"task": "lamp-33"}, "`task`: there is no such task, did you mean `lamp-3`?"),
        ({"tasks": "lamp-3"}, "unknown option `tasks`; did you mean `task`?"),
        (REVIEW | {"dates": True}, "a row's own output has no date"),
        (REVIEW | {"own": "perhaps"}, "`own`: Input should be a valid boolean"),
    ],
)
def test_a_wrong_option_is_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        source("lamp", options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_sequences_are_the_profiles_whatever_the_file_and_the_batches(tmp_path: Path) -> None:
    people = [
        person(f"u{u}", [entry(10 * u + i) for i in range(5)], input=told(description=f"own {u}")) for u in range(4)
    ]
    lines = b"\n".join(json.dumps(row).encode() for row in people)
    world, tables = World(tmp_path), []
    for name, data in {"a.json": people, "b.json.gz": people, "c.jsonl": lines}.items():
        path = write(tmp_path, data, name)
        for size in (1, 700, 1 << 20):
            out = tmp_path / f"{name}-{size}"
            world.run(world.config(path, path, source="lamp", options=REVIEW), size, out)
            tables.append([world.table(each, out) for each in ("sequences", "items", "examples")])
    assert all(table == tables[0] for table in tables)
    sequences = {row["user_id"]: [each["timestamp_ms"] for each in row["reviews"]] for row in tables[0][0]}
    assert sequences == {f"u{u}": [1, 2, 3, 4, 5, 6] for u in range(4)}
    assert {row["description"] for row in tables[0][1]} == {
        *(f"d{10 * u + i}" for u in range(4) for i in range(5)), *(f"own {u}" for u in range(4))
    }  # fmt: skip
