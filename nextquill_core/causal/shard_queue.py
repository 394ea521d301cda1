"""The shards of one scoring, shared out among any number of workers that see the same folder.

Nobody deals them out. A worker goes over all shards and takes each that is neither finished nor held: holding is a lock
on a file, which the kernel lets go of when a process dies however it dies, so that another worker takes the shard over.
What is finished is told by the staging folder's records; what else has to be known of a shard stands in its scratch.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

from nextquill_core.causal.job import EXAMPLES_A_SHARD, ScoreJob
from nextquill_core.errors import UserError, first_line
from storage import Staging
from storage.documents import read_checked
from storage.errors import space_needed
from storage.files import write_json
from storage.tables import read_table

AGAIN = "run the stage with --force"
ATTEMPTS = 2
WAIT_S = 0.2
DIED = "the worker that scored it died"

T = TypeVar("T")
logger = logging.getLogger(__name__)


class ShardsFailed(RuntimeError):  # noqa: N818 - says what happened
    """Some shards could not be scored; the message names each, the finished ones stay for the next run."""


def in_shards(rows: Sequence[T], size: int = EXAMPLES_A_SHARD) -> Iterator[tuple[str, Sequence[T]]]:
    """(`00000`, rows), ...: boundaries depend on the rows alone."""
    for start in range(0, len(rows), size):
        yield f"{start // size:05d}", rows[start : start + size]


def example_ids(sequences: Path) -> list[str]:
    """The ids of an ingest artifact's examples, in the order in which `read_examples` yields them."""
    paths = sorted((sequences / "examples").glob("*.parquet"))
    return [name for path in paths for name in read_table(path, columns=["example_id"])["example_id"].to_pylist()]


@dataclass(frozen=True)
class Report:
    """How far one worker is.

    Attributes:
        tokens: Token positions it has computed since it began.
        shard: The shard in its hand.
        share: How much of that shard is done, 0 to 1.
    """

    tokens: int
    shard: str
    share: float


class Board:
    """What all workers and their parent know of the shards; every entry is a file, written whole.

    Args:
        staging: The staging folder of the effects artifact.
        shards: The examples' ids of each shard, by its number.
    """

    def __init__(self, staging: Staging, shards: Mapping[str, Sequence[str]]) -> None:
        self.staging = staging
        self.shards = shards
        self._folder = staging.scratch

    @classmethod
    def of(cls, job: ScoreJob) -> Board:
        """The board of a job whose staging folder somebody has opened."""
        ids = example_ids(Path(job.sequences))
        return cls(Staging.attach(Path(job.staging)), dict(in_shards(ids, job.shard_examples)))

    def begin(self) -> None:
        """Forget what earlier runs tried and reported; what they finished stays."""
        for kind in ("attempts", "reports"):
            for note in (self._folder / kind).glob("*.json"):
                note.unlink()

    @staticmethod
    def file(number: str) -> str:
        """The name of a shard's file in the artifact."""
        return f"effects/{number}.parquet"

    def finished(self, number: str) -> bool:
        """Whether a shard is scored, and what was cut in it is known."""
        return self.staging.has(self.file(number)) and self._note("truncation", number).is_file()

    def settled(self, number: str) -> bool:
        """Whether no worker is to begin this shard any more: it is finished, or it was tried often enough."""
        return self.finished(number) or self.attempts(number) >= ATTEMPTS

    def attempts(self, number: str) -> int:
        """How often this run has begun the shard."""
        return int(self._attempt(number)["attempts"])

    @contextmanager
    def claim(self, number: str) -> Iterator[bool]:
        """Hold a shard for the length of the block; False, at once, where another worker holds it."""
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
        """Score a shard that is held; an error is noted, and True says that there was none.

        The note is written before the work, so that a shard that ends its worker's process counts as tried as well.

        Raises:
            UserError: The input is wrong, or the disk is full; no other shard would fare better.
        """
        count = self.attempts(number) + 1
        with space_needed(self.staging.folder):
            write_json(self._note("attempts", number), {"attempts": count, "error": DIED})
        try:
            with space_needed(self.staging.folder):
                score(number)
        except UserError:
            raise
        except Exception as error:
            logger.warning("shard %s failed, attempt %d of %d", number, count, ATTEMPTS, exc_info=True)
            said = f"{type(error).__name__}: {first_line(error)}"
            write_json(self._note("attempts", number), {"attempts": count, "error": said})
            return False
        return True

    def keep_truncation(self, number: str, counts: Mapping[str, int]) -> None:
        """Store what the encoder left out in a shard; written before the shard itself is finished."""
        write_json(self._note("truncation", number), dict(counts))

    def truncation(self) -> dict[str, int]:
        """What was left out in all shards together."""
        total: dict[str, int] = {}
        for number in self.shards:
            for name, count in read_checked(self._note("truncation", number), dict[str, int], AGAIN).items():
                total[name] = total.get(name, 0) + count
        return dict(sorted(total.items()))

    def report(self, worker: str, report: Report) -> None:
        """Let the parent see how far a worker is."""
        write_json(self._note("reports", worker), asdict(report))

    def reports(self) -> list[Report]:
        """The last report of each worker of this run."""
        notes = sorted((self._folder / "reports").glob("*.json"))
        return [read_checked(note, Report, AGAIN) for note in notes]

    def check(self) -> None:
        """See that every shard is finished.

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
            return {"attempts": 0, "error": "no worker came to it"}
        found: dict[str, int | str] = read_checked(note, dict[str, int | str], AGAIN)
        return found

    def _note(self, kind: str, name: str) -> Path:
        return self._folder / kind / f"{name}.json"


def take_shares(board: Board, score: Callable[[str], None], check_device: Callable[[], None]) -> None:
    """One worker's loop: score what nobody else does, until every shard is settled.

    A shard that failed, or whose worker died, is tried again after all that have not been tried. While others hold
    the last shards this worker waits, ready to take over.

    Args:
        board: The shards.
        score: Scores and finishes the shard of this number.
        check_device: Called after a failure; raises if this worker had better not go on.
    """
    while waiting := [number for number in board.shards if not board.settled(number)]:
        tried = {number: board.attempts(number) for number in waiting}
        taken = 0
        for number in sorted(waiting, key=lambda number: tried[number]):
            with board.claim(number) as ours:
                if not ours or board.finished(number) or board.attempts(number) != tried[number]:
                    continue
                taken += 1
                if not board.attempt(number, score):
                    check_device()
        if not taken:
            time.sleep(WAIT_S)
