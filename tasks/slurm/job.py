"""Run a command as a Slurm job: submit it once, follow it to its end, and find it again by its name.

The state is kept by Slurm and in the job's folder, not in memory. If this process is killed, the next process that asks
for the same job follows it.
"""

from __future__ import annotations

import re
import shlex
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock

from nextquill_core.errors import UserError
from storage.files import write_text
from tasks.ranks.logs import LineReader
from tasks.ranks.processes import TAIL_LINES, process_error
from tasks.slurm.client import (
    UNKNOWN,
    JobStatus,
    cancel,
    error_text,
    find_job,
    job_environment,
    job_status,
    require_slurm,
    run_program,
)

SCRIPT = "job.sh"
READ_EVERY_S = 0.5
"""Seconds between two looks at a job's log."""
COMPLETING_S = 90.0
"""Seconds to wait for a job of the same name that is completing, before another one is submitted."""
REQUEUED = {"PREEMPTED", "NODE_FAIL", "BOOT_FAIL"}
"""Final states through which a job also passes when Slurm requeues it."""

Say = Callable[[str], None]


class JobFailed(RuntimeError):  # noqa: N818 - says what happened
    """Raised when a job fails; the message says how and why, and ends with the last lines of its log."""


@dataclass(frozen=True)
class Job:
    """A command to run as a Slurm job.

    Attributes:
        name: Name of the job, which no other job of this user has; the job is found again by it.
        folder: Folder for the script, the files and the logs; the nodes must see it under the same path.
        key: Configuration key of the job's settings, such as `slurm.score`, for messages.
        options: Options of sbatch, one word each.
        command: Program and arguments.
        setup: Lines of bash before the command.
        files: Text files to write beside the script, by name.
        environment: Environment variables in addition to this process's own; they are not written to any file.
    """

    name: str
    folder: Path
    key: str
    options: tuple[str, ...]
    command: tuple[str, ...]
    setup: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)

    def log(self, number: str) -> Path:
        """Return the file with the standard error of the job with this number."""
        return self.folder / f"{number}.log"


def file_options(folder: Path) -> tuple[str, ...]:
    """Return the options of sbatch for a job's output; the standard error goes to `Job.log`.

    Raises:
        UserError: Slurm cannot write to a folder of this name.
    """
    if "\\" in str(folder) or not str(folder).isprintable():
        raise UserError("Slurm cannot write to a folder of this name", str(folder), "set slurm.folder to another")
    pattern = str(folder).replace("%", "%%") + "/%j"
    return f"--output={pattern}.out", f"--error={pattern}.log", "--open-mode=append"


def script(job: Job) -> str:
    """Return the job as a script for sbatch, which a user can also submit by hand."""
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH {directive(option)}" for option in job.options),
        "",
        f"# Written for {job.key}. By hand: sbatch {shlex.quote(str(job.folder / SCRIPT))}",
        "# The environment comes from the process that submits it; this file holds no keys or tokens.",
        "",
        *job.setup,
        f"exec {shlex.join(job.command)}",
    ]
    return "\n".join(lines) + "\n"


def directive(option: str) -> str:
    """Return an option as sbatch reads it from a script: quoted as in a shell, but without expansion of `$`."""
    if re.fullmatch(r"[\w@%+=:,./\[\]-]+", option, re.ASCII):
        return option
    name, separator, value = option.partition("=")
    quoted = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'{name}{separator}"{quoted}"'


def run_job(
    job: Job,
    *,
    resubmit: int,
    resubmit_after: Collection[str],
    poll_s: float,
    say: Say,
    on_line: Say,
    on_number: Say = lambda number: None,
) -> str:
    """Run a job to its end; if a job of its name waits or runs already, follow that one.

    The job is cancelled if an error, Ctrl-C or another signal that Python sees ends this function. It keeps running if
    this process is killed.

    Args:
        job: The job.
        resubmit: How many times to submit the job again after Slurm ended it.
        resubmit_after: States of Slurm after which the job is submitted again.
        poll_s: Seconds between two requests to Slurm.
        say: Called with one line whenever the job's state changes.
        on_line: Called with each line of the job's log.
        on_number: Called with the number of each job that is followed.

    Returns:
        The number of the job that completed, or of which Slurm has no record any more.

    Raises:
        UserError: Slurm is not installed or refuses the job, or the job found invalid input.
        JobFailed: The job failed for another reason.
    """
    require_slurm(job.key)
    number = ""
    try:
        number, joined = _find_or_submit(job, say)
        while True:
            on_number(number)
            status = _follow(job, number, poll_s, say, on_line, joined=joined)
            if status.state not in resubmit_after or not resubmit:
                break
            resubmit -= 1
            say(f"Slurm job {number} ended: {status.why(job.key)}; it is submitted again (retries left: {resubmit})")
            number, joined = "", False
            number = _submit(job, say)
    except BaseException:
        with suppress(UserError):
            # If sbatch was interrupted, the job may be queued and only Slurm knows its number.
            if left := number or (find_job(job.name) or ("",))[0]:
                cancel(left, job.name)
                say(f"Slurm job {left} is cancelled")
        raise
    if status.state in ("COMPLETED", UNKNOWN):
        return number
    raise _job_error(job, number, status)


