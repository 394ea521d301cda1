"""The source `dpl`: the published examples as they are, and the same as the protocol `dpl` makes from the raw files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nextquill_core.errors import DataError
from nextquill_core.ingest.conformance import check_source
from nextquill_core.ingest.sources import Part, source
from tests.nextquill_core.ingest.reference import examples, procedure
from tests.nextquill_core.ingest.world import SMALL, Row, World, plain_category

REVIEW: Row = {"asin": "i", "rating": 5.0, "title": "t", "text": "x", "timestamp": 1}


def of_dpl(review: Row) -> Row:
    """A review under the keys of the processed data."""
    return {"rating": review["rating"], "title": review["title"], "text": review["text"], "asin": review["parent_asin"],
            "timestamp": review["timestamp"]}  # fmt: skip


def processed(reviews: list[Row], items: list[Row]) -> tuple[dict[str, list[Row]], list[Row]]:
    """The rows of each split and of the items, made by the published procedure in plain Python."""
    thresholds = type("Thresholds", (), SMALL)
    outcome = procedure(reviews, items, thresholds)
    splits: dict[str, list[Row]] = {"train": [], "val": [], "test": []}
    for user, split, target, history in examples(outcome):
        splits[split].append({"user_id": user, "profile": list(map(of_dpl, history)), "data": of_dpl(target)})
    return splits, [
        {"asin": name, "title": title, "description": about} for name, (title, about) in outcome.items.items()
    ]


def write(folder: Path, splits: dict[str, list[Row]], items: list[Row]) -> tuple[Path, Path]:
    """The files as the hub has them."""
    for name, rows in {**splits, "full": items}.items():
        place = folder / ("meta" if name == "full" else "main") / f"{name}-00000-of-00001.parquet"
        place.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), place)
    return folder / "main", folder / "meta"


def tables(world: World, out: Path | None = None) -> dict[str, list[Row]]:
    return {name: world.table(name, out) for name in ("sequences", "items", "examples")}


def test_the_published_examples_are_those_of_our_own_protocol(tmp_path: Path) -> None:
    reviews, items = plain_category()
    ours, theirs = World(tmp_path / "ours"), World(tmp_path / "theirs")
    ours.ingest(reviews, items)
    main, meta = write(theirs.folder, *processed(reviews, items))
    stats = theirs.run(theirs.config(main, meta, source="dpl", name="published"))
    assert tables(theirs) == tables(ours)
    assert stats["examples"] == {"train": 4, "val": 4, "test": 4}
    assert stats["reviews"]["kept"] == 24, "a review is stored once, however many profiles have it"
    assert stats["reviews"]["dropped"] == {"in_another_example": stats["reviews"]["read"] - 24}


def test_any_format_gives_the_same_tables(tmp_path: Path) -> None:
    splits, items = processed(*plain_category())
    world = World(tmp_path)
    expected = None
    for kind in ("parquet", "jsonl", "json", "arrow", "columns"):
        folder, out = tmp_path / kind, tmp_path / f"out-{kind}"
        folder.mkdir()
        for name, rows in {**splits, "full": items}.items():
            if kind == "columns" and name != "full":  # as `datasets` stores a sequence of records
                rows = [
                    row | {"profile": {key: [one[key] for one in row["profile"]] for key in row["data"]}}
                    for row in rows
                ]
            if kind == "arrow":
                with pa.ipc.new_stream(
                    folder / f"{name}.arrow", (table := pa.Table.from_pylist(rows)).schema
                ) as stream:
                    stream.write_table(table)
            elif kind == "parquet":
                pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
            else:
                text = json.dumps(rows) if kind == "json" else "".join(json.dumps(row) + "\n" for row in rows)
                (folder / f"{name}.{'json' if kind == 'json' else 'jsonl'}").write_text(text)
        items_file = next(folder.glob("full.*"))
        pattern = f"{folder}/[tv]*"
        if kind == "arrow":
            pq.write_table(pa.Table.from_pylist(items), items_file := folder / "items.parquet")
        world.run(world.config(pattern, items_file, source="dpl", name="published"), out=out)
        expected = expected or tables(world, out)
        assert tables(world, out) == expected, kind


def test_it_keeps_the_contract_of_sources(tmp_path: Path) -> None:
    main, meta = write(tmp_path, *processed(*plain_category()))
    config = World(tmp_path).config(main, meta, source="dpl")
    # the times of these reviews are small numbers
    assert [
        str(found) for found in check_source(source("dpl"), config.inputs[0]) if "timestamp" not in str(found)
    ] == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"user_id": None}, "missing-user_id"),
        ({"data": None}, "missing-data"),
        ({"profile": None}, "missing-profile"),
        ({"profile": {"asin": ["a"], "text": []}}, "wrong-type-profile"),
        ({"data": "text"}, "not-an-object"),
        ({"data": {"rating": 5.0, "title": "t", "text": "x", "timestamp": 1}}, "missing-asin"),
        ({"data": REVIEW | {"rating": "five"}}, "wrong-type-rating"),
        ({"data": REVIEW | {"text": 5}}, "wrong-type-text"),
        ({"data": {"asin": "i", "rating": 5.0, "title": "t", "text": "x"}}, "missing-timestamp"),
        ({"data": REVIEW | {"timestamp": 1e30}}, "wrong-type-timestamp"),
        ({"data": REVIEW | {"timestamp": 2**63}}, "wrong-type-timestamp"),
        ({"data": REVIEW | {"timestamp": "9" * 40}}, "wrong-type-timestamp"),
        ({"data": REVIEW | {"timestamp": 1e300}}, "wrong-type-timestamp"),
        ({"data": REVIEW | {"timestamp": -(2**70)}}, "wrong-type-timestamp"),
        ({"data": json.loads("[" * 300 + "]" * 300)}, "not-an-object"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    path = tmp_path / "test.jsonl"
    path.write_text(json.dumps({"user_id": "u", "profile": [REVIEW], "data": REVIEW} | change) + "\n")
    (batch,) = source("dpl").read("reviews", path)
    assert [row.reason for row in batch.bad] == [reason]


def test_text_that_parquet_holds_as_bytes_is_read(tmp_path: Path) -> None:
    kind = pa.struct(
        {name: pa.binary() for name in ("asin", "title", "text")} | {"rating": pa.float64(), "timestamp": pa.int64()}
    )
    review = REVIEW | {"asin": b"i", "title": b"t", "text": "caf\u00e9".encode()}
    users = [
        {"user_id": b"u", "profile": [], "data": review},
        {"user_id": b"v", "profile": [], "data": review | {"text": b"\xff"}},
    ]
    schema = pa.schema({"user_id": pa.binary(), "profile": pa.list_(kind), "data": kind})
    pq.write_table(pa.Table.from_pylist(users, schema), tmp_path / "test.parquet")
    (batch,) = source("dpl").read("reviews", tmp_path / "test.parquet")
    assert batch.rows.select("user_id", "item_id", "text").rows() == [("u", "i", "caf\u00e9")]
    assert [(row.line, row.reason) for row in batch.bad] == [(2, "invalid-utf8")]


def test_text_of_parquet_that_is_not_utf8_spoils_its_row_alone(tmp_path: Path) -> None:
    ids = pa.array([b"u", b"\xff"]).view(pa.string())
    other = pa.array([REVIEW, REVIEW])
    pq.write_table(
        pa.table({"user_id": ids, "profile": pa.array([[], []], pa.list_(other.type)), "data": other}),
        tmp_path / "test.parquet",
    )
    (batch,) = source("dpl").read("reviews", tmp_path / "test.parquet")
    assert batch.rows["user_id"].to_list() == ["u"]
    assert [(row.line, row.reason) for row in batch.bad] == [(2, "invalid-utf8")]


@pytest.mark.parametrize("part", ["reviews", "items"])
def test_a_file_that_may_not_be_read_is_one_line(tmp_path: Path, part: Part) -> None:
    (tmp_path / "test.jsonl").mkdir()  # root, as which tests may run, can read every file
    with pytest.raises(DataError, match=r"test\.jsonl: cannot be read \(Is a directory\)"):
        list(source("dpl").read(part, tmp_path / "test.jsonl"))


def test_a_file_whose_split_is_unknown_is_refused_in_one_line(tmp_path: Path) -> None:
    main, meta = write(tmp_path, *processed(*plain_category()))
    world = World(tmp_path)
    odd = main / "test-00000-of-00001.parquet"
    odd.rename(main / "part-0.parquet")
    with pytest.raises(
        DataError, match=r"part-0\.parquet: its name does not show the split .* begins with train"
    ) as caught:
        world.run(world.config(main, meta, source="dpl", name="published"))
    assert "\n" not in str(caught.value)


def test_a_split_that_is_missing_is_a_note(tmp_path: Path) -> None:
    splits, items = processed(*plain_category())
    main, meta = write(tmp_path, splits, items)
    for name in ("train", "val"):
        (main / f"{name}-00000-of-00001.parquet").unlink()
    world = World(tmp_path)
    stats = world.run(world.config(main, meta, source="dpl", name="published"))
    assert stats["examples"] == {"train": 0, "val": 0, "test": 4}
    assert stats["notes"] == ["C: the files hold no examples of train, val"]


def test_odd_rows_are_kept_or_dropped_by_a_reason(tmp_path: Path) -> None:
    """Numbers as texts, nulls, nested values, repeated rows and users: rows read = rows kept + rows dropped."""

    def one(item: str, time: Any = 5, **change: Any) -> dict[str, Any]:
        return {"asin": item, "rating": 4.0, "title": "t", "text": f"on {item}", "timestamp": time} | change

    usual = {"user_id": "u1", "profile": [one("i0", 1)], "data": one("i1")}
    rows: list[Any] = [
        usual,
        usual,
        usual | {"profile": [one("i0", 1), one("i2", "3")], "data": one("i3", "1530000000000.0", rating="4.5")},
        {"user_id": 7, "profile": [], "data": one("i0", -3, rating=None, title=None)},
        {"user_id": "u2", "profile": [None, [one("i0")], one("i1", 1e30), one("i2", text=None)], "data": one("i3")},
        {"user_id": "u3", "profile": "[]", "data": one("i3")},
        {"user_id": "u4", "profile": [one("i0")], "data": one("i1", text=["a"])},
        {"user_id": "u5", "profile": [one("unknown")], "data": one("i0", extra={"a": [1]})},
    ]
    items = [{"asin": f"i{number}", "title": None, "description": None} for number in range(4)]
    main, meta = write(tmp_path, {}, items)
    main.mkdir(exist_ok=True)
    (main / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    world = World(tmp_path)
    stats = world.run(world.config(main, meta, source="dpl", name="published"))["reviews"]
    assert stats["dropped"] == {
        "in_another_example": 2, "not-an-object": 2, "wrong-type-timestamp": 1, "no_text": 1, "wrong-type-profile": 1,
        "wrong-type-text": 1, "example_without_target": 1, "unknown_item": 1,
    }  # fmt: skip
    assert stats["read"] == stats["kept"] + sum(stats["dropped"].values()) == 18
    assert [(row["user_id"], len(row["reviews"])) for row in world.table("sequences")] == [
        ("7", 1), ("u1", 5), ("u2", 1), ("u5", 1),
    ]  # fmt: skip


def test_files_without_a_target_hold_no_example(tmp_path: Path) -> None:
    splits, items = processed(*plain_category())
    for row in splits["test"]:
        row["data"]["text"] = ""
    main, meta = write(tmp_path, {"test": splits["test"]}, items)
    world = World(tmp_path)
    what = r"no row of C is an example: 24 reviews read, and none of them is a target \(dropped: 4 as `no_text`\)"
    with pytest.raises(DataError, match=what):
        world.run(world.config(main, meta, source="dpl", name="published"))
