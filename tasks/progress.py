"""Progress of a task: a bar in the terminal, lines in the log, a progress artifact in the Prefect UI."""

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

from tasks.numbering import with_number

SHOW_AFTER_S = 1.0
ARTIFACT_EVERY_S = 5.0  # an update costs 14 ms here, and more in the server, on cores that have other work
LOG_EVERY_S = 15.0


def artifact_key(*words: str) -> str:
    """Return a key as Prefect demands it: lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(words).lower()).strip("-")


class ShownProgress:
    """A `nextquill_core.progress.Progress` that is shown; use it as a context manager inside a task run.

    Args:
        title: Name of the work, such as "train nextquill".
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._started = time.monotonic()
        self._artifact: UUID | None = None
        self._artifact_at = self._logged_at = self._started
        self._bar: Progress | None = None
        self._last: tuple[float, float, str] = (0, 0, "")
        self._phase = ""

    def __enter__(self) -> ShownProgress:
        return self

    def __call__(self, done: float, total: float, note: str = "", *, phase: str = "") -> None:
        """Show `done` of `total`; cheap enough for inner loops. A phase that begins or ends is shown at once.

        Args:
            done: Units that are done.
            total: Units in all; 0 where their number is not known.
            note: A few words beside the numbers.
            phase: What is being done where it is not the main work.
        """
        changed, self._phase = phase != self._phase, phase
        self._last = (done, total, note)
        now = time.monotonic()
        if now - self._started < SHOW_AFTER_S and not phase:
            return
        if sys.stderr.isatty():
            self._show_bar()
        elif changed or now - self._logged_at >= LOG_EVERY_S:
            self._logged_at = now
            get_run_logger().info(self._line())
        if self._artifact is None or changed or now - self._artifact_at >= ARTIFACT_EVERY_S:
            self._artifact_at = now
            self._show_artifact()

    def _line(self) -> str:
        """Return the progress as a line for the log, which `tasks.slurm.stage.PROGRESS` parses."""
        done, total, note = self._last
        if self._phase and not total:
            return f"{self._title}: {self._phase}"
        phase = f"{self._phase} " if self._phase else ""
        return f"{self._title}: {phase}{done:,.0f} of {total:,.0f}  {note}"

    @property
    def _heading(self) -> str:
        return f"{self._title}: {self._phase}" if self._phase else self._title

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
                TextColumn("{task.description}", style="bold", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}", markup=False),
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.start()
            self._bar.add_task(with_number(self._heading), total=total or None, note=note)
        shown = with_number(self._heading)
        self._bar.update(self._bar.task_ids[0], description=shown, completed=done, total=total or None, note=note)

    def _show_artifact(self) -> None:
        done, total, _ = self._last
        if not TaskRunContext.get():
            return
        percent = min(100.0, 100.0 * done / total) if total else 0.0
        if self._artifact is None:
            key = artifact_key("progress", self._title)
            created = create_progress_artifact(progress=percent, key=key, description=self._description)
            self._artifact = created if isinstance(created, UUID) else None
        else:
            update_progress_artifact(self._artifact, progress=percent, description=self._description)

    @property
    def _description(self) -> str:
        return f"{self._title}: {self._phase or 'progress'}"
