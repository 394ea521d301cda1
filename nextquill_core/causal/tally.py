"""How far all scoring workers are together, as their parent shows it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from datetime import timedelta

from nextquill_core.causal.shard_queue import Board, Report
from nextquill_core.progress import Progress


class Tally:
    """Turns the workers' reports into examples done, tokens a second and the time that is left.

    The clock starts with the first report, so that loading a model is not taken for slow scoring.

    Args:
        board: The shards.
        progress: Who is told.
        clock: Seconds that only grow.
    """

    def __init__(self, board: Board, progress: Progress, clock: Callable[[], float] = time.monotonic) -> None:
        self._board = board
        self._progress = progress
        self._clock = clock
        self._open = {number: len(ids) for number, ids in board.shards.items()}
        self._total = sum(self._open.values())
        self._start: tuple[float, float, int] | None = None  # seconds, examples, tokens at the first report

    def show(self, reports: Iterable[Report]) -> None:
        """Tell the listener where the work stands."""
        reports = list(reports)
        if not reports:
            return
        for number in [number for number in self._open if self._board.finished(number)]:
            del self._open[number]
        in_hand: dict[str, float] = {}  # a shard whose worker died may be in two reports
        for report in reports:
            in_hand[report.shard] = max(report.share, in_hand.get(report.shard, 0.0))
        begun = sum(self._open.get(number, 0) * share for number, share in in_hand.items())
        done = self._total - sum(self._open.values()) + begun
        tokens = sum(report.tokens for report in reports)
        now = self._clock()
        self._start = self._start or (now, done, tokens)
        seconds, examples = now - self._start[0], done - self._start[1]
        note = ""
        if seconds > 0 and examples > 0:
            left = timedelta(seconds=round(seconds * (self._total - done) / examples))
            note = f"{(tokens - self._start[2]) / seconds:,.0f} tokens/s, {left} left"
        self._progress(int(done), self._total, note)
