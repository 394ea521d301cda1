"""Slurm's command-line programs: find a job by its name, read its state, cancel it.

`squeue` finds a job, `scontrol` shows its state, `scancel` ends it. `sacct` shows how a job ended after the controller
has removed its record, on clusters that have accounting.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from nextquill_core.errors import UserError
from tasks.waiting import wait_until

TIMEOUT_S = 120.0
"""Seconds that one of Slurm's programs has to answer."""
CANCELLED_WITHIN_S = 20.0
"""Seconds to wait for the processes of a cancelled job to end."""

ENDED = {
    "BOOT_FAIL": "its nodes did not start",
    "CANCELLED": "a user or the operator cancelled it",
    "COMPLETED": "",
    "DEADLINE": "it could not end before its deadline",
    "FAILED": "",
    "LAUNCH_FAILED": "it could not be started",
    "NODE_FAIL": "a node failed",
    "OUT_OF_MEMORY": "it used more memory than it had asked for, see {key}.memory",
    "PREEMPTED": "another job took its place",
    "RECONFIG_FAIL": "its nodes could not be set up",
    "REVOKED": "another cluster took it",
    "TIMEOUT": "it reached its time limit, see {key}.time; the same command resumes",
}
"""Final states of a job and what they mean to its user; `key` is the configuration key of the job's settings."""
UNKNOWN = "UNKNOWN"
"""State of a job that neither the controller nor the accounting has a record of."""
SACCT_COLUMNS = "JobName,State,ExitCode,NodeList"
"""The columns that `parse_sacct` reads."""

NOT_PASSED_ON = (
    "SLURM_", "SLURMD_", "SRUN_", "SQUEUE_", "SACCT_", "SCANCEL_", "PMI_", "PMIX_", "PREFECT__",
    "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "OMP_NUM_THREADS",
)  # fmt: skip
"""Prefixes of environment variables that describe this process's allocation, devices, cores or flow run, or the output
format of Slurm's programs. A job must not inherit them."""
PASSED_ON = {"SLURM_CONF", "SLURM_CONF_SERVER"}
"""Variables that a job inherits in spite of their prefix, because they name the cluster."""


@dataclass(frozen=True)
class JobStatus:
    """State of a job, as Slurm reports it.

    Attributes:
        state: Slurm's name of the state, or `UNKNOWN`.
        reason: Why the job waits, or what ended it; empty if Slurm gives none.
        nodes: Nodes on which it runs or ran; empty before that.
        code: Exit code of its command; 128 plus the signal's number if a signal ended it.
    """

    state: str
    reason: str = ""
    nodes: str = ""
    code: int = 0

    @property
    def ended(self) -> bool:
        """Whether the state is final."""
        return self.state in ENDED or self.state == UNKNOWN

    def __str__(self) -> str:
        if self.state == "RUNNING":
            return f"runs on {self.nodes}"
        word = "waits" if self.state == "PENDING" else f"is {self.state.lower()}"
        return f"{word} ({self.reason})" if self.reason else word

    def why(self, key: str) -> str:
        """Return how the job ended and what that means.

        Args:
            key: Configuration key of the job's settings, such as `slurm.score`.
        """
        reason = self.reason if self.reason != "NonZeroExitCode" else ""
        meaning = ENDED.get(self.state, "").format(key=key)
        return ", ".join(part for part in (self.state, meaning, reason and f"Slurm says {reason}") if part)


def require_slurm(key: str) -> None:
    """Make sure that jobs can be submitted from this machine.

    Args:
        key: Configuration key that asks for a job.

    Raises:
        UserError: One of Slurm's programs is missing.
    """
    for program in ("sbatch", "squeue", "scontrol", "scancel"):
        if shutil.which(program) is None:
            remedy = f"run it on a login node of the cluster, or set {key} to null"
            raise UserError(f"there is no `{program}` on this machine", key, remedy)


def find_job(name: str) -> tuple[str, str] | None:
    """Find this user's job of a name that waits, runs or is completing; the last only if there is no other.

    Returns:
        The job's number and state, or None.

    Raises:
        UserError: Slurm does not answer.
    """
    answer = run_program("squeue", "--noheader", f"--user={os.getuid()}", f"--name={name}", "--format=%i %T")
    if answer.returncode:
        raise UserError(f"squeue does not answer: {error_text(answer)}", "slurm", "ask the operator of the cluster")
    found = [(number, state) for number, _, state in (line.partition(" ") for line in answer.stdout.splitlines())]
    return next((job for job in found if job[1] != "COMPLETING"), found[0] if found else None)


def job_status(number: str, name: str) -> JobStatus | None:
    """Return the status of the job with this number and name; None if Slurm does not answer."""
    answer = run_program("scontrol", "--oneliner", "show", "job", number)
    if answer.returncode == 0:
        return parse_scontrol(answer.stdout)
    if "Invalid job id" not in answer.stderr:
        return None
    columns = f"--format={SACCT_COLUMNS}"
    answer = run_program("sacct", f"--jobs={number}", "--allocations", "--noheader", "--parsable2", columns)
    return parse_sacct(answer.stdout, name)


def parse_scontrol(text: str) -> JobStatus:
    """Parse the output of `scontrol --oneliner show job` for one job."""

    def value(name: str) -> str:
        found = re.search(rf"(?:^|\s){name}=(\S*)", text)
        return found[1] if found and found[1] not in ("None", "(null)") else ""

    return JobStatus(value("JobState"), value("Reason"), value("NodeList"), exit_code(value("ExitCode")))


def parse_sacct(text: str, name: str) -> JobStatus:
    """Parse the output of `sacct --parsable2` for one job number, in the columns `SACCT_COLUMNS`.

    Only rows with this job name count, because Slurm reuses job numbers.
    """
    for line in reversed(text.splitlines()):
        columns = line.split("|")
        if len(columns) == 4 and columns[0] == name and (state := columns[1].partition(" ")[0]) in ENDED:
            return JobStatus(state, "", "" if columns[3] == "None assigned" else columns[3], exit_code(columns[2]))
    return JobStatus(UNKNOWN)


def exit_code(text: str) -> int:
    """Return the exit code that Slurm's `CODE:SIGNAL` means."""
    code, _, signal = text.partition(":")
    return 128 + int(signal) if signal.isdecimal() and int(signal) else int(code or 0)


def cancel(number: str, name: str) -> None:
    """Cancel a job, and wait a short time until its processes have ended."""
    run_program("scancel", number)

    def ended() -> bool:
        status = job_status(number, name)
        return status is None or status.ended

    wait_until(ended, CANCELLED_WITHIN_S, poll_s=0.5)


def run_program(*command: str, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run one of Slurm's programs; a missing program or a timeout counts as a failed one.

    Args:
        command: Program and arguments.
        environment: All environment variables of the program; None is `job_environment`.
    """
    try:
        return subprocess.run(
            command,
            env=job_environment({}) if environment is None else environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 1, "", str(error))


def error_text(answer: subprocess.CompletedProcess[str]) -> str:
    """Return the error message of one of Slurm's programs, without the program's name."""
    said = [re.sub(r"^\w+: (error: |fatal: )?", "", line) for line in answer.stderr.splitlines()]
    return "; ".join(line for line in said if line) or f"exit code {answer.returncode}"


def job_environment(more: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for a job: this process's own without `NOT_PASSED_ON`, and `more`."""
    kept = {key: value for key, value in os.environ.items() if key in PASSED_ON or not key.startswith(NOT_PASSED_ON)}
    return kept | dict(more)
