"""The files of LaMP and LongLaMP: one object a user (or question) with what the user wrote before, the profile."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from nextquill_core.config import Section
from nextquill_core.ingest.sources.base import Batch, Part, Source
from nextquill_core.ingest.sources.lamp_tasks import TASKS
from nextquill_core.ingest.sources.options import checked, nearest


class LampOptions(Section):
    """What `lamp` takes."""

    task: Annotated[str, Field(description="which task's files these are: lamp-1 … lamp-7, longlamp-…")]
    dates: Annotated[
        bool, Field(description="take an entry's `date` for its time; otherwise its place in the profile orders it")
    ] = False
    own: Annotated[
        bool, Field(description="longlamp-product-review: a row's own output is the user's newest review")
    ] = True

    @field_validator("task")
    @classmethod
    def _task_is_known(cls, value: str) -> str:
        if value not in TASKS:
            names = ", ".join(TASKS)
            raise ValueError(f"there is no such task, {nearest(value, list(TASKS)).replace('the file has', names)}")
        return value

    @model_validator(mode="after")
    def _own_has_no_date(self) -> LampOptions:
        if self.dates and self.own and TASKS[self.task].own:
            raise ValueError("a row's own output has no date: with `dates: true`, set `own: false`")
        return self


class Lamp(Source):
    """LaMP and LongLaMP: a JSON array of rows, or one row a line, plain or gzip; both parts may name the same file.

    Every entry of a row's profile becomes a review, and what it is about an item. An item is known by a hash of its
    description; where a task has none, by a hash of the entry's id, and failing that of its text. The order within a
    profile stands for time: 1, 2, 3 … (the files hold no other, unless they have `date`).

    A row of longlamp-product-review is a review itself: its `output` is the text, and `input` tells the rating, the
    description and the summary in a fixed sentence. It is the newest. Of the other tasks a row's own question is left
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
        task = TASKS[self.options.task]
        self.task = task
        self.own = task.own and self.options.own
        self.dated = self.options.dates
        told = {"reviews.title": task.title, "reviews.rating": task.rating, "items.description": task.description}
        self.absent = frozenset(
            {"items.title", "items.categories", "items.rating_number", *(name for name, key in told.items() if not key)}
        )

    def read(self, part: Part, path: Path, resume: Any = None) -> Iterator[Batch]:
        """Read a file row by row.

        Raises:
            DataError: Also where the array is not closed, or the file holds no array and no objects.
        """
        from nextquill_core.ingest.formats.profiles import read_profiles

        return read_profiles(path, part, self.task, own=self.own, dates=self.dated, batch_bytes=self.batch_bytes)
