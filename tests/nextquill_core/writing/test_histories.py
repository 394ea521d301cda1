"""Single users and items are found without reading the tables, and as a whole read finds them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from nextquill_core.ingest.reader import read_examples
from nextquill_core.records import Item, Review
from nextquill_core.schemas import EXAMPLES, ITEMS, SEQUENCES
from nextquill_core.writing import histories
from nextquill_core.writing.histories import Histories
from storage import UserError
from storage.tables import write_table


def row(user: str, category: str, items: list[int]) -> dict[str, Any]:
    reviews = [
        {
            "item_id": f"i{item:03d}",
            "rating": 4.0,
            "title": f"t{place}",
            "text": f"{user} {place}",
            "timestamp_ms": place,
        }
        for place, item in enumerate(items)
    ]
    return {"user_id": user, "category": category, "reviews": reviews}


def write(folder: Path, *, users: int = 40, per_file: int = 10, group: int = 3) -> list[dict[str, Any]]:
    """Write two categories; `both` is a user of each. Item ids are the same in both, with other titles."""
    written = []
    for number, category in enumerate(("Books", "Films: new")):
        names = sorted([*(f"{category[0]}{one:03d}" for one in range(users)), "both"])
        rows = [row(name, category, [(place * 7 + step) % 30 for step in range(5)]) for place, name in enumerate(names)]
        items = [
            {"item_id": f"i{one:03d}", "category": category, "title": f"{category} {one}", "description": "d"}
            for one in range(30)
        ]
        for start in range(0, len(rows), per_file):
            some, name = rows[start : start + per_file], f"{number:03d}-{start // per_file:05d}.parquet"
            examples = [
                {"example_id": f"{category}:{one['user_id']}:{target}", "user_id": one["user_id"],
                 "category": category, "split": "test", "target": target, "history": list(range(target))}
                for one in some for target in (3, 4)
            ]  # fmt: skip
            for table, values, schema in (("sequences", some, SEQUENCES), ("examples", examples, EXAMPLES)):
                (folder / table).mkdir(parents=True, exist_ok=True)
                write_table(folder / table / name, pa.Table.from_pylist(values, schema=schema), group)
        (folder / "items").mkdir(exist_ok=True)
        write_table(folder / "items" / f"{number:03d}-00000.parquet", pa.Table.from_pylist(items, schema=ITEMS), 4)
        written += rows
    return written


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, int]]:
    """Record the row groups that are read."""
    found: list[tuple[Path, int]] = []
    original: Callable[..., Any] = histories.read_row_group

    def reading(path: Path, group: int, *rest: Any) -> Any:
        found.append((path, group))
        return original(path, group, *rest)

    monkeypatch.setattr(histories, "read_row_group", reading)
    return found


@pytest.mark.parametrize(("per_file", "group"), [(10, 3), (100, 1), (1, 1), (7, 100)])
def test_every_user_is_found_and_no_other(tmp_path: Path, per_file: int, group: int) -> None:
    rows = write(tmp_path, per_file=per_file, group=group)
    found = Histories(tmp_path)
    assert found.categories == ("Books", "Films: new")
    for one in rows:
        sequences = found.sequences([one["user_id"]])
        assert [part.category for part in sequences] == (
            ["Books", "Films: new"] if one["user_id"] == "both" else [one["category"]]
        )
        (mine,) = found.sequences([one["user_id"]], one["category"])
        assert mine.reviews == one["reviews"]
    for absent in ("", "A", "B0005", "C", "zzz", "boti", "\U0010ffff"):
        assert found.sequences([absent]) == []


def test_a_lookup_reads_one_row_group(tmp_path: Path, reads: list[tuple[Path, int]]) -> None:
    write(tmp_path, users=200)
    found = Histories(tmp_path)
    assert found.sequences(["B150"])
    assert len(reads) == 1
    found.sequences(["unknown"])
    assert len(reads) <= 2


def test_items_are_those_of_the_category(tmp_path: Path, reads: list[tuple[Path, int]]) -> None:
    write(tmp_path)
    found = Histories(tmp_path)
    assert found.items(["i007", "i008", "nothing"], "Books") == {
        ("Books", "i007"): Item("Books 7", "d"),
        ("Books", "i008"): Item("Books 8", "d"),
    }
    assert len(reads) == len(set(reads)) == 2
    assert {category for category, _ in found.items(["i007"])} == {"Books", "Films: new"}
    assert "i007" in found.near_items("i0075")
    assert found.near_items("zzzz")


def test_users_are_listed_from_any_place(tmp_path: Path, reads: list[tuple[Path, int]]) -> None:
    rows = write(tmp_path)
    found = Histories(tmp_path)
    names = sorted({row["user_id"] for row in rows})
    assert found.user_ids("", 1000) == names
    for start in ("B005", "B0055", "both", "F039", "zzz", ""):
        assert found.user_ids(start, 7) == [name for name in names if name >= start][:7]
    reads.clear()
    found.user_ids("B010", 2)
    assert len(reads) <= 3, "two categories, and one row group more"


def test_items_are_found_by_words_of_their_title(tmp_path: Path) -> None:
    write(tmp_path)
    found = Histories(tmp_path)
    assert list(found.items_named("books 2", 100)) == [("Books", f"i{one:03d}") for one in (2, *range(20, 30))]
    assert list(found.items_named("NEW 17", 5)) == [("Films: new", "i017")]
    assert len(found.items_named("o", 12)) == 12
    assert found.items_named("(", 5) == {}


def test_reviews_are_those_before_a_position_newest_last(tmp_path: Path) -> None:
    write(tmp_path)
    found = Histories(tmp_path)
    (both,) = found.sequences(["both"], "Films: new")
    reviews = found.reviews(both, 4, newest=2)
    assert [review.text for review in reviews] == ["both 2", "both 3"]
    item = int(both.reviews[3]["item_id"][1:])
    assert reviews[1] == Review(Item(f"Films: new {item}", "d"), 4.0, "t3", "both 3", 3)
    assert found.reviews(both, 0) == ()
    assert found.reviews(both, 5, newest=0) == ()
    assert both.before(3) == 3
    assert both.first_of(both.reviews[2]["item_id"]) == 2
    assert both.first_of("nothing") is None


def test_an_example_is_found_by_its_id_as_a_whole_read_finds_it(tmp_path: Path) -> None:
    write(tmp_path)
    found = Histories(tmp_path)
    examples = list(read_examples(tmp_path))
    assert len(examples) == 164
    for example in examples:
        sequence, target = found.example(example.example_id)
        assert (sequence.category, sequence.user_id) == (example.category, example.user_id)
        assert found.reviews(sequence, target) == example.history
        assert found.reviews(sequence, target + 1)[-1] == example.target
    for absent in ("Books:B001:7", "Books:unknown:3", "B001", "Toys:B001:3", ""):
        with pytest.raises(UserError, match="there is no example"):
            found.example(absent)


def test_keys_without_statistics_are_read(tmp_path: Path) -> None:
    long = "x" * 5000
    (tmp_path / "sequences").mkdir()
    (tmp_path / "items").mkdir()
    rows = [row(f"{long}{one}", "Books", [1]) for one in range(6)]
    write_table(tmp_path / "sequences" / "000-00000.parquet", pa.Table.from_pylist(rows, schema=SEQUENCES), 2)
    found = Histories(tmp_path)
    assert [one.user_id for one in found.sequences([f"{long}3"])] == [f"{long}3"]
    assert found.items(["i001"]) == {}


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / "sequences" / "000-00002.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="is damaged"):
        Histories(tmp_path).sequences(["B025"])
