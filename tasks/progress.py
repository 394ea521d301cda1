"""Progress where people look: a bar in the terminal, a progress artifact in the Prefect UI."""

from __future__ import annotations

import re
import sys
import time
from types import TracebackType
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.context import TaskRunContext
from prefect.logging import get_run_logger
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SHOW_AFTER_S = 1.0
ARTIFACT_EVERY_S = 5.0  # an update costs 14 ms here, and more in the server, on cores that have other work
LOG_EVERY_S = 15.0


def artifact_key(*words: str) -> str:
    """A key as Prefect wants it: lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(words).lower()).strip("-")


class ShownProgress:
    """A `nextquill_core.progress.Progress` that people can see; use it as a context inside a task run.

    Args:
        title: What is being done, for instance "score".
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._started = time.monotonic()
        self._artifact: UUID | None = None
        self._artifact_at = self._logged_at = self._started
        self._bar: Progress | None = None
        self._last: tuple[float, float, str] = (0, 0, "")

    def __enter__(self) -> ShownProgress:
        return self

    def __call__(self, done: float, total: float, note: str = "") -> None:
        """Show `done` of `total`; cheap enough for inner loops."""
        self._last = (done, total, note)
        now = time.monotonic()
        if now - self._started < SHOW_AFTER_S:
            return
        if sys.stderr.isatty():
            self._show_bar()
        elif now - self._logged_at >= LOG_EVERY_S:
            self._logged_at = now
            get_run_logger().info("%s: %s of %s  %s", self._title, f"{done:,.0f}", f"{total:,.0f}", note)
        if self._artifact is None or now - self._artifact_at >= ARTIFACT_EVERY_S:
            self._artifact_at = now
            self._show_artifact()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()
        if self._artifact:
            self._show_artifact()

    def _show_bar(self) -> None:
        done, total, note = self._last
        if self._bar is None:
            self._bar = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.start()
            self._bar.add_task(self._title, total=total, note=note)
        self._bar.update(self._bar.task_ids[0], completed=done, total=total, note=note)

    def _show_artifact(self) -> None:
        done, total, _ = self._last
        if not TaskRunContext.get():
            return
        percent = min(100.0, 100.0 * done / total) if total else 0.0
        if self._artifact is None:
            key = artifact_key("progress", self._title)
            created = create_progress_artifact(progress=percent, key=key, description=f"{self._title}: progress")
            self._artifact = created if isinstance(created, UUID) else None
        else:
            update_progress_artifact(self._artifact, progress=percent)
