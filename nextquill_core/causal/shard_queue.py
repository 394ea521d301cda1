"""The shard queue of one scoring run: any number of workers that see the same folder claim shards from it.

No process hands shards out. A worker goes over all shards and claims each that is neither finished nor claimed. A claim
is a lock on a file, which the kernel releases when the process ends in any way, so another worker takes the shard over.
The staging folder's records say which shards are finished; everything else about a shard is in its scratch folder.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

from nextquill_core.errors import UserError, first_line
from nextquill_core.orders import EXAMPLES_PER_SHARD, ScoreOrder
from nextquill_core.progress import Progress
from nextquill_core.schemas import column_by_example
from storage import Staging
from storage.errors import explain_full_disk
from storage.files import write_json
from storage.stored_json import read_checked

AGAIN = "run the stage with --force"
ATTEMPTS = 2
WAIT_S = 0.2
DIED = "the worker that scored it died"

T = TypeVar("T")
logger = logging.getLogger(__name__)


class ShardsFailed(RuntimeError):  # noqa: N818 - says what happened
    """Some shards could not be scored; the message names each, and the finished ones stay for the next run."""


def split_into_shards(rows: Sequence[T], size: int = EXAMPLES_PER_SHARD) -> Iterator[tuple[str, Sequence[T]]]:
    """Yield (`00000`, rows), (`00001`, rows), ...; the boundaries depend on the rows alone."""
    for start in range(0, len(rows), size):
        yield f"{start // size:05d}", rows[start : start + size]


def example_ids(sequences: Path, splits: Sequence[str] | None = None) -> list[str]:
    """Return the ids of an ingest artifact's examples in the order in which `read_examples` yields them.

    Args:
        sequences: Folder of the artifact.
        splits: Which of train, val and test; None for all.
    """
    split_of = column_by_example(sequences / "examples", "split")
    return [example_id for example_id, split in split_of.items() if splits is None or split in splits]


@dataclass(frozen=True)
class Report:
    """Progress of one worker.

    Attributes:
        tokens: Token positions that it has computed since it began.
        shard: Number of the shard that it scores now.
        share: Share of that shard that is done, 0 to 1.
    """

    tokens: int
    shard: str
    share: float


class ShardQueue:
    """What all workers and their parent know of the shards; every entry is a file that is written whole.

    Args:
        staging: Staging folder of the effects artifact.
        shards: Example ids of each shard, by its number.
    """

    def __init__(self, staging: Staging, shards: Mapping[str, Sequence[str]]) -> None:
        self.staging = staging
        self.shards = shards
        self._folder = staging.scratch

    @classmethod
    def of(cls, order: ScoreOrder) -> ShardQueue:
        """Return the queue of an order whose staging folder is open."""
        ids = example_ids(order.sequences, order.splits)
        return cls(Staging.attach(order.staging), dict(split_into_shards(ids, order.shard_examples)))

    def begin(self) -> None:
        """Forget the attempts and reports of earlier runs; finished shards stay."""
        for kind in ("attempts", "reports"):
            for note in (self._folder / kind).glob("*.json"):
                note.unlink()

    @staticmethod
    def file(number: str) -> str:
        """Return the name of a shard's file in the artifact."""
        return f"effects/{number}.parquet"

    def finished(self, number: str) -> bool:
        """Return whether a shard is scored and its truncation is known."""
        return self.staging.has(self.file(number)) and self._note("truncation", number).is_file()

    def settled(self, number: str) -> bool:
        """Return whether no worker should begin this shard again: it is finished, or was tried often enough."""
        return self.finished(number) or self.attempts(number) >= ATTEMPTS

    def all_settled(self) -> bool:
        """Return whether every shard is settled."""
        return all(map(self.settled, self.shards))

    def attempts(self, number: str) -> int:
        """Return how often this run has begun the shard."""
        return int(self._attempt(number)["attempts"])

    @contextmanager
    def claim(self, number: str) -> Iterator[bool]:
        """Claim a shard for the length of the block; yields False at once if another worker has claimed it."""
        path = self._folder / "claims" / f"{number}.lock"
        path.parent.mkdir(exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def attempt(self, number: str, score: Callable[[str], None]) -> bool:
        """Score a claimed shard and record an error, if there is one.

        The attempt is recorded before the work, so a shard that ends its worker's process counts as tried.

        Args:
            number: The claimed shard.
            score: Scores and finishes the shard of this number.

        Returns:
            Whether there was no error.

        Raises:
            UserError: The input is invalid or the disk is full, so other shards would fail as well.
        """
        count = self.attempts(number) + 1
        with explain_full_disk(self.staging.folder):
            write_json(self._note("attempts", number), {"attempts": count, "error": DIED})
        try:
            with explain_full_disk(self.staging.folder):
                score(number)
        except UserError:
            raise
        except Exception as error:
            logger.warning("shard %s failed, attempt %d of %d", number, count, ATTEMPTS, exc_info=True)
            reason = f"{type(error).__name__}: {first_line(error)}"
            write_json(self._note("attempts", number), {"attempts": count, "error": reason})
            return False
        return True

    def keep_truncation(self, number: str, counts: Mapping[str, int]) -> None:
        """Store what the encoder left out in a shard; called before the shard is finished."""
        write_json(self._note("truncation", number), dict(counts))

    def truncation(self) -> dict[str, int]:
        """Return what the encoder left out, summed over all shards."""
        total = Counter[str]()
        for number in self.shards:
            total.update(read_checked(self._note("truncation", number), dict[str, int], AGAIN))
        return dict(sorted(total.items()))

    def report(self, worker: str, report: Report) -> None:
        """Publish the progress of a worker for the parent."""
        write_json(self._note("reports", worker), asdict(report))

    def reports(self) -> list[Report]:
        """Return the last report of each worker of this run."""
        notes = sorted((self._folder / "reports").glob("*.json"))
        return [read_checked(note, Report, AGAIN) for note in notes]

    def check(self) -> None:
        """Check that every shard is finished.

        Raises:
            ShardsFailed: Some are not.
        """
        missing = [number for number in self.shards if not self.finished(number)]
        if missing:
            lines = [
                f"  {number} ({self.shards[number][0]} to {self.shards[number][-1]}): {self._attempt(number)['error']}"
                for number in missing
            ]
            raise ShardsFailed(
                f"{len(missing)} of {len(self.shards)} shards could not be scored; the others are kept, "
                "and the same command tries these again:\n" + "\n".join(lines)
            )

    def _attempt(self, number: str) -> dict[str, int | str]:
        note = self._note("attempts", number)
        if not note.exists():
            return {"attempts": 0, "error": "no worker began it"}
        found: dict[str, int | str] = read_checked(note, dict[str, int | str], AGAIN)
        return found

    def _note(self, kind: str, name: str) -> Path:
        return self._folder / kind / f"{name}.json"


def score_shards(queue: ShardQueue, score: Callable[[str], None], check_device: Callable[[], None]) -> None:
    """Run one worker's loop: claim and score shards until every shard is settled.

    A shard that failed, or whose worker died, is tried again after all shards that have not been tried. While other
    workers score the last shards, this one waits, ready to take them over.

    Args:
        queue: The shards.
        score: Scores and finishes the shard of this number.
        check_device: Called after a failure; raises if this worker should not continue.
    """
    while waiting := [number for number in queue.shards if not queue.settled(number)]:
        tried = {number: queue.attempts(number) for number in waiting}
        scored = 0
        for number in sorted(waiting, key=lambda number: tried[number]):
            with queue.claim(number) as claimed:
                if not claimed or queue.finished(number) or queue.attempts(number) != tried[number]:
                    continue
                scored += 1
                if not queue.attempt(number, score):
                    check_device()
        if not scored:
            time.sleep(WAIT_S)


class ScoringProgress:
    """Turns the workers' reports into examples done, tokens per second and the remaining time.

    The clock starts with the first report, so that the time for loading a model does not count as slow scoring.

    Args:
        queue: The shards.
        progress: Receives the numbers.
        clock: Returns seconds that never decrease.
    """

    def __init__(self, queue: ShardQueue, progress: Progress, clock: Callable[[], float] = time.monotonic) -> None:
        self._queue = queue
        self._progress = progress
        self._clock = clock
        self._open = {number: len(ids) for number, ids in queue.shards.items()}
        self._total = sum(self._open.values())
        self._start: tuple[float, float, int] | None = None  # seconds, examples, tokens at the first report

    def show(self, reports: Iterable[Report]) -> None:
        """Report the progress of all workers together."""
        reports = list(reports)
        if not reports:
            return
        for number in [number for number in self._open if self._queue.finished(number)]:
            del self._open[number]
        claimed: dict[str, float] = {}  # a shard whose worker died may be in two reports
        for report in reports:
            claimed[report.shard] = max(report.share, claimed.get(report.shard, 0.0))
        begun = sum(self._open.get(number, 0) * share for number, share in claimed.items())
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
