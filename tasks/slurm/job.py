"""A command as a job of a Slurm cluster: submitted once, followed to its end, and found again by its name.

Nothing of it is kept in memory alone: whoever asks for the same job after this process was killed follows it on.
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
from tasks.ranks.processes import TAIL_LINES, failure
from tasks.ranks.tail import NewLines
from tasks.slurm.client import FORGOTTEN, Standing, ask, cancel, complaint, find, job_environment, look, require_slurm

SCRIPT = "job.sh"
READ_EVERY_S = 0.5
COMPLETING_S = 90.0
MAY_COME_BACK = {"PREEMPTED", "NODE_FAIL", "BOOT_FAIL"}
"""States that a job passes through as well when Slurm requeues it by itself."""

Say = Callable[[str], None]


class JobFailed(RuntimeError):  # noqa: N818 - says what happened
    """A job ended otherwise than well; the message says how, why, and ends with the last lines of its log."""


@dataclass(frozen=True)
class Job:
    """What is to run, and how it is found again.

    Attributes:
        name: Tells it from every other job of this user that waits or runs.
        folder: Gets its script, files and logs; the nodes see it under the same path.
        key: Where its settings stand, such as `slurm.score`, for messages.
        options: Of sbatch, each one word.
        command: Program and arguments.
        setup: Lines of bash before the command.
        files: Texts to write beside the script, by name.
        environment: Variables that go along besides this process's own; their values are written nowhere.
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
        """What it writes to its standard error."""
        return self.folder / f"{number}.log"


def file_options(folder: Path) -> tuple[str, ...]:
    """Where a job's output goes, as options of sbatch: the standard error is its log, at `Job.log`.

    Raises:
        UserError: Slurm has no way to write to this folder.
    """
    if "\\" in str(folder) or not str(folder).isprintable():
        raise UserError("Slurm cannot write to a folder of this name", str(folder), "set slurm.folder to another")
    pattern = str(folder).replace("%", "%%") + "/%j"
    return f"--output={pattern}.out", f"--error={pattern}.log", "--open-mode=append"


def script(job: Job) -> str:
    """The job as a script for sbatch that a person can read and submit."""
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH {directive(option)}" for option in job.options),
        "",
        f"# Written for {job.key}. By hand: sbatch {shlex.quote(str(job.folder / SCRIPT))}",
        "# The environment comes from where it is submitted; no key and no token stands here.",
        "",
        *job.setup,
        f"exec {shlex.join(job.command)}",
    ]
    return "\n".join(lines) + "\n"


def directive(option: str) -> str:
    """An option as sbatch reads it from a script: quoted as in a shell, but for `#`, `$` and the like."""
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
    """Run a job to its end, or follow the one of its name that waits or runs already.

    When this function is left by an error, by Ctrl-C or by a signal that Python sees, the job is cancelled. A process
    that is killed outright leaves it running.

    Args:
        job: What to run.
        resubmit: Times to submit it again where Slurm ended it.
        resubmit_after: The states of which that is true.
        poll_s: Seconds between two questions to Slurm.
        say: Told in one line what becomes of the job.
        on_line: Told each line of its log.
        on_number: Told the number of each job that is followed.

    Returns:
        The number of the job that ended well, or that Slurm knows nothing of any more.

    Raises:
        UserError: Slurm's commands are not here or refuse the job, or what it ran refused its input.
        JobFailed: It ended otherwise than well.
    """
    require_slurm(job.key)
    number = ""
    try:
        number, late = _take_up(job, say)
        while True:
            on_number(number)
            standing = _follow(job, number, poll_s, say, on_line, late=late)
            if standing.state not in resubmit_after or not resubmit:
                break
            resubmit -= 1
            say(f"Slurm job {number} ended: {standing.why(job.key)}; it is submitted again, {resubmit} more if need be")
            number, late = "", False
            number = _submit(job, say)
    except BaseException:
        with suppress(UserError):
            # It may have been queued in the moment in which sbatch was interrupted.
            if left := number or (find(job.name) or ("",))[0]:
                cancel(left, job.name)
                say(f"Slurm job {left} is cancelled")
        raise
    if standing.state in ("COMPLETED", FORGOTTEN):
        return number
    raise _failed(job, number, standing)