def _find_or_submit(job: Job, say: Say) -> tuple[str, bool]:
    """Return the job's number, and whether it was submitted by another process."""
    job.folder.mkdir(parents=True, exist_ok=True)
    with FileLock(job.folder / ".lock"):  # otherwise two processes could find no job and both submit one
        deadline = time.monotonic() + COMPLETING_S
        while (found := find_job(job.name)) and time.monotonic() < deadline:
            if found[1] != "COMPLETING":
                say(f"Slurm job {found[0]} exists already and is followed; script {job.folder / SCRIPT}")
                return found[0], True
            time.sleep(READ_EVERY_S)  # it holds its locks until its last process has ended, or Slurm requeues it
        return _submit(job, say), False


def _submit(job: Job, say: Say) -> str:
    for name, text in job.files.items():
        write_text(job.folder / name, text)
    path = job.folder / SCRIPT
    write_text(path, script(job))
    # The options are repeated on the command line, because SBATCH_* variables take precedence over the script.
    environment = job_environment(job.environment)
    answer = run_program("sbatch", "--parsable", *job.options, str(path), environment=environment)
    if answer.returncode or not answer.stdout.strip():
        raise UserError(f"sbatch refuses the job: {error_text(answer)}", job.key, f"its script is {path}")
    number = answer.stdout.strip().partition(";")[0]
    say(f"Slurm job {number} is submitted; script {path}, log {job.log(number)}")
    return number


def _follow(job: Job, number: str, poll_s: float, say: Say, on_line: Say, *, joined: bool) -> JobStatus:
    """Pass on a job's log and its changes of state until its state is final.

    Args:
        job: The job.
        number: Its number.
        poll_s: Seconds between two requests to Slurm; the first ones are closer together.
        say: Called with one line whenever the state changes.
        on_line: Called with each line of the log.
        joined: Whether another process submitted the job; of the lines so far, only the last ones are passed on.
    """
    log = LineReader(job.log(number))
    for line in deque(log.read(), maxlen=TAIL_LINES) if joined else ():
        on_line(_text(line))
    said: set[str] = set()
    before: JobStatus | None = None
    due, pause, state = 0.0, min(1.0, poll_s), ""
    while True:
        for line in log.read():
            on_line(_text(line))
        if time.monotonic() >= due:
            status = job_status(number, job.name)
            if status is None:
                _say_once(f"Slurm does not answer; job {number} continues, and its state is requested again", said, say)
            elif status.ended:
                if status.state not in REQUEUED or status == before:
                    break
            elif status.state != "COMPLETING":
                if status.state != state:
                    state, said = status.state, set()
                _say_once(f"Slurm job {number} {status}", said, say)
            before = status
            due, pause = time.monotonic() + pause, min(poll_s, pause * 1.5)
        time.sleep(min(READ_EVERY_S, poll_s))
    for line in log.read(ended=True):
        on_line(_text(line))
    if status.state == UNKNOWN:
        say(f"Slurm has no record any more of how job {number} ended")
    return status


def _job_error(job: Job, number: str, status: JobStatus) -> Exception:
    """Return the error for a job that did not complete."""
    where = f" on {status.nodes}" if status.nodes else ""
    what = f"{job.key}: Slurm job {number}{where} ({status.why(job.key)})"
    log = job.log(number)
    if log.is_file():
        return process_error(JobFailed, what, status.code, log)
    if not status.nodes:
        return JobFailed(f"{what} ended before it began")
    unseen = f"there is no log at {log}, so the nodes seem to have another folder under this path"
    return JobFailed(f"{what} ended with exit code {status.code}; {unseen}")


def _text(line: bytes) -> str:
    return line.decode(errors="replace").rstrip("\r\n")


def _say_once(line: str, said: set[str], say: Say) -> None:
    if line not in said:
        said.add(line)
        say(line)
