"""Lookup of single users and items in the tables of an ingest artifact, without reading the tables.

Within a category, sequences are sorted by user id and items by item id. A lookup finds the file by a binary search over
the files' footers, and the row group by its statistics; only this row group is read. Memory grows with the number of
files by one key each, and not with the number of users.
"""

from __future__ import annotations

import difflib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nextquill_core.errors import DataError
from nextquill_core.records import Item, Review
from storage.tables import read_footer, read_row_group, read_table

FOOTERS = 64
"""Footers that are kept in memory for each category of a table; a footer has some hundred kilobytes."""
NEAR = 3


@dataclass(frozen=True)
class UserSequence:
    """The reviews of a user in one category, as they are stored.

    Attributes:
        category: The category.
        user_id: The id in the store, which is the pseudonym if ids are replaced.
        reviews: Rows of the column `reviews`, oldest first.
    """

    category: str
    user_id: str
    reviews: Sequence[Mapping[str, Any]]

    def first_of(self, item_id: str) -> int | None:
        """Return the position of the user's first review of an item, or None."""
        return next((place for place, row in enumerate(self.reviews) if row["item_id"] == item_id), None)

    def before(self, time_ms: int) -> int:
        """Return how many reviews are older than a time in UTC milliseconds."""
        return sum(row["timestamp_ms"] < time_ms for row in self.reviews)


class Histories:
    """The users and items of one ingest artifact.

    Args:
        folder: Folder of the artifact.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._users = _by_category(folder / "sequences", "user_id")
        self._items = _by_category(folder / "items", "item_id")

    @property
    def categories(self) -> tuple[str, ...]:
        """The categories, in the order of the configuration."""
        return tuple(self._users)

    def sequences(self, user_ids: Iterable[str], category: str | None = None) -> list[UserSequence]:
        """Return what is stored of a user, one entry for each category in which the user has reviews.

        Args:
            user_ids: The ids that the user may have in the store.
            category: Look in this category alone; None for all.
        """
        ids = list(dict.fromkeys(user_ids))
        return [
            UserSequence(name, row["user_id"], row["reviews"])
            for name, files in self._users.items()
            if category in (None, name)
            for row in files.rows(ids)
        ]

    def items(self, item_ids: Iterable[str], category: str | None = None) -> dict[tuple[str, str], Item]:
        """Return the items with these ids, by category and id; unknown ids are left out.

        Args:
            item_ids: The ids.
            category: Look in this category alone; None for all.
        """
        ids = list(dict.fromkeys(item_ids))
        return {
            (name, row["item_id"]): Item(row["title"] or "", row["description"] or "")
            for name, files in self._items.items()
            if category in (None, name)
            for row in files.rows(ids)
        }

    def near_items(self, item_id: str) -> list[str]:
        """Return up to three ids of items that are spelled like an unknown one, from where it would stand."""
        found = {name for files in self._items.values() for name in files.neighbours(item_id)}
        return difflib.get_close_matches(item_id, sorted(found), NEAR, cutoff=0.0)

    def user_ids(self, start: str, count: int) -> list[str]:
        """Return ids of users in their order.

        Args:
            start: The first id that may be among them; "" for the first of all.
            count: Maximum number of ids.
        """
        found = {name for files in self._users.values() for name in islice(files.keys_from(start), count)}
        return sorted(found)[:count]

    def items_named(self, text: str, count: int) -> dict[tuple[str, str], Item]:
        """Return items whose title contains a text, whatever the case, by category and id; it reads the titles.

        Args:
            text: The text.
            count: Maximum number of items.
        """
        found: dict[tuple[str, str], Item] = {}
        for name, files in self._items.items():
            for row in files.rows_containing("title", text, count - len(found)):
                found[name, row["item_id"]] = Item(row["title"] or "", row["description"] or "")
            if len(found) >= count:
                break
        return found

    def reviews(self, sequence: UserSequence, end: int, newest: int | None = None) -> tuple[Review, ...]:
        """Return reviews of a user with their items, oldest first.

        Args:
            sequence: The user.
            end: Position of the first review that is left out.
            newest: Return only this many, the newest; None for all.
        """
        rows = sequence.reviews[: max(0, end)]
        rows = rows if newest is None else rows[max(0, len(rows) - newest) :]
        items = self.items((row["item_id"] for row in rows), sequence.category)
        return tuple(
            Review(
                items[sequence.category, row["item_id"]],
                row["rating"],
                row["title"] or "",
                row["text"],
                row["timestamp_ms"],
            )
            for row in rows
        )

    def example(self, example_id: str) -> tuple[UserSequence, int]:
        """Return the user of an example and the position of its target in the user's reviews.

        Raises:
            DataError: There is no such example.
        """
        place = example_id.rpartition(":")[0]
        for category, files in self._users.items():
            user = place.removeprefix(f"{category}:")
            if user == place:
                continue
            table = read_table(self.folder / "examples" / files.file_of(user).name, ["example_id", "target"])
            targets = dict(zip(table["example_id"].to_pylist(), table["target"].to_pylist(), strict=True))
            if example_id in targets:
                return self.sequences([user], category)[0], targets[example_id]
        raise self.no_example(example_id)

    def no_example(self, example_id: str) -> DataError:
        """Return the error for an example that is not in the store."""
        remedy = "ids stand in examples/*.parquet of the artifact"
        return DataError(f"there is no example {example_id!r}", str(self.folder), remedy)


def _by_category(folder: Path, key: str) -> dict[str, _SortedFiles]:
    """Return the files of a table by category; the part of a file's name before the hyphen numbers the category."""
    paths = sorted(folder.glob("*.parquet"))
    found = {}
    for _, group in groupby(paths, lambda path: path.name.partition("-")[0]):
        files = list(group)
        if names := read_table(files[0], ["category"])["category"].slice(0, 1).to_pylist():
            found[names[0]] = _SortedFiles(files, key)
    return found