def _take_up(job: Job, say: Say) -> tuple[str, bool]:
    """The number of the job, and whether it was there before."""
    job.folder.mkdir(parents=True, exist_ok=True)
    with FileLock(job.folder / ".lock"):  # or two processes would find none, and both submit
        patience = time.monotonic() + COMPLETING_S
        while (found := find(job.name)) and time.monotonic() < patience:
            if found[1] != "COMPLETING":
                say(f"Slurm job {found[0]} is at it already and is followed; script {job.folder / SCRIPT}")
                return found[0], True
            time.sleep(READ_EVERY_S)  # it keeps its locks until its last process is gone, or it is being requeued
        return _submit(job, say), False


def _submit(job: Job, say: Say) -> str:
    for name, text in job.files.items():
        write_text(job.folder / name, text)
    path = job.folder / SCRIPT
    write_text(path, script(job))
    # On the command line too, because SBATCH_* variables of the environment go over what a script says.
    answer = ask("sbatch", "--parsable", *job.options, str(path), environment=job_environment(job.environment))
    if answer.returncode or not answer.stdout.strip():
        raise UserError(f"sbatch refuses the job: {complaint(answer)}", job.key, f"its script is {path}")
    number = answer.stdout.strip().partition(";")[0]
    say(f"Slurm job {number} is submitted; script {path}, log {job.log(number)}")
    return number


def _follow(job: Job, number: str, poll_s: float, say: Say, on_line: Say, *, late: bool) -> Standing:
    """Hand a job's lines over as they come, and say how it stands whenever that changes, until it stays ended.

    Args:
        job: What runs.
        number: Of the job.
        poll_s: Seconds between two questions to Slurm; the first ones come sooner.
        say: Told how it stands.
        on_line: Told the log's lines.
        late: The log began without us: of what is there only the end is handed over.
    """
    lines = NewLines(job.log(number))
    for line in deque(lines.read(), maxlen=TAIL_LINES) if late else ():
        on_line(_text(line))
    told: set[str] = set()
    before: Standing | None = None
    due, pause, state = 0.0, min(1.0, poll_s), ""
    while True:
        for line in lines.read():
            on_line(_text(line))
        if time.monotonic() >= due:
            standing = look(number, job.name)
            if standing is None:
                _once(f"Slurm does not answer; job {number} goes on and is asked after again", told, say)
            elif standing.ended:
                if standing.state not in MAY_COME_BACK or standing == before:
                    break
            elif standing.state != "COMPLETING":
                if standing.state != state:
                    state, told = standing.state, set()
                _once(f"Slurm job {number} {standing}", told, say)
            before = standing
            due, pause = time.monotonic() + pause, min(poll_s, pause * 1.5)
        time.sleep(min(READ_EVERY_S, poll_s))
    for line in lines.read(ended=True):
        on_line(_text(line))
    if standing.state == FORGOTTEN:
        say(f"Slurm does not know any more how job {number} ended")
    return standing


def _failed(job: Job, number: str, standing: Standing) -> Exception:
    """The error for a job that ended otherwise than well: what it told the user, or how it ended and its last lines."""
    where = f" on {standing.nodes}" if standing.nodes else ""
    what = f"{job.key}: Slurm job {number}{where} ({standing.why(job.key)})"
    log = job.log(number)
    if log.is_file():
        return failure(JobFailed, what, standing.code, log)
    if not standing.nodes:
        return JobFailed(f"{what} ended before it began")
    unseen = f"there is no log at {log}, so the nodes seem to have another folder under this path"
    return JobFailed(f"{what} ended with exit code {standing.code}; {unseen}")


def _text(line: bytes) -> str:
    return line.decode(errors="replace").rstrip("\r\n")


def _once(line: str, told: set[str], say: Say) -> None:
    if line not in told:
        told.add(line)
        say(line)
