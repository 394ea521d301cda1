"""Two workers that share one shard queue, killed at any moment: the same bytes, and finished shards are not touched."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from nextquill_core.causal.shard_queue import ShardQueue
from nextquill_core.causal.worker import work_alone
from nextquill_core.progress import silent
from tasks.ranks.scoring_workers import run_workers
from tests.chaos.crash import operations_of, started, until
from tests.chaos.trials import chosen, hold, seeds
from tests.scoring import digests, open_order, work_on_one_core, workers_of, write_sequences
from tests.waiting import wait_for

pytestmark = pytest.mark.process
LOADING_S = 4.0
SHARD_EXAMPLES = 1
VICTIMS = ("a worker", "both workers", "the parent", "a worker and then the parent")


@dataclass(frozen=True)
class Whole:
    """A job, and its result by one uninterrupted worker.

    Attributes:
        sequences: The ingest artifact that is scored.
        model: Folder of the base model.
        queue: The finished job.
        operations: How many file operations its worker did.
    """

    sequences: Path
    model: Path
    queue: ShardQueue
    operations: int

    def open(self, folder: Path) -> tuple[Path, ShardQueue]:
        """Open the same job in this folder; called again, it resumes."""
        return open_order(folder, self.sequences, self.model, shard_examples=SHARD_EXAMPLES)

    def check(self, queue: ShardQueue) -> None:
        """Compare a job that should be finished."""
        queue.check()
        assert digests(queue) == digests(self.queue)
        assert queue.truncation() == self.queue.truncation()

    def rerun(self, folder: Path) -> None:
        """Resume the job with one worker; what was finished is not touched."""
        order, queue = self.open(folder)
        before = {number: (folder / queue.file(number)).stat() for number in queue.shards if queue.finished(number)}
        work_alone(order, silent)
        self.check(queue)
        for number, status in before.items():
            again = (folder / queue.file(number)).stat()
            assert (again.st_ino, again.st_mtime_ns) == (status.st_ino, status.st_mtime_ns)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Whole:
    sequences = write_sequences(tmp_path_factory.mktemp("ingest"))
    folder = tmp_path_factory.mktemp("whole")
    order, queue = open_order(folder, sequences, tiny_folder, shard_examples=SHARD_EXAMPLES)
    operations = operations_of(folder, lambda: work_on_one_core(order, "0"))
    return Whole(sequences, tiny_folder, queue, len(operations))


def test_one_of_two_workers_killed_before_a_file_operation(whole: Whole, tmp_path: Path) -> None:
    """The other worker claims the shard and finishes the work."""

    def trial(number: int) -> None:
        folder = tmp_path / f"job-{number}"
        order, queue = whole.open(folder)
        victim = started(until, number, folder, work_on_one_core, order, "0")
        other = started(work_on_one_core, order, "1")
        victim.join()
        other.join()
        assert victim.exitcode in (0, -signal.SIGKILL)
        assert other.exitcode == 0
        whole.check(queue)
        shutil.rmtree(folder)

    # With two workers each does about half of the operations.
    cases = chosen(range(1, whole.operations // 2), few=2)
    hold("one of two scoring workers killed before a file operation", cases, trial)


def test_workers_and_their_parent_killed_at_any_moment(whole: Whole, tmp_path: Path) -> None:
    """The other worker replaces a killed one; no process outlives the parent; a rerun finishes the work."""

    def trial(seed: int) -> None:
        draw = random.Random(seed)
        folder = tmp_path / f"job-{seed}"
        order, queue = whole.open(folder)
        victim = VICTIMS[seed % len(VICTIMS)]
        parent = started(run_two_workers, order)
        wait_for("two workers", lambda: len(workers_of(folder)) == 2)
        wait_for_moment(queue, draw)
        workers = sorted(workers_of(folder).values())
        doomed = draw.sample(workers, min(len(workers), 2 if victim == "both workers" else 1))
        if victim != "the parent":
            kill(doomed)
        if "the parent" in victim:
            kill([parent.pid or 0])
        parent.join()
        wait_for("the end of the workers", lambda: not workers_of(folder), 15)
        if victim == "a worker":
            assert parent.exitcode == 0
        if parent.exitcode == 0:
            whole.check(queue)
        whole.rerun(folder)
        shutil.rmtree(folder)

    hold("two scoring workers and their parent killed", seeds(1), trial)


def run_two_workers(order: Path) -> None:
    """Run the parent of two workers in the calling process."""
    run_workers(order, silent, workers=2)


def wait_for_moment(queue: ShardQueue, draw: random.Random) -> None:
    """Wait while the workers load, or until some of the shards are finished."""
    if draw.random() < 0.3:
        time.sleep(draw.uniform(0, LOADING_S))
    else:
        count = draw.randrange(len(queue.shards))
        wait_for("the shards", lambda: sum(map(queue.finished, queue.shards)) >= count)


def kill(pids: list[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
