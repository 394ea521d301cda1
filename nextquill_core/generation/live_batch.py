"""A batch of the in-process engine that requests join and leave between two tokens, for a server.

Each row has its own mask and positions, so an answer is the one that the request gets alone, except for ties within
rounding; see `local_engine`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch

from nextquill_core.errors import ModelError
from nextquill_core.generation.engines import Generation, Request
from nextquill_core.generation.local_engine import Batch, Row, TransformersEngine
from nextquill_core.generation.streaming import TokenParts
from nextquill_core.memory import is_out_of_memory

CANCELLED = "cancelled"
"""Why a row ended whose answer no client waits for any more."""


@dataclass(eq=False)
class Job:
    """A request and who waits for its answer.

    Attributes:
        request: The request.
        parts: Receives the tokens while they are generated; None for no stream.
        answer: The answer. Its row leaves the batch before the next token once this future is cancelled.
    """

    request: Request
    parts: TokenParts | None = None
    answer: Future[Generation] = field(default_factory=Future)

    def end(self, found: Generation | Exception) -> None:
        """Set the answer or an error, unless the job was cancelled."""
        if self.answer.set_running_or_notify_cancel():
            if isinstance(found, Exception):
                self.answer.set_exception(found)
            else:
                self.answer.set_result(found)


class LiveBatch:
    """The rows of one engine. All methods are called by one thread.

    Args:
        engine: The engine.
        held: Returns the number of positions that other batches hold of the engine's memory.
    """

    def __init__(self, engine: TransformersEngine, held: Callable[[], int]) -> None:
        self._engine = engine
        self._jobs: dict[int, Job] = {}
        self._numbers = itertools.count()
        self._batches = [Batch(engine, self._finish, joining="at once", held=held) for _ in ("one branch", "two")]

    @property
    def positions(self) -> int:
        """Number of positions that the rows hold."""
        return sum(batch.positions for batch in self._batches)

    @property
    def idle(self) -> bool:
        """Whether no job is left."""
        return not self._jobs

    def add(self, job: Job) -> None:
        """Let a job wait for its place; an invalid request ends at once with its error."""
        try:
            self._engine.check([job.request])
        except ValueError as error:
            job.end(error)
            return
        row = self._engine.row(next(self._numbers), job.request)
        self._jobs[row.index] = job
        self._batches[len(row.request.branches) - 1].waiting.append(row)

    @torch.inference_mode()
    def step(self) -> None:
        """Generate one token of each row."""
        self._drop_cancelled()
        for batch in self._batches:
            failure = self._stepped(batch)
            if failure is not None:
                self._recover(batch, failure)  # outside the handler, where nothing holds the tensors of the failed pass

    def fail(self, error: Exception) -> None:
        """End all jobs with an error."""
        for batch in self._batches:
            self._fail([*batch.clear(), *batch.waiting], error)
            batch.waiting.clear()

    def _stepped(self, batch: Batch) -> Exception | None:
        try:
            batch.step()
            for row in batch.rows:
                job = self._jobs.get(row.index)
                if job is not None and job.parts is not None:
                    job.parts.extend(row.output)
            if all(row.reason for row in batch.rows):
                batch.clear()  # an idle server holds no cache
        except Exception as error:  # a failed pass ends the answers in it, and not the server
            return error.with_traceback(None)
        return None

    def _finish(self, row: Row) -> None:
        job = self._jobs.pop(row.index)
        answer = self._engine.answer(row)
        if job.parts is not None:
            job.parts.finish(answer.text)
        job.end(answer)

    def _drop_cancelled(self) -> None:
        gone = {number for number, job in self._jobs.items() if job.answer.cancelled()}
        if not gone:
            return
        for batch in self._batches:
            for row in batch.rows:
                if row.index in gone:
                    row.reason = CANCELLED
            for row in [row for row in batch.waiting if row.index in gone]:
                batch.waiting.remove(row)
        for number in gone:
            del self._jobs[number]

    def _recover(self, batch: Batch, failure: Exception) -> None:
        rows = batch.clear()
        if not is_out_of_memory(failure):
            self._fail(rows, failure)
            return
        try:
            self._engine.halve_batch(len(rows))
        except ModelError as error:
            self._fail(rows, error)
            return
        for row in reversed(rows):  # from the start, with new generators
            job = self._jobs[row.index]
            if job.parts is not None:
                job.parts.restart()
            batch.waiting.appendleft(self._engine.row(row.index, job.request))

    def _fail(self, rows: Iterable[Row], error: Exception) -> None:
        for row in rows:
            self._jobs.pop(row.index).end(error)
