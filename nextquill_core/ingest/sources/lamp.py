"""The files of LaMP and LongLaMP: one object a user (or question) with what the user wrote before, the profile."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import field_validator, model_validator

from nextquill_core.config import Section
from nextquill_core.ingest.batches import BATCH_ROWS, RAW_CHARS, BadRow, Batch, Part
from nextquill_core.ingest.sources.base import Source
from nextquill_core.ingest.sources.options import checked
from nextquill_core.plugins import suggestion


@dataclass(frozen=True)
class Task:
    """Under which keys the files of a task hold what.

    Attributes:
        users: The keys of a row that name its user; the first that is there counts.
        text: The key of a profile entry with the text that the user wrote.
        title: The key with its title or summary.
        rating: The key with the user's rating.
        description: The key with what the text is about: the item.
        own: Whether a row's own `input` and `output` are a review as well, the user's newest.
    """

    users: tuple[str, ...]
    text: str
    title: str | None = None
    rating: str | None = None
    description: str | None = None
    own: bool = False


_QUESTION = ("user_id", "id")  # the time-based files of LaMP name the user; in the others a question is a user
TASKS: Mapping[str, Task] = {
    "lamp-1": Task(_QUESTION, text="abstract", title="title"),
    "lamp-2": Task(_QUESTION, text="tag", description="description"),
    "lamp-3": Task(_QUESTION, text="text", rating="score"),
    "lamp-4": Task(_QUESTION, text="text", title="title"),
    "lamp-5": Task(_QUESTION, text="abstract", title="title"),
    "lamp-6": Task(_QUESTION, text="text", title="title"),
    "lamp-7": Task(_QUESTION, text="text"),
    "longlamp-abstract-generation": Task(("name",), text="abstract", title="title"),
    "longlamp-topic-writing": Task(("author",), text="content", title="summary"),
    "longlamp-product-review": Task(
        ("reviewerId",), text="reviewText", title="summary", rating="overall", description="description", own=True
    ),
}
ID_DIGITS = 32
_BETWEEN = '". The summary of the review text is "'
_INPUT = re.compile(
    r"Generate the review text written by a reviewer who has (?:a )?given an overall rating of "
    r'"?(?P<overall>[0-9.]+)"? for a product with description "(?P<description>.*)'
    + re.escape(_BETWEEN)
    + r'(?P<summary>.*)"\s*\.?\s*',
    re.DOTALL,
)
_NUMBER = re.compile(r"[0-9]+(\.[0-9]*)?")
_DATE = re.compile(r"[0-9]{4}(-[0-9]{1,2}(-[0-9]{1,2})?)?")


class LampOptions(Section):
    """What `lamp` takes."""

    task: str
    """task of the files: lamp-1 … lamp-7, longlamp-…"""
    dates: bool = False
    """whether `date` is the time of a profile entry; otherwise its place in the profile orders it"""
    own: bool = True
    """whether the output of a row of longlamp-product-review is the user's newest review"""

    @field_validator("task")
    @classmethod
    def _task_is_known(cls, value: str) -> str:
        if value not in TASKS:
            raise ValueError(f"there is no such task, {suggestion(value, TASKS)}")
        return value

    @model_validator(mode="after")
    def _own_has_no_date(self) -> LampOptions:
        if self.dates and self.own and TASKS[self.task].own:
            raise ValueError("a row's own output has no date: with `dates: true`, set `own: false`")
        return self


