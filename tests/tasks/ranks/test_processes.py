"""Child processes: none outlives its parent, stubborn ones are killed, and a failure says why."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from storage import UserError
from tasks.ranks.processes import end_groups, is_running, process_count, process_error, shared_environment, start
from tasks.waiting import wait_until
from tests.conftest import REPO

STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"
)


def test_a_process_that_ignores_sigterm_is_killed_with_all_that_it_has_started(tmp_path: Path) -> None:
    log = tmp_path / "log"
    shell = start(["sh", "-c", f'trap "" TERM; {sys.executable} -c "{STUBBORN}" & wait'], log, dict(os.environ))
    polite = start(["sleep", "60"], log, dict(os.environ))
    assert wait_until(lambda: "ready" in log.read_text(), 30)
    (child,) = psutil.Process(shell.pid).children()
    end_groups([shell, polite], patience_s=0.2)
    assert (shell.returncode, polite.returncode) == (-signal.SIGKILL, -signal.SIGTERM)
    assert not is_running(child)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's signal to orphans")
def test_a_process_ends_when_its_parent_is_killed() -> None:
    code = (
        "import os, sys; from tasks.ranks.processes import start;"
        "print(start(['sleep', '60'], None, dict(os.environ)).pid, flush=True); sys.stdin.read()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPO
    )
    with parent:
        assert parent.stdout
        child = psutil.Process(int(parent.stdout.readline()))
        assert is_running(child)
        parent.kill()
    assert wait_until(lambda: not is_running(child), 10)


def test_a_failure_is_the_line_for_the_user_or_the_last_lines(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("noise\n" * 100 + "the end\n")
    error = process_error(RuntimeError, "training", 3, log)
    assert str(error).startswith(f"training ended with exit code 3; the log is {log}, its last lines:\nnoise")
    assert str(error).count("\n") == 41
    part = tmp_path / "rank-1.log"
    part.write_text("nextquill: model.safetensors: it is empty; download it again\nTraceback\n")
    for code in (2, 137):  # srun kills the other ranks, and ends with their exit code
        refused = process_error(RuntimeError, "training", code, log, part)
        assert isinstance(refused, UserError)
        assert str(refused) == "model.safetensors: it is empty; download it again"


def test_only_invalid_input_is_a_line_for_the_user(tmp_path: Path) -> None:
    log = tmp_path / "log"
    for code, line in (
        (1, "nextquill: reads the raw files and the store"),
        (1, "nextquill: Prefect's temporary server ended; the same command resumes"),
        (143, "nextquill: interrupted; the same command resumes"),
    ):
        log.write_text(f"{line}\nTraceback\n")
        error = process_error(RuntimeError, "slurm.score: Slurm job 7 (TIMEOUT)", code, log)
        assert type(error) is RuntimeError
        assert f"(TIMEOUT) ended with exit code {code}" in str(error)
    log.write_text("nextquill: a: an earlier attempt; fix a\nnextquill: b: the last one; fix b\n")
    assert str(process_error(RuntimeError, "training", 2, log)) == "b: the last one; fix b"


def test_processes_share_the_cores() -> None:
    import torch

    assert process_count("auto") == max(1, torch.accelerator.device_count())
    assert process_count(3) == 3
    assert shared_environment(1)["OMP_NUM_THREADS"] == str(len(os.sched_getaffinity(0)))
    assert shared_environment(10**4)["OMP_NUM_THREADS"] == "1"
