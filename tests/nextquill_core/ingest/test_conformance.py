"""The conformance kit passes sources that keep the contract, and names each way of breaking it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from nextquill_core.config import RawInput
from nextquill_core.errors import DataError
from nextquill_core.ingest.conformance import assert_conforms, check_source
from nextquill_core.ingest.sources import Amazon2023, BadRow, Batch, Part, RawFiles, source
from tests.flows.cli.test_main import nextquill
from tests.nextquill_core.ingest.world import World, item, review

YEAR_2020 = 1_577_836_800_000


def raw_category(folder: Path, ending: str = "", **other: Any) -> RawInput:
    """Twelve reviews, two bad lines, a blank one; two items."""
    world = World(folder)
    rows: list[Any] = [review(f"u{n}", f"i{n % 2}", YEAR_2020 + n, f"text {n}", **other) for n in range(12)]
    reviews = world.write(f"r.jsonl{ending}", [*rows[:5], b"", b"{broken", *rows[5:], b'{"rating": "five"}'])
    items = world.write(f"i.jsonl{ending}", [item("i0"), item("i1")])
    return RawInput(category="C", reviews=str(reviews), items=str(items))


def findings(source: Any, raw: RawInput, level: str = "error") -> list[str]:
    return [finding.what for finding in check_source(source, raw) if finding.level == level]


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_a_source_that_keeps_the_contract_passes(tmp_path: Path, ending: str) -> None:
    raw = raw_category(tmp_path, ending)
    assert findings(Amazon2023(), raw) == []
    (warning,) = findings(Amazon2023(), raw, "warning")
    assert warning.startswith(
        "2 of 14 rows are bad, ingest.max_bad_share allows 1% by default: not-json 1× (line 7: {broken); "
    )
    assert_conforms(Amazon2023(), raw, warnings=False)
    with pytest.raises(AssertionError, match=r"^warning: .*r\.jsonl.*: 2 of 14 rows are bad"):
        assert_conforms(Amazon2023(), raw)


def test_only_the_beginning_of_a_large_file_is_read(tmp_path: Path) -> None:
    raw = raw_category(tmp_path)
    reader = Amazon2023()
    reader.batch_bytes = 300
    read: list[int] = []

    class Counting(Amazon2023):
        batch_bytes = 300

        def read(self, part: Part, path: Path, resume: Any = None) -> Iterator[Batch]:
            for batch in super().read(part, path, resume):
                read.append(batch.last_line)
                yield batch

    assert check_source(Counting(), raw, rows=3) == check_source(reader, raw, rows=3)
    assert max(read) < 12


Change = Callable[[Batch, int], Any]
swap = dataclasses.replace


def rows(change: Callable[[pl.DataFrame], pl.DataFrame]) -> Change:
    return lambda batch, number: swap(batch, rows=change(batch.rows))


def bad(**values: Any) -> Change:
    return lambda batch, number: swap(batch, bad=[swap(row, **values) for row in batch.bad])


BROKEN: Mapping[str, tuple[Change, str]] = {
    "type": (rows(lambda t: t.with_columns(pl.col("rating").cast(pl.Float32))), "rating is Float32, not Float64"),
    "column": (rows(lambda t: t.drop("text")), "text is not there, not String"),
    "order": (rows(lambda t: t.select(sorted(t.columns))), "the order differs"),
    "empty id": (rows(lambda t: t.with_columns(user_id=pl.lit(""))), "user_id is null or empty at line 1"),
    "null id": (rows(lambda t: t.with_columns(item_id=pl.lit(None, pl.String))), "item_id is null or empty at line 1"),
    "null line": (rows(lambda t: t.with_columns(line=pl.lit(None, pl.Int64))), "`line` is null"),
    "same line": (rows(lambda t: t.with_columns(line=pl.lit(1, pl.Int64))), "`line` does not rise"),
    "lost row": (rows(lambda t: t.slice(2)), "accounts for 15 lines by last_line, but gives 13"),
    "line past the end": (rows(lambda t: t.with_columns(pl.col("line") + 90)), "must lie after 0"),
    "twice": (lambda b, n: swap(b, bad=[BadRow(1, "x", ""), *b.bad]), "is both a row and a bad row"),
    "blank": (lambda b, n: swap(b, blank=b.blank + 5), "but gives 20"),
    "position": (lambda b, n: swap(b, position=1 << 40), "position 1099511627776 of batch 0"),
    "reason": (bad(reason="Cannot read {broken!"), "'Cannot read {broken!' is no name of a reason"),
    "raw": (bad(raw="x" * 5000), "has 5000 characters; cut it at 2000"),
    "text": (lambda b, n: swap(b, raw=lambda line: line), "raw(1) is no text"),
    "text raises": (lambda b, n: swap(b, raw=lambda line: {}[line]), "raw(1) raises KeyError"),
    "nothing": (lambda b, n: None, "`rows` of a batch is None; give batches as `Batch` declares them"),
    "no count": (lambda b, n: swap(b, blank=None), "`blank` of a batch is None"),
    "no list": (lambda b, n: swap(b, bad=None), "`bad` of a batch is None"),
    "no bad row": (lambda b, n: swap(b, bad=[(7, "x", "y")]), "a bad row is (7, 'x', 'y'); give bad rows as `BadRow`"),
    "no reason": (bad(reason=None), "a bad row is BadRow(line=7, reason=None"),
    "resume is no JSON": (lambda b, n: swap(b, resume={1, 2}), "resume of batch 0 is no JSON value"),
    "resume is wrong": (lambda b, n: swap(b, resume=[0, 1]), "resumed after batch 0 it gives"),
    "not the same": (lambda b, n: swap(b, rows=b.rows.with_columns(title=pl.lit(str(n)))), "read twice it gives other"),
    "seconds": (rows(lambda t: t.with_columns(pl.col("timestamp_ms") // 1000)), "12 of 12 reviews are suspect, time"),
    "ratings": (
        rows(lambda t: t.with_columns(pl.col("rating") * 20)),
        "suspect, rating-out-of-range; `ratings` says 1",
    ),
    "no items": (
        rows(lambda t: t.with_columns(item_id="x" + pl.col("item_id"))),
        "no review read is of an item in the items",
    ),
    "no rows": (rows(lambda t: t.clear()), "it gives no rows"),
    "giant": (rows(lambda t: t.with_columns(text=pl.lit("x" * (30 << 20)))), "a batch holds"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_each_fault_of_rows_is_named(tmp_path: Path, fault: str) -> None:
    change, message = BROKEN[fault]
    calls = 0

    class Broken(Amazon2023):
        batch_bytes = 1 << 20

        def read(self, part: Part, path: Path, resume: Any = None) -> Iterator[Batch]:
            nonlocal calls
            for batch in super().read(part, path, resume):
                calls += 1
                yield change(batch, calls) if part == "reviews" else batch

    assert any(message in what for what in findings(Broken(), raw_category(tmp_path)))


def test_smaller_batches_must_give_the_same_rows(tmp_path: Path) -> None:
    class Broken(Amazon2023):
        def read(self, part: Part, path: Path, resume: Any = None) -> Iterator[Batch]:
            for number, batch in enumerate(super().read(part, path, resume)):
                yield swap(batch, rows=batch.rows.with_columns(title=pl.lit(str(number))))

    assert any("smaller batches give other rows" in what for what in findings(Broken(), raw_category(tmp_path)))


def test_a_whole_file_in_a_batch_is_warned_of(tmp_path: Path) -> None:
    class Whole(Amazon2023):
        def read(self, part: Part, path: Path, resume: Any = None) -> Iterator[Batch]:
            before, self.batch_bytes = self.batch_bytes, 1 << 20
            yield from super().read(part, path, resume)
            self.batch_bytes = before

    assert any("still gives one batch" in what for what in findings(Whole(), raw_category(tmp_path), "warning"))


@pytest.mark.parametrize(
    ("error", "message"),
    [(KeyError("x"), "reading raises KeyError"), (DataError("no good", "here"), "it cannot be read: here: no good")],
)
def test_errors_while_reading_are_findings(tmp_path: Path, error: Exception, message: str) -> None:
    class Broken(Amazon2023):
        def read(self, part: Part, path: Path, resume: Any = None) -> Iterator[Batch]:
            raise error

    assert any(message in what for what in findings(Broken(), raw_category(tmp_path)))


def test_the_attributes_of_a_source_are_checked(tmp_path: Path) -> None:
    class Broken(Amazon2023):
        name = ""
        summary = "two\nlines"
        revision = 0
        absent = frozenset({"reviews.user_id", "colour"})
        ratings = (5.0, 1.0)

        def __init__(self, options: Mapping[str, Any] | None = None) -> None:
            pass

        def find(self, raw: RawInput, *, fetch: bool) -> RawFiles:
            return RawFiles("C", (Path(raw.reviews or ""),), (Path(raw.items or ""),))

    found = "\n".join(findings(Broken(), raw_category(tmp_path)))
    for what in ("`name`", "`summary`", "`revision`", "only name canonical", "may not name ids", "`ratings` must be",
                 "an unknown option is accepted", "`find` raises nothing where a file is missing"):  # fmt: skip
        assert what in found


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("absent", ["items.title"], "`absent` is ['items.title']; set it to a set of columns"),
        ("ratings", None, "`ratings` is None; set it to the lowest and the highest rating"),
        ("ratings", ("1", "5"), "`ratings` is ('1', '5')"),
        ("batch_bytes", None, "`batch_bytes` is None; set it to a number of bytes"),
        ("find", lambda *_, **__: None, "`find` returns None; return RawFiles"),
        ("find", lambda *_, **__: {}["x"], "`find` raises KeyError: 'x'; raise DataError"),
    ],
)
def test_attributes_of_another_type_are_findings_and_no_errors(
    tmp_path: Path, name: str, value: object, message: str
) -> None:
    (found,) = findings(type("Broken", (Amazon2023,), {name: value})(), raw_category(tmp_path))
    assert found.startswith(message)


def test_empty_columns_and_absent_ones_with_values_are_warned_of(tmp_path: Path) -> None:
    class Odd(Amazon2023):
        absent = frozenset({"reviews.rating", "items.rating_number"})

    found = findings(Odd(), raw_category(tmp_path, title=""), "warning")
    assert any("title is null or empty in all 12 rows read" in what for what in found)
    assert sorted(what.split()[0] for what in found if "has values" in what) == [
        "items.rating_number",
        "reviews.rating",
    ]


def test_a_missing_file_is_an_error_and_no_finding(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        check_source(Amazon2023(), RawInput(category="C", reviews=str(tmp_path / "r"), items=str(tmp_path / "i")))


COLUMNS = {
    "reviews": {"user_id": "user", "item_id": "item", "rating": "stars", "text": "said", "timestamp": "at"},
    "items": {"item_id": "item", "title": "name", "description": "about"},
}


@pytest.mark.parametrize("ending", ["csv", "tsv", "csv.gz", "parquet", "jsonl"])
def test_table_conforms(tmp_path: Path, ending: str) -> None:
    numbers = range(40)
    reviews = pl.DataFrame({
        "user": [f"u{n % 7}" for n in numbers], "item": [f"i{n % 3}" for n in numbers],
        "stars": [float(n % 5 + 1) for n in numbers], "said": [f'he said "{n}",\nand left' for n in numbers],
        "at": [YEAR_2020 + n for n in numbers],
    })  # fmt: skip
    items = pl.DataFrame({"item": ["i0", "i1", "i2"], "name": ["a", "b", "c"], "about": ["x", "y", "z"]})
    for name, table in (("r", reviews), ("i", items)):
        path = tmp_path / f"{name}.{ending}"
        if ending == "parquet":
            table.write_parquet(path, row_group_size=10)
        elif ending == "jsonl":
            table.write_ndjson(path)
        else:
            text = table.write_csv(separator="\t" if ending == "tsv" else ",").encode()
            World(tmp_path).write(path.name, text)
    raw = RawInput(category="C", reviews=str(tmp_path / f"r.{ending}"), items=str(tmp_path / f"i.{ending}"))
    assert findings(source("table", COLUMNS), raw) == []


def table_findings(tmp_path: Path, rows: list[str], level: str = "error", **options: Any) -> list[str]:
    """Return the findings for a table of reviews whose columns are all mapped.

    Args:
        tmp_path: Where the files go.
        rows: Lines of CSV.
        level: Which findings to return.
    """
    world = World(tmp_path)
    columns = {**COLUMNS, "reviews": COLUMNS["reviews"] | {"title": "head"}} | options
    reviews = world.write("r.csv", ("user,item,stars,head,said,at\n" + "\n".join(rows) + "\n").encode())
    items = world.write("i.csv", b"item,name,about\n100,one,\n200,two,\n")
    return findings(source("table", columns), RawInput(category="C", reviews=str(reviews), items=str(items)), level)


def test_reasons_come_with_the_first_row_and_a_remedy(tmp_path: Path) -> None:
    bad = ["ann,100,five,h,text,1600000000000", "bob,100,great,h,text,1600000000000"]
    (found,) = table_findings(tmp_path, bad)
    shown = "(line 2: stars is 'five'; set ingest.options.rating_words: {\"five\": NUMBER})"
    assert found == f"it gives no rows; all 2 are bad: wrong-type-stars 2× {shown}"
    odd = ["ann,100,9,,text,1600000000000", "bob,200,4,,text,1600000000000"]
    assert sorted(table_findings(tmp_path, odd, "warning")) == [
        "1 of 2 reviews are suspect, rating-out-of-range; ingest.options.ratings says 1.0 to 5.0 (the first, line 2, "
        "has rating 9.0)",
        "description is null or empty in all 2 rows read; name another column in ingest.options, leave it out there, "
        "or set ingest.protocol.min_description_chars to 0",
        "title is null or empty in all 2 rows read; name another column in ingest.options, leave it out there, or set "
        "ingest.protocol.require_review_title to false",
    ]


def test_lists_that_are_all_empty_are_warned_of(tmp_path: Path) -> None:
    world = World(tmp_path)
    reviews = world.write("r.jsonl", [review(time=YEAR_2020)])
    items = world.write("i.jsonl", [item("i1", categories=[])])
    assert findings(Amazon2023(), RawInput(category="C", reviews=str(reviews), items=str(items)), "warning") == [
        "categories is null or empty in all 1 rows read; set ingest.protocol.require_categories to false"
    ]


def test_ids_that_do_not_join_are_shown(tmp_path: Path) -> None:
    (found,) = table_findings(tmp_path, ["ann,100.0,4,h,text,1600000000000", "bob,200.0,4,h,text,1600000000000"])
    assert found == (
        "no review read is of an item in the items: the reviews have `100.0`, `200.0`, the items have `100`, `200`; "
        "they are the same without the `.0` at the end: make both parts name items by the same id"
    )


def test_built_in_readers_are_not_warned_of(tmp_path: Path) -> None:
    row = "ann,100,4,h,text,1600000000000"
    assert not any("batch" in what for what in table_findings(tmp_path, [row] * 9, "warning"))


def test_empty_parts_among_others_are_no_fault(tmp_path: Path) -> None:
    world = World(tmp_path)
    header = b"user,item,stars,said,at\n"
    world.write("r-0.csv", header + b"ann,1,4,text,1600000000000\n")
    world.write("r-1.csv", b"")
    world.write("r-2.csv", header)
    items = str(world.write("i.csv", b"item,name,about\n1,one,x\n"))
    raw = RawInput(category="C", reviews=str(tmp_path / "r-*.csv"), items=items)
    assert findings(source("table", COLUMNS), raw) == []
    assert findings(source("table", COLUMNS), raw.model_copy(update={"reviews": str(tmp_path / "r-2.csv")})) == [
        "it gives no rows; choose another file"
    ]


def test_the_command_prints_findings_and_exits_with_2_on_errors(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    raw = raw_category(tmp_path, timestamp=1_500_000_000)
    config = tmp_path / "c.yaml"
    config.write_text(f"ingest: {{inputs: [{{category: C, reviews: {raw.reviews}, items: {raw.items}}}]}}\n")
    assert nextquill(monkeypatch, "sources", "--check", "--config", config) == 2
    captured = capsys.readouterr()
    assert [line.split(":")[0] for line in captured.out.splitlines()] == ["warning", "error"]
    assert captured.err == (
        "nextquill: source amazon-2023: 1 error; fix what is named above; docs/how-to/sources.md has the rules\n"
    )


def test_the_command_says_that_the_contract_is_kept(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    world = World(tmp_path)
    reviews = world.write("r.jsonl", [review(f"u{n}", "i1", YEAR_2020 + n) for n in range(9)])
    inputs = f"ingest.inputs=[{{category: C, reviews: {reviews}, items: {world.write('i.jsonl', [item()])}}}]"
    (tmp_path / "c.yaml").touch()
    assert nextquill(monkeypatch, "sources", "--check", "-c", tmp_path / "c.yaml", "--set", inputs) == 0
    assert capsys.readouterr().out == "C: amazon-2023 keeps its contract\n"


def test_a_check_needs_a_config(monkeypatch: Any, capsys: Any) -> None:
    assert nextquill(monkeypatch, "sources", "--check") == 2
    assert capsys.readouterr().err == (
        "nextquill: nextquill sources: --check needs files to read; name a run's file with --config\n"
    )
