"""Real worker processes: they share shards, replace each other, and never outlive their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from nextquill_core.causal.shard_queue import ShardQueue
from nextquill_core.causal.worker import work_alone
from nextquill_core.errors import UserError
from nextquill_core.progress import silent
from tasks.ranks.processes import shared_environment
from tasks.ranks.scoring_workers import WorkersFailed, device_of, run_workers, worker_command
from tests.conftest import REPO
from tests.scoring import digests, open_order, workers_of, write_sequences
from tests.waiting import wait_for

process = pytest.mark.process


@pytest.fixture(scope="module")
def sequences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sequences(tmp_path_factory.mktemp("ingest"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, sequences: Path, tiny_folder: Path) -> ShardQueue:
    order, queue = open_order(tmp_path_factory.mktemp("whole"), sequences, tiny_folder)
    work_alone(order, silent)
    return queue


@process
def test_two_workers_share_the_shards_and_one_replaces_the_other(
    whole: ShardQueue, tmp_path: Path, sequences: Path, tiny_folder: Path
) -> None:
    order, queue = open_order(tmp_path, sequences, tiny_folder)
    shown: list[tuple[float, float, str]] = []
    numbers = list(queue.shards)
    with queue.claim(numbers[-1]):  # so that neither ends before the other has begun
        parent = threading.Thread(
            target=run_workers, args=(order, lambda *state: shown.append(state)), kwargs={"workers": 2}
        )
        parent.start()
        wait_for("the shards", lambda: len(queue.reports()) == 2 and all(map(queue.finished, numbers[:-1])))
        os.kill(workers_of(tmp_path)["1"], signal.SIGKILL)
    parent.join()
    queue.check()
    assert digests(queue) == digests(whole)
    assert queue.truncation() == whole.truncation()
    assert shown[-1][:2] == (24, 24)
    assert not workers_of(tmp_path)


@process
def test_the_shard_of_a_killed_worker_is_taken_over(
    whole: ShardQueue, tmp_path: Path, sequences: Path, tiny_folder: Path
) -> None:
    # A process that only holds a shard stands for a worker in the middle of it.
    order, queue = open_order(tmp_path, sequences, tiny_folder)
    code = (
        "import sys, time; from filelock import FileLock; held = FileLock(sys.argv[1]); held.acquire();"
        "print(flush=True); time.sleep(600)"
    )
    lock = queue.staging.scratch / "claims" / "00000.lock"
    lock.parent.mkdir()
    holder = subprocess.Popen([sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    worker = subprocess.Popen(worker_command(order, 0), cwd=REPO, env=shared_environment(2))
    wait_for("the shards", lambda: len(digests(queue)) == len(queue.shards) - 1)
    with pytest.raises(subprocess.TimeoutExpired):  # it waits for the last one
        worker.wait(timeout=1)
    holder.kill()
    assert worker.wait(timeout=60) == 0
    holder.wait()
    assert digests(queue) == digests(whole)


@process
def test_no_worker_outlives_a_parent_that_is_killed_and_the_next_run_resumes(
    whole: ShardQueue, tmp_path: Path, sequences: Path, tiny_folder: Path
) -> None:
    order, queue = open_order(tmp_path, sequences, tiny_folder)
    code = (
        "import sys; from pathlib import Path; from tasks.ranks.scoring_workers import run_workers;"
        "run_workers(Path(sys.argv[1]), lambda *_: None, workers=2)"
    )
    with queue.claim("00007"):
        parent = subprocess.Popen([sys.executable, "-c", code, str(order)], cwd=REPO)
        wait_for("two workers", lambda: queue.finished("00000") and len(workers_of(tmp_path)) == 2)
        parent.kill()
        parent.wait()
        wait_for("the end of the workers", lambda: not workers_of(tmp_path), 10)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "effects").glob("*.parquet")}
    finished = [number for number in queue.shards if queue.finished(number)]
    order, queue = open_order(tmp_path, sequences, tiny_folder)
    run_workers(order, silent, workers=1)
    queue.check()
    assert digests(queue) == digests(whole)
    for number in finished:
        path = tmp_path / queue.file(number)
        assert path.stat().st_mtime_ns == before[path], "what was finished was not touched"


@process
def test_invalid_input_of_a_worker_ends_all_workers_in_one_line(tmp_path: Path, sequences: Path) -> None:
    order, _ = open_order(tmp_path, sequences, tmp_path / "nowhere")
    with pytest.raises(UserError, match="nowhere: cannot load it"):
        run_workers(order, silent, workers=2)
    assert not workers_of(tmp_path)


@process
def test_a_failed_worker_is_reported_with_its_last_lines(tmp_path: Path, sequences: Path, tiny_folder: Path) -> None:
    order, _ = open_order(tmp_path, sequences, tiny_folder)
    (tmp_path / "scratch" / "reports").write_text("a file where a folder should be")
    with pytest.raises(WorkersFailed, match=r"(?s)worker \d ended with exit code 1; the log is .*reports"):
        run_workers(order, silent, workers=2)


def test_one_worker_needs_no_process(whole: ShardQueue, tmp_path: Path, sequences: Path, tiny_folder: Path) -> None:
    order, queue = open_order(tmp_path, sequences, tiny_folder)
    run_workers(order, silent, workers=1)
    assert digests(queue) == digests(whole)
    assert not list(order.parent.glob("*.log"))


def test_the_device_of_a_worker_without_accelerators_is_the_cpu() -> None:
    import torch

    if torch.accelerator.is_available():
        pytest.skip("there is an accelerator")
    assert device_of(3) == "cpu"
