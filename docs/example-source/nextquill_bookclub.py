"""Two sources for the data of a book club: JSON lines, and text files of review cards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from nextquill_core.config import Section
from nextquill_core.errors import DataError
from nextquill_core.ingest.sources import BadRow, Batch, Column, JsonLines, Part, Source
from nextquill_core.ingest.sources.options import checked


class BookClubJson(JsonLines):
    """A review or a book in each line, as a JSON object; `columns` says which key holds what."""

    name = "bookclub-json"
    summary = "Book club (JSON lines, plain or .gz): local files"
    absent = frozenset({"items.rating_number"})
    columns = {  # noqa: RUF012
        "reviews": {
            "user_id": Column("string", ("member",), identifies=True),
            "item_id": Column("string", ("book_id",), identifies=True),
            "rating": Column("number", ("stars",)),
            "title": Column("string", ("headline",), required=False),
            "text": Column("string", ("review_text",)),
            "timestamp_ms": Column("seconds", ("posted",)),
        },
        "items": {
            "item_id": Column("string", ("book_id",), identifies=True),
            "title": Column("string", ("title",), required=False),
            "description": Column("text", ("blurb",), required=False),
            "categories": Column("strings", ("shelves",), required=False),
        },
    }


class CardOptions(Section):
    """The options of `bookclub-cards` (`ingest.options`)."""

    encoding: str = "utf-8"


TEXTS: dict[Part, tuple[str, ...]] = {
    "reviews": ("user_id", "item_id", "title", "text"),
    "items": ("item_id", "title", "description", "categories"),
}
NUMBERS: dict[Part, dict[str, Callable[[str], float]]] = {
    "reviews": {"rating": float, "timestamp_ms": int},
    "items": {},
}
LISTS = ("description", "categories")


class BookClubCards(Source):
    """Text files of cards: lines of `key: value`, then an empty line. The column `line` numbers the cards."""

    name = "bookclub-cards"
    summary = "Book club (text files of review cards): local files"
    absent = frozenset({"items.rating_number"})

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        self.options = checked(CardOptions, options, self.name)

    def read(self, part: Part, path: Path, resume: Any = None) -> Iterator[Batch]:
        """Yield the cards of a file in batches of about `batch_bytes` bytes.

        Args:
            part: `reviews` or `items`.
            path: The file.
            resume: `resume` of an earlier batch: the offset of the next card and the number of cards before it.
        """
        start, number = resume or (0, 0)
        rows: list[dict[str, Any]] = []
        bad: list[BadRow] = []
        with path.open("rb") as file:
            file.seek(start)
            for raw in self._cards(file, path):
                number += 1
                row, reason = self._row(part, raw)
                if reason:
                    bad.append(BadRow(number, reason, raw[:2000]))
                else:
                    rows.append({"line": number, **row})
                if file.tell() - start >= self.batch_bytes:
                    yield self._batch(part, rows, bad, number, file.tell())
                    start, rows, bad = file.tell(), [], []
            if rows or bad:
                yield self._batch(part, rows, bad, number, file.tell())

    def _cards(self, file: Any, path: Path) -> Iterator[str]:
        card = b""
        while line := file.readline():
            if line.strip():
                card += line
            if card and (not line.strip() or not file.peek(1)):
                try:
                    yield card.decode(self.options.encoding)
                except (UnicodeDecodeError, LookupError) as error:
                    raise DataError(f"cannot be decoded ({error})", str(path), "set ingest.options.encoding") from None
                card = b""

    def _row(self, part: Part, raw: str) -> tuple[dict[str, Any], str | None]:
        """Return the canonical values of a card, or the reason why it is not a row."""
        if not all(":" in line for line in raw.splitlines()):
            return {}, "not-a-card"
        fields = {key: value.strip() for key, _, value in (line.partition(":") for line in raw.splitlines())}
        row: dict[str, Any] = {}
        for key in TEXTS[part]:
            value = fields.get(key)
            if key.endswith("_id") and not value:
                return {}, f"missing-{key}"
            row[key] = value.split(" | ") if value and key in LISTS else value
        for key, kind in NUMBERS[part].items():
            try:
                row[key] = kind(fields[key])
                if not abs(row[key]) < 2**63:  # NaN too
                    raise ValueError
            except (KeyError, ValueError):
                return {}, f"wrong-type-{key}" if key in fields else f"missing-{key}"
        return row, None

    def _batch(self, part: Part, rows: list[dict[str, Any]], bad: list[BadRow], number: int, position: int) -> Batch:
        import polars as pl  # late: listing the sources stays fast

        from nextquill_core.ingest.canonical import CANONICAL, canonical

        names = ["line", *TEXTS[part], *NUMBERS[part]]
        frame = pl.DataFrame(rows, schema={"line": pl.Int64, **{n: CANONICAL[part][n] for n in names[1:]}})
        return Batch(canonical(frame, part), bad, last_line=number, position=position, resume=[position, number])
