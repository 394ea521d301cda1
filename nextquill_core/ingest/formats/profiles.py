"""Rows with profiles, as LaMP and LongLaMP have them, into canonical columns."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import polars as pl

from nextquill_core.ingest.canonical import CANONICAL, LINE, canonical
from nextquill_core.ingest.formats.arrays import SPACE, elements
from nextquill_core.ingest.formats.fields import RAW_CHARS
from nextquill_core.ingest.sources.base import BadRow, Batch, Part
from nextquill_core.ingest.sources.lamp_tasks import Task

BATCH_ROWS = 20_000
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


class _BadError(Exception):
    """The row or entry cannot be read; the message is the reason."""


@dataclass
class _Found:
    rows: list[dict[str, Any]] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    blank: int = 0
    raw: dict[int, bytes] = field(default_factory=dict)
    size: int = 0
    position: int = 0

    def batch(self, part: Part, last_line: int) -> Batch:
        kinds = {LINE: pl.Int64(), **CANONICAL[part]}
        raw = self.raw
        return Batch(
            rows=canonical(pl.DataFrame(self.rows, schema=kinds), part),
            bad=self.bad,
            blank=self.blank,
            last_line=last_line,
            position=self.position,
            raw=lambda line: raw[line].decode(errors="replace")[:RAW_CHARS],
        )


def read_profiles(path: Path, part: Part, task: Task, *, own: bool, dates: bool, batch_bytes: int) -> Iterator[Batch]:
    """Read a file of rows with profiles; see `sources.lamp.Lamp` for what becomes of them.

    Args:
        path: The file.
        part: What is made of each entry: a review, or the item it is about.
        task: Where the file holds what.
        own: Whether a row is a review itself.
        dates: Whether an entry's `date` is its time.
        batch_bytes: About how much text a batch holds; rows are never parted.

    Raises:
        DataError: The file as a whole cannot be read.
    """
    line, found = 0, _Found()
    for data, position, fault in elements(path):
        found.position = position
        found.size += len(data)
        line = _read_row(data, fault, found, line, part, task, own, dates)
        if found.size >= batch_bytes or len(found.rows) >= BATCH_ROWS:
            yield found.batch(part, line)
            found = _Found(position=position)
    if found.size or found.rows or found.bad or found.blank:
        yield found.batch(part, line)


def _read_row(
    data: bytes, fault: str | None, found: _Found, line: int, part: Part, task: Task, own: bool, dates: bool
) -> int:
    """Read a row into `found`; returns the last `line`."""
    try:
        row = _row(data, fault)
        user = _user(row, task)
        profile = _profile(row)
    except _BadError as error:
        found.bad.append(BadRow(line + 1, str(error), data.decode(errors="replace")[:RAW_CHARS]))
        return line + 1
    except _Blank:
        found.blank += 1
        return line + 1
    entries: list[tuple[Any, bool]] = [(entry, False) for entry in profile] + ([(row, True)] if own else [])
    if not entries:
        found.blank += 1
        return line + 1
    for place, (entry, itself) in enumerate(entries, 1):
        line += 1
        shown = orjson.dumps({key: entry.get(key) for key in ("input", "output")} if itself else entry)
        try:
            values = _review(_own(entry, task) if itself else entry, task, user, place, dates)
        except _BadError as error:
            found.bad.append(BadRow(line, str(error), shown.decode(errors="replace")[:RAW_CHARS]))
            continue
        found.raw[line] = shown
        found.rows.append({LINE: line, **{name: values.get(name) for name in CANONICAL[part]}})
        if part == "items":
            found.rows[-1]["title"] = None  # the review's own title is not its item's
    return line


class _Blank(Exception):  # noqa: N818
    """Nothing stands here."""


def _row(data: bytes, fault: str | None) -> dict[str, Any]:
    if fault:
        raise _BadError(fault)
    if not data.strip(SPACE):
        raise _Blank
    try:
        data.decode()
    except UnicodeDecodeError:
        raise _BadError("invalid-utf8") from None
    try:
        row = orjson.loads(data)
    except orjson.JSONDecodeError:
        raise _BadError("not-json") from None
    if not isinstance(row, dict):
        raise _BadError("not-an-object")
    return row


def _user(row: dict[str, Any], task: Task) -> str:
    key = next((key for key in task.users if row.get(key) is not None), task.users[-1])
    return _identifier(row, key)


def _identifier(row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    if value is None or value == "":
        raise _BadError(f"missing-{key}")
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise _BadError(f"wrong-type-{key}")
    return str(value)


def _profile(row: dict[str, Any]) -> list[Any]:
    profile = row.get("profile")
    if profile is None:
        raise _BadError("missing-profile")
    if not isinstance(profile, list):
        raise _BadError("wrong-type-profile")
    return profile


def _own(row: dict[str, Any], task: Task) -> dict[str, Any]:
    """A row itself as an entry of a profile; nothing is guessed where its input is another sentence."""
    text = _string(row, "output")
    told = _string(row, "input")
    match = _INPUT.fullmatch(told.strip()) if told else None
    if text is None or told is None:
        raise _BadError("missing-output" if text is None else "missing-input")
    if not match or told.count(_BETWEEN) != 1:
        raise _BadError("unknown-input")
    return {task.text: text, **match.groupdict()}


def _review(entry: Any, task: Task, user: str, place: int, dates: bool) -> dict[str, Any]:
    """An entry's values, of the review and of its item."""
    if not isinstance(entry, dict):
        raise _BadError("not-an-object")
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
        "timestamp_ms": _date(entry) if dates else place,
        "description": None if description is None else [description],
    }


def _string(entry: dict[str, Any], key: str) -> str | None:
    if key not in entry:
        raise _BadError(f"missing-{key}")
    value = entry[key]
    if value is not None and not isinstance(value, str):
        raise _BadError(f"wrong-type-{key}")
    return value


def _rating(entry: dict[str, Any], key: str) -> float | None:
    if key not in entry:
        raise _BadError(f"missing-{key}")
    value = entry[key]
    if value is None:
        return None
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _BadError(f"wrong-type-{key}")
    return float(value)


def _item_id(entry: dict[str, Any], description: str | None, text: str | None) -> str:
    about = ("description", description) if description else None
    if about is None and entry.get("id") is not None:
        about = ("id", _identifier(entry, "id"))
    name = "\0".join(about or ("text", text or ""))
    return hashlib.sha256(name.encode()).hexdigest()[:ID_DIGITS]


def _date(entry: dict[str, Any]) -> int:
    """UTC milliseconds of a `date`: a year, a year and month, a day, or ISO 8601 to the second."""
    value = entry.get("date")
    if value is None:
        raise _BadError("missing-date")
    text = str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
    try:
        if _DATE.fullmatch(text):
            year, month, day = ([int(part) for part in text.split("-")] + [1, 1])[:3]
            moment = datetime(year, month, day, tzinfo=UTC)
        else:
            moment = datetime.fromisoformat(text)
    except ValueError:
        raise _BadError("wrong-type-date") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return int(moment.timestamp() * 1000)
