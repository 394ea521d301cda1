"""Jobs on a real Slurm of two nodes: followed, refused, failed, requeued, submitted again, cancelled, found again."""

from __future__ import annotations

import multiprocessing
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from storage import UserError
from tasks.slurm.client import find_job
from tasks.slurm.job import Job, JobFailed, file_options, run_job
from tests.slurm import slurm, two_nodes
from tests.waiting import wait_for

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(180)]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[str]:
    with two_nodes() as conf:
        yield conf


def shell_job(folder: Path, line: str, *options: str, **environment: str) -> Job:
    """A job that runs a line of bash in its folder."""
    name = re.sub(r"\W+", "-", f"nextquill-{folder.name}")
    fixed = (f"--job-name={name}", *file_options(folder), "--nodes=1", "--requeue", "--export=ALL")
    command = ("bash", "-c", f"cd {folder.as_posix()!r}; {line}")
    return Job(name, folder, "slurm.score", (*fixed, *options), command, environment=environment)


class Recorder:
    """Records what `run_job` reports; `then` does something as soon as a line matches."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.lines: list[str] = []
        self.numbers: list[str] = []
        self._then: list[tuple[str, Callable[[], object]]] = []

    def then(self, pattern: str, action: Callable[[], object]) -> None:
        self._then.append((pattern, action))

    def say(self, line: str) -> None:
        self.said.append(line)
        self._act(line)

    def line(self, line: str) -> None:
        self.lines.append(line)
        self._act(line)

    def _act(self, line: str) -> None:
        for pattern, action in list(self._then):
            if re.search(pattern, line):
                self._then.remove((pattern, action))
                action()

    def run(self, job: Job, resubmit: int = 0) -> str:
        return run_job(
            job, resubmit=resubmit, resubmit_after=("NODE_FAIL", "PREEMPTED"), poll_s=0.2, say=self.say,
            on_line=self.line, on_number=self.numbers.append,
        )  # fmt: skip


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def test_a_job_is_followed_and_its_script_can_be_submitted_by_hand(tmp_path: Path, recorder: Recorder) -> None:
    folder = tmp_path / 'a 100% "strange" folder, #1'
    line = 'echo "one $HUSH" >&2; echo table; sleep 1; printf two >&2'
    job = shell_job(folder, line, "--comment=say 'x' and #", HUSH="hush")
    number = recorder.run(job)
    assert recorder.lines == ["one hush", "two"]
    assert recorder.numbers == [number]
    assert (folder / f"{number}.out").read_text() == "table\n"
    assert recorder.said[0] == f"Slurm job {number} is submitted; script {folder}/job.sh, log {folder}/{number}.log"
    assert any(re.fullmatch(rf"Slurm job {number} runs on n[12]", line) for line in recorder.said)
    assert "hush" not in (folder / "job.sh").read_text()
    environment = os.environ | {"HUSH": "by hand"}
    command = ["sbatch", "--parsable", folder / "job.sh"]
    again = subprocess.run(command, env=environment, capture_output=True, check=True, text=True).stdout.strip()
    while find_job(job.name):
        time.sleep(0.1)
    assert (folder / f"{again}.log").read_text() == "one by hand\ntwo"


def test_a_job_that_fails_is_reported_with_its_last_lines(tmp_path: Path, recorder: Recorder) -> None:
    job = shell_job(tmp_path, "seq 1 60 >&2; exit 3")
    with pytest.raises(JobFailed) as caught:
        recorder.run(job)
    first, *tail = str(caught.value).splitlines()
    number = recorder.numbers[0]
    assert re.fullmatch(
        rf"slurm\.score: Slurm job {number} on n[12] \(FAILED\) ended with exit code 3; "
        rf"the log is {tmp_path}/{number}\.log, its last lines:", first,
    )  # fmt: skip
    assert tail == [str(line) for line in range(21, 61)]


def test_invalid_input_of_a_job_is_the_same_line_here(tmp_path: Path, recorder: Recorder) -> None:
    job = shell_job(tmp_path, "echo noise >&2; echo 'nextquill: reviews.jsonl: there is none; fix it' >&2; exit 2")
    with pytest.raises(UserError, match=r"^reviews\.jsonl: there is none; fix it$"):
        recorder.run(job)
    assert not any("cancelled" in line for line in recorder.said)


def test_a_job_that_slurm_refuses_is_one_line(tmp_path: Path, recorder: Recorder) -> None:
    with pytest.raises(UserError, match=r"^slurm\.score: sbatch refuses the job: .*nvalid partition.*; its script is "):
        recorder.run(shell_job(tmp_path, "true", "--partition=nowhere"))
    assert recorder.said == []


def test_sbatch_variables_of_the_environment_change_nothing(
    tmp_path: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("JOB_NAME", "other"), ("ERROR", "/dev/null"), ("EXPORT", "NONE")):
        monkeypatch.setenv(f"SBATCH_{name}", value)
    job = shell_job(tmp_path, "echo $HUSH $SLURM_JOB_NAME >&2", HUSH="hush")
    recorder.run(job)
    assert recorder.lines == [f"hush {job.name}"]


def test_a_cancelled_job_is_reported(tmp_path: Path, recorder: Recorder) -> None:
    job = shell_job(tmp_path, "echo begun >&2; sleep 60")
    recorder.then("runs on", lambda: slurm("scancel", f"--name={job.name}"))
    with pytest.raises(JobFailed, match=r"\(CANCELLED, a user or the operator cancelled it.*\) ended with exit code"):
        recorder.run(job)
    waiting = shell_job(tmp_path / "waiting", "true", "--hold")
    recorder.then("waits", lambda: slurm("scancel", f"--name={waiting.name}"))
    with pytest.raises(JobFailed, match=r"\(CANCELLED, a user or the operator cancelled it.*\) ended before it began$"):
        recorder.run(waiting)


def test_a_requeued_job_is_still_followed(tmp_path: Path, recorder: Recorder) -> None:
    line = "echo >> tries; echo begun >&2; [ $(wc -l < tries) = 2 ] && exit; sleep 60"
    job = shell_job(tmp_path, line)
    recorder.then("begun", lambda: slurm("scontrol", "requeue", recorder.numbers[0]))
    assert recorder.run(job) == recorder.numbers[0]
    assert len(recorder.numbers) == 1
    assert recorder.lines.count("begun") == 2
    assert any(re.search(r"waits \(BeginTime\)", said) for said in recorder.said)


def test_a_job_whose_node_failed_is_submitted_again(tmp_path: Path, recorder: Recorder) -> None:
    """Slurm does not requeue it, because of `--no-requeue`."""
    job = shell_job(
        tmp_path, "echo >> tries; echo begun >&2; [ $(wc -l < tries) = 2 ] && exit; sleep 60", "--no-requeue"
    )

    def fail() -> None:
        node = slurm("squeue", "--noheader", f"--jobs={recorder.numbers[0]}", "--format=%N")
        slurm("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=a test")

    recorder.then("begun", fail)
    try:
        assert recorder.run(job, resubmit=1) == recorder.numbers[1]
        assert recorder.lines.count("begun") == 2
        assert any(
            re.search(r"ended: NODE_FAIL, a node failed.*; it is submitted again \(retries left: 0\)", said)
            for said in recorder.said
        )
    finally:
        for node in ("n1", "n2"):
            subprocess.run(["scontrol", "update", f"NodeName={node}", "State=RESUME"], capture_output=True, check=False)


def test_an_interrupted_follower_cancels_the_job(tmp_path: Path, recorder: Recorder) -> None:
    job = shell_job(tmp_path, "trap 'echo ended >&2; exit' TERM; echo begun >&2; while :; do sleep 0.1; done")

    def interrupt(line: str) -> None:
        recorder.lines.append(line)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_job(job, resubmit=1, resubmit_after=("PREEMPTED",), poll_s=0.2, say=recorder.say, on_line=interrupt)
    assert recorder.said[-1].endswith("is cancelled")
    assert find_job(job.name) is None, "its processes are gone"
    assert {"begun", "ended"} <= set(next(tmp_path.glob("*.log")).read_text().splitlines())


def run_in_child(folder: Path, line: str) -> None:
    Recorder().run(shell_job(folder, line))


def test_the_job_of_a_killed_follower_continues_and_is_found_again(tmp_path: Path, recorder: Recorder) -> None:
    line = "seq 1 100 >&2; until [ -e go ]; do sleep 0.1; done; echo done >&2"
    job = shell_job(tmp_path, line)
    process = multiprocessing.get_context("spawn").Process(target=run_in_child, args=(tmp_path, line))
    process.start()
    wait_for("the job", lambda: (find_job(job.name) or ("", ""))[1] == "RUNNING", 60)
    number = (find_job(job.name) or ("",))[0]
    wait_for("its log", (tmp_path / f"{number}.log").exists)
    process.kill()
    process.join()
    recorder.then("exists already", (tmp_path / "go").touch)
    assert recorder.run(job) == number
    assert recorder.lines[-1] == "done"
    assert recorder.lines[0] == "61", "of what was there, the last forty lines"
    assert [path.name for path in tmp_path.glob("*.log")] == [f"{number}.log"], "it was submitted once"
