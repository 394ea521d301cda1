"""The files of LaMP and LongLaMP: one object a user (or question) with what the user wrote before, the profile."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import field_validator, model_validator

from nextquill_core.config import Section
from nextquill_core.errors import DataError
from nextquill_core.ingest.batches import PARTS, Part
from nextquill_core.ingest.sources.options import checked
from nextquill_core.ingest.sources.profiles import (
    BadRowError,
    ProfileRow,
    ProfileSource,
    entries,
    identifier,
    number,
    text,
)
from nextquill_core.plugins import suggestion
from nextquill_core.records import TextKind

ID_DIGITS = 32
_BETWEEN = '". The summary of the review text is "'
_REVIEW = re.compile(
    r"Generate the review text written by a reviewer who has (?:a )?given an overall rating of "
    r'"?(?P<overall>[0-9.]+)"? for a product with description "(?P<description>.*)'
    + re.escape(_BETWEEN)
    + r'(?P<summary>.*)"\s*\.?\s*',
    re.DOTALL,
)
_POST = re.compile(r"Generate the content for a reddit post:?\s+(?P<quote>\"?)(?P<summary>.*)(?P=quote)", re.I | re.S)
_ITEMS = '" using the following items:'
_ABSTRACT = re.compile(
    r'Generate an abstract for the title "(?P<title>.*?)(?:' + re.escape(_ITEMS) + r'\s*(?P<description>.*)|"\.?)',
    re.DOTALL,
)
_DATE = re.compile(r"[0-9]{4}(-[0-9]{1,2}(-[0-9]{1,2})?)?")


@dataclass(frozen=True)
class Task:
    """Under which keys the files of a task hold what.

    Attributes:
        users: The keys of a row that name its user; the first that is there counts.
        text: The key of a profile entry with the text that the user wrote.
        writes: Kind of this text.
        title: The key with its title or summary.
        rating: The key with the user's rating.
        description: The key with what the text is about: the item.
        own: Form of a row's `input`, from which the keys of a profile entry are read for the row's own `output`; None
            if the rows of the task have no output.
        between: What stands between two quoted parts of the input; where it occurs twice, nothing separates the parts.
        whole: Key that gets the whole input where it has another form; None if such a row cannot be read.
    """

    users: tuple[str, ...]
    text: str
    writes: TextKind = "text"
    title: str | None = None
    rating: str | None = None
    description: str | None = None
    own: re.Pattern[str] | None = None
    between: str = ""
    whole: str | None = None


_QUESTION = ("user_id", "id")  # the time-based files of LaMP name the user; in the others a question is a user
_LAMP: Mapping[str, Task] = {
    "lamp-1": Task(_QUESTION, text="abstract", writes="abstract", title="title"),
    "lamp-2": Task(_QUESTION, text="tag", description="description"),
    "lamp-3": Task(_QUESTION, text="text", writes="review", rating="score"),
    "lamp-4": Task(_QUESTION, text="text", writes="article", title="title"),
    "lamp-5": Task(_QUESTION, text="abstract", writes="abstract", title="title"),
    "lamp-6": Task(_QUESTION, text="text", writes="email", title="title"),
    "lamp-7": Task(_QUESTION, text="text"),
}
_LONG: Mapping[str, Task] = {
    "abstract-generation": Task(
        ("name",), text="abstract", writes="abstract", title="title", own=_ABSTRACT, between=_ITEMS, whole="title"
    ),
    "topic-writing": Task(("author",), text="content", writes="post", title="summary", own=_POST, whole="summary"),
    "product-review": Task(
        ("reviewerId",),
        text="reviewText",
        writes="review",
        title="summary",
        rating="overall",
        description="description",
        own=_REVIEW,
        between=_BETWEEN,
    ),
}
TASKS: Mapping[str, Task] = {
    **_LAMP,
    **{f"longlamp-{name}": task for name, task in _LONG.items()},
    **{f"{name.replace('-', '_')}_{split}": task for name, task in _LONG.items() for split in ("user", "temporal")},
}
"""The tasks by name; those of LongLaMP also by the names of its six configurations on the hub."""


class LampOptions(Section):
    """What `lamp` takes."""

    task: str
    """task of the files: lamp-1 … lamp-7, longlamp-…, or the name of a configuration of LongLaMP"""
    dates: bool = False
    """whether `date` is the time of a profile entry; otherwise its place in the profile orders it"""
    own: bool = True
    """whether the output of a row of LongLaMP is the user's newest text"""

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