class Lamp(Source):
    """LaMP and LongLaMP: a JSON array of rows, or one row a line, plain or gzip; both parts may name the same file.

    Every entry of a row's profile becomes a review, and what it is about an item. An item is identified by a hash of
    its description; where a task has none, by a hash of the entry's id, and failing that of its text. The order within
    a profile stands for time: 1, 2, 3 … (the files hold no other, unless they have `date`).

    A row of longlamp-product-review is a review itself, the user's newest: its `output` is the text, and `input` holds
    the rating, the description and the summary in a fixed sentence. Of the other tasks a row's own question is left
    out: the files with the questions do not hold the answers, or not the rest of what makes a review.

    `line` numbers the reviews of a file, a row's profile first and then its own. A row that cannot be read takes one
    number, and so does an empty profile, which counts as blank.

    Attributes:
        absent: What the task lacks; items never have a title.
    """

    name = "lamp"
    summary = "LaMP and LongLaMP (a JSON array, or JSON lines; plain or .gz), the task named in ingest.options"

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        self.options = checked(LampOptions, options, self.name)
        self.task = task = TASKS[self.options.task]
        self.own = task.own and self.options.own
        self.dated = self.options.dates
        keys = {"reviews.title": task.title, "reviews.rating": task.rating, "items.description": task.description}
        missing = {name for name, key in keys.items() if not key}
        self.absent = frozenset({"items.title", "items.categories", "items.rating_number"} | missing)

    def read(self, part: Part, path: Path, resume: Any = None) -> Iterator[Batch]:
        """Read a file row by row, always from its beginning; rows are never split between batches.

        Args:
            part: What is made of each entry: a review, or the item it is about.
            path: The file.
            resume: Unused.

        Raises:
            DataError: Also where the array is not closed, or the file holds no array and no objects.
        """
        from nextquill_core.ingest.formats.json_files import elements

        line, found = 0, _Found()
        for data, position, fault in elements(path):
            found.position = position
            found.size += len(data)
            line = self._read_row(data, fault, found, line, part)
            if found.size >= self.batch_bytes or len(found.rows) >= BATCH_ROWS:
                yield found.batch(part, line)
                found = _Found(position=position)
        if found.size or found.rows or found.bad or found.blank:
            yield found.batch(part, line)

    def _read_row(self, data: bytes, fault: str | None, found: _Found, line: int, part: Part) -> int:
        """Read a row into `found` and return the last `line`."""
        import orjson  # late: listing the sources stays fast

        try:
            row = _row(data, fault)
            user = _user(row, self.task)
            profile = _profile(row)
        except _BadRowError as error:
            found.bad.append(BadRow(line + 1, str(error), _text(data)))
            return line + 1
        except _BlankError:
            found.blank += 1
            return line + 1
        entries: list[tuple[Any, bool]] = [(entry, False) for entry in profile] + ([(row, True)] if self.own else [])
        if not entries:
            found.blank += 1
            return line + 1
        for place, (entry, is_own) in enumerate(entries, 1):
            line += 1
            shown = orjson.dumps({key: entry.get(key) for key in ("input", "output")} if is_own else entry)
            try:
                values = self._review(_own_review(entry, self.task) if is_own else entry, user, place)
            except _BadRowError as error:
                found.bad.append(BadRow(line, str(error), _text(shown)))
                continue
            found.raw[line] = shown
            if part == "items":
                values["title"] = None  # the review's title is not its item's
            found.rows.append({"line": line, **values})
        return line

    def _review(self, entry: Any, user: str, place: int) -> dict[str, Any]:
        """Return an entry's values, of the review and of its item."""
        if not isinstance(entry, dict):
            raise _BadRowError("not-an-object")
        task = self.task
        text = _string(entry, task.text)
        title = _string(entry, task.title) if task.title else None
        rating = _rating(entry, task.rating) if task.rating else None
        description = _string(entry, task.description) if task.description else None
        return {
            "user_id": user,
            "item_id": _item_id(entry, description, text),
            "rating": rating,
            "title": title,
            "text": text,
            "timestamp_ms": _date(entry) if self.dated else place,
            "description": None if description is None else [description],
        }


class _BadRowError(Exception):
    """The row or entry cannot be read; the message is the reason."""


class _BlankError(Exception):
    """The line holds nothing."""