@dataclass(frozen=True)
class _Footer:
    """The footer of a file, and the first and the last key of each of its row groups."""

    metadata: pq.FileMetaData
    firsts: Sequence[str]
    lasts: Sequence[str]


class _SortedFiles:
    """Parquet files that are sorted by a text column, one after the other.

    Args:
        paths: The files.
        key: Name of the column; each key stands in one row.
    """

    def __init__(self, paths: Sequence[Path], key: str) -> None:
        self._paths = paths
        self._key = key
        self._footer = lru_cache(FOOTERS)(self._read_footer)
        self._first = cache(self._read_first)

    def rows(self, keys: Iterable[str]) -> Iterator[dict[str, Any]]:
        """Yield the rows with these keys; a row group is read once, and unknown keys are passed over."""
        places: dict[tuple[int, int], set[str]] = {}
        for key in keys:
            number, group = self._place(key)
            if group >= 0 and key <= self._footer(number).lasts[group]:
                places.setdefault((number, group), set()).add(key)
        for (number, group), wanted in sorted(places.items()):
            table = self._read(number, group)
            yield from table.filter(pc.is_in(table[self._key], pa.array(sorted(wanted), pa.string()))).to_pylist()

    def keys_from(self, start: str) -> Iterator[str]:
        """Yield the keys from a key on, in order."""
        number, first = self._place(start)
        while number < len(self._paths):
            for group in range(max(0, first), self._footer(number).metadata.num_row_groups):
                keys = self._read(number, group, [self._key])[self._key].to_pylist()
                yield from (key for key in keys if key >= start)
            number, first = number + 1, 0

    def rows_containing(self, column: str, text: str, count: int) -> Iterator[dict[str, Any]]:
        """Yield the first rows with a text in a column, whatever the case.

        Args:
            column: Name of a column of texts.
            text: The text.
            count: Maximum number of rows.
        """
        left = count
        for number in range(len(self._paths)):
            for group in range(self._footer(number).metadata.num_row_groups):
                if left <= 0:
                    return
                values = self._read(number, group, [column])[column]
                if not pc.any(pc.match_substring(values, text, ignore_case=True)).as_py():
                    continue
                table = self._read(number, group)
                rows = table.filter(pc.match_substring(table[column], text, ignore_case=True)).slice(0, left)
                left -= rows.num_rows
                yield from rows.to_pylist()

    def neighbours(self, key: str) -> list[str]:
        """Return the keys of the row group in which a key would stand."""
        number, group = self._place(key)
        keys: list[str] = self._read(number, max(0, group), [self._key])[self._key].to_pylist()
        return keys

    def file_of(self, key: str) -> Path:
        """Return the file in which a key would stand."""
        return self._paths[self._place(key)[0]]

    def _place(self, key: str) -> tuple[int, int]:
        """Return the last file and the last row group in it that begin at or before a key; −1 for no row group."""
        number = bisect_right(range(1, len(self._paths)), key, key=self._first)
        return number, bisect_right(self._footer(number).firsts, key) - 1

    def _read(self, number: int, group: int, columns: Sequence[str] | None = None) -> Any:
        return read_row_group(self._paths[number], group, self._footer(number).metadata, columns)

    def _read_first(self, number: int) -> str:
        """Return the first key of a file; the search asks many files for it, and for nothing else."""
        return self._bounds(number, 0, read_footer(self._paths[number]))[0]

    def _read_footer(self, number: int) -> _Footer:
        metadata = read_footer(self._paths[number])
        bounds = [self._bounds(number, group, metadata) for group in range(metadata.num_row_groups)]
        return _Footer(metadata, [first for first, _ in bounds], [last for _, last in bounds])

    def _bounds(self, number: int, group: int, metadata: pq.FileMetaData) -> tuple[str, str]:
        """Return the first and the last key of a row group; very long keys have no statistics and are read."""
        statistics = metadata.row_group(group).column(metadata.schema.names.index(self._key)).statistics
        if statistics is not None and statistics.has_min_max:
            return statistics.min, statistics.max
        keys = read_row_group(self._paths[number], group, metadata, [self._key])[self._key].to_pylist()
        return keys[0], keys[-1]