class Lamp(ProfileSource):
    """LaMP and LongLaMP: Parquet, a JSON array of rows, or one row a line; both parts may name the same file.

    Every entry of a row's profile becomes a review, and what it is about an item. An item is identified by a hash of
    its description; where a task has none, by a hash of the entry's id, and failing that of its text. The order within
    a profile stands for time: 1, 2, 3 … (the files hold no other, unless they have `date`).

    A row of LongLaMP is a text itself, the user's newest: its `output`, with what `input` says of it in a fixed
    sentence. Where the sentence of a post or an abstract is another one, the whole input is its topic or title. The
    rows of LaMP's tasks are left out: the files with the questions do not hold the answers.

    Attributes:
        absent: What the profiles of the task lack; items never have a title.
    """

    name = "lamp"
    revision = 2
    summary = "LaMP and LongLaMP (Parquet, a JSON array or JSON lines): local files, or a configuration of the hub"
    repositories = dict.fromkeys(PARTS, "LongLaMP/LongLaMP")
    items_in_reviews = True

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        self.options = checked(LampOptions, options, self.name)
        self.task = task = TASKS[self.options.task]
        self.dated = self.options.dates
        self.writes = task.writes
        keys = {"reviews.title": task.title, "reviews.rating": task.rating, "items.description": task.description}
        missing = {name for name, key in keys.items() if not key}
        self.absent = frozenset({"items.title", "items.categories", "items.rating_number"} | missing)

    def fetched(self, category: str, part: Part, fetch: bool) -> tuple[Path, ...]:
        """Return the files of a configuration of LongLaMP on the hub; LaMP is not there.

        Args:
            category: Name of the configuration, such as `topic_writing_user`.
            part: Reviews or items, which are in the same files.
            fetch: As in `Source.fetched`.
        """
        if self.task not in _LONG.values():
            what = f"no path to the {part}"
            raise DataError(what, category, f"set ingest.inputs[].{part}: the tasks of LaMP are not fetched")
        return super().fetched(category, part, fetch)

    def take_apart(self, row: dict[str, Any]) -> ProfileRow:
        """Return the user, the profile, and what the own text is made of."""
        task = self.task
        key = next((key for key in task.users if row.get(key) is not None), task.users[-1])
        user, profile = identifier(row, key), entries(row, "profile")
        has_own = task.own and self.options.own and not {"input", "output"}.isdisjoint(row)
        own = {name: row.get(name) for name in ("input", "output")} if has_own else None
        return ProfileRow(user, profile, own)

    def review(self, entry: Any, user: str, place: int, *, own: bool) -> dict[str, Any]:
        """Return an entry's values, of the text and of its item.

        Args:
            entry: The entry, or input and output of the row.
            user: The user.
            place: Its place in the row, from 1.
            own: Whether it is the row's own text.
        """
        if not isinstance(entry, dict):
            raise BadRowError("not-an-object")
        task = self.task
        if own:
            entry = _own_text(entry, task)
        written = text(entry, task.text)
        described = task.description or ("description" if own and "description" in entry else None)
        description = text(entry, described) if described else None
        return {
            "user_id": user,
            "item_id": _item_id(entry, description, written, task),
            "rating": number(entry, task.rating) if task.rating else None,
            "title": text(entry, task.title) if task.title else None,
            "text": written,
            "timestamp_ms": _date(entry) if self.dated else place,
            "description": None if description is None else [description],
        }


def _own_text(row: dict[str, Any], task: Task) -> dict[str, Any]:
    """Return a row's own text as an entry of a profile.

    Raises:
        BadRowError: The row lacks input or output, or its input is another sentence and cannot be read as a whole.
    """
    written, question = text(row, "output"), text(row, "input")
    if written is None or question is None:
        raise BadRowError("missing-output" if written is None else "missing-input")
    match = task.own.fullmatch(question.strip()) if task.own else None
    if match and (not task.between or question.count(task.between) <= 1):
        known = {name: value for name, value in match.groupdict().items() if name != "quote" and value is not None}
        return {task.text: written, **known}
    if task.whole is None:
        raise BadRowError("unknown-input")
    return {task.text: written, task.whole: question.strip()}


def _item_id(entry: dict[str, Any], description: str | None, written: str | None, task: Task) -> str:
    about = ("description", description) if description else None
    # The rows of LongLaMP have no id for their own text, which may be in the profile of a later row, with one.
    if about is None and task.own is None and entry.get("id") is not None:
        about = ("id", identifier(entry, "id"))
    name = "\0".join(about or ("text", written or ""))
    return hashlib.sha256(name.encode()).hexdigest()[:ID_DIGITS]


def _date(entry: dict[str, Any]) -> int:
    """Return a `date` in UTC milliseconds: a year, a year and month, a day, or ISO 8601 to the second."""
    value = entry.get("date")
    if value is None:
        raise BadRowError("missing-date")
    shown = str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
    try:
        if _DATE.fullmatch(shown):
            year, month, day = ([int(part) for part in shown.split("-")] + [1, 1])[:3]
            moment = datetime(year, month, day, tzinfo=UTC)
        else:
            moment = datetime.fromisoformat(shown)
    except ValueError:
        raise BadRowError("wrong-type-date") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return int(moment.timestamp() * 1000)