@dataclass
class _Found:
    """What was read since the last batch."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    blank: int = 0
    raw: dict[int, bytes] = field(default_factory=dict)
    size: int = 0
    position: int = 0

    def batch(self, part: Part, last_line: int) -> Batch:
        import polars as pl

        from nextquill_core.ingest.canonical import CANONICAL, LINE, canonical

        kinds = {LINE: pl.Int64(), **CANONICAL[part]}
        rows = [{name: row.get(name) for name in kinds} for row in self.rows]
        return Batch(
            rows=canonical(pl.DataFrame(rows, schema=kinds), part),
            bad=self.bad,
            blank=self.blank,
            last_line=last_line,
            position=self.position,
            raw=lambda line: _text(self.raw[line]),
        )


def _text(data: bytes) -> str:
    return data.decode(errors="replace")[:RAW_CHARS]


def _row(data: bytes, fault: str | None) -> dict[str, Any]:
    """Parse a row.

    Raises:
        _BadRowError: It cannot be read.
        _BlankError: The line is blank.
    """
    import orjson

    if fault:
        raise _BadRowError(fault)
    if not data.strip(b" \t\r\n"):
        raise _BlankError
    try:
        data.decode()
    except UnicodeDecodeError:
        raise _BadRowError("invalid-utf8") from None
    try:
        row = orjson.loads(data)
    except orjson.JSONDecodeError:
        raise _BadRowError("not-json") from None
    if not isinstance(row, dict):
        raise _BadRowError("not-an-object")
    return row


def _user(row: dict[str, Any], task: Task) -> str:
    key = next((key for key in task.users if row.get(key) is not None), task.users[-1])
    return _identifier(row, key)


def _identifier(row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    if value is None or value == "":
        raise _BadRowError(f"missing-{key}")
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise _BadRowError(f"wrong-type-{key}")
    return str(value)


def _profile(row: dict[str, Any]) -> list[Any]:
    profile = row.get("profile")
    if profile is None:
        raise _BadRowError("missing-profile")
    if not isinstance(profile, list):
        raise _BadRowError("wrong-type-profile")
    return profile


def _own_review(row: dict[str, Any], task: Task) -> dict[str, Any]:
    """Return a row's own review as an entry of a profile; nothing is guessed where its input is another sentence."""
    text, question = _string(row, "output"), _string(row, "input")
    if text is None or question is None:
        raise _BadRowError("missing-output" if text is None else "missing-input")
    match = _INPUT.fullmatch(question.strip())
    if not match or question.count(_BETWEEN) != 1:
        raise _BadRowError("unknown-input")
    return {task.text: text, **match.groupdict()}


def _string(entry: dict[str, Any], key: str) -> str | None:
    if key not in entry:
        raise _BadRowError(f"missing-{key}")
    value = entry[key]
    if value is not None and not isinstance(value, str):
        raise _BadRowError(f"wrong-type-{key}")
    return value


def _rating(entry: dict[str, Any], key: str) -> float | None:
    if key not in entry:
        raise _BadRowError(f"missing-{key}")
    value = entry[key]
    if value is None:
        return None
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _BadRowError(f"wrong-type-{key}")
    return float(value)


def _item_id(entry: dict[str, Any], description: str | None, text: str | None) -> str:
    about = ("description", description) if description else None
    if about is None and entry.get("id") is not None:
        about = ("id", _identifier(entry, "id"))
    name = "\0".join(about or ("text", text or ""))
    return hashlib.sha256(name.encode()).hexdigest()[:ID_DIGITS]


def _date(entry: dict[str, Any]) -> int:
    """Return a `date` in UTC milliseconds: a year, a year and month, a day, or ISO 8601 to the second."""
    value = entry.get("date")
    if value is None:
        raise _BadRowError("missing-date")
    text = str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
    try:
        if _DATE.fullmatch(text):
            year, month, day = ([int(part) for part in text.split("-")] + [1, 1])[:3]
            moment = datetime(year, month, day, tzinfo=UTC)
        else:
            moment = datetime.fromisoformat(text)
    except ValueError:
        raise _BadRowError("wrong-type-date") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return int(moment.timestamp() * 1000)
