"""What Slurm's commands say: which job of a name there is, how one stands, what became of it.

`squeue` finds a job, `scontrol` says how it stands, `sacct` what became of it once the controller has forgotten it,
where there is accounting, and `scancel` ends it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass

from nextquill_core.errors import UserError

ANSWER_S = 120.0
LET_GO_S = 20.0
LOOK_EVERY_S = 0.5

ENDED = {
    "BOOT_FAIL": "its nodes did not start",
    "CANCELLED": "somebody cancelled it",
    "COMPLETED": "",
    "DEADLINE": "it could not end before its deadline",
    "FAILED": "",
    "LAUNCH_FAILED": "it could not be started",
    "NODE_FAIL": "a node failed",
    "OUT_OF_MEMORY": "it used more memory than it had asked for, see {key}.memory",
    "PREEMPTED": "another job took its place",
    "RECONFIG_FAIL": "its nodes could not be set up",
    "REVOKED": "another cluster took it",
    "TIMEOUT": "it reached its time limit, see {key}.time; the same command goes on where it stopped",
}
"""The states in which a job stays, and what they mean to whom it belongs; `key` is where its settings stand."""
FORGOTTEN = "FORGOTTEN"
"""Neither the controller nor the accounting knows the job any more."""
ACCOUNT = "JobName,State,ExitCode,NodeList"
"""The columns that `parse_account` reads."""

FOREIGN = (
    "SLURM_", "SLURMD_", "SRUN_", "SQUEUE_", "SACCT_", "SCANCEL_", "PMI_", "PMIX_", "PREFECT__",
    "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "OMP_NUM_THREADS",
)  # fmt: skip
"""Environment variables that say of this process its allocation, devices, cores or flow run, or how Slurm prints."""
CLUSTERS_OWN = {"SLURM_CONF", "SLURM_CONF_SERVER"}


@dataclass(frozen=True)
class Standing:
    """How Slurm says that a job stands.

    Attributes:
        state: Slurm's word for it, or `FORGOTTEN`.
        reason: Why it waits, or what ended it; empty where Slurm gives none.
        nodes: Where it runs or ran; empty before that.
        code: The exit code of what it ran; 128 and the signal's number where a signal ended that.
    """

    state: str
    reason: str = ""
    nodes: str = ""
    code: int = 0

    @property
    def ended(self) -> bool:
        """Whether the job stays as it is."""
        return self.state in ENDED or self.state == FORGOTTEN

    def __str__(self) -> str:
        if self.state == "RUNNING":
            return f"runs on {self.nodes}"
        word = "waits" if self.state == "PENDING" else f"is {self.state.lower()}"
        return f"{word} ({self.reason})" if self.reason else word

    def why(self, key: str) -> str:
        """How it ended, and what that means for a job with settings at `key`."""
        reason = self.reason if self.reason != "NonZeroExitCode" else ""
        meaning = ENDED.get(self.state, "").format(key=key)
        return ", ".join(part for part in (self.state, meaning, reason and f"Slurm says {reason}") if part)


def require_slurm(key: str) -> None:
    """Make sure that jobs can be submitted here.

    Args:
        key: Of the settings that ask for it.

    Raises:
        UserError: One of Slurm's commands is missing.
    """
    for program in ("sbatch", "squeue", "scontrol", "scancel"):
        if shutil.which(program) is None:
            remedy = f"run it on a login node of the cluster, or set {key} to null"
            raise UserError(f"there is no `{program}` on this machine", key, remedy)


def find(name: str) -> tuple[str, str] | None:
    """Number and state of this user's job of this name that waits, runs or is about to end; the last only if no other.

    Raises:
        UserError: Slurm does not answer.
    """
    answer = ask("squeue", "--noheader", f"--user={os.getuid()}", f"--name={name}", "--format=%i %T")
    if answer.returncode:
        raise UserError(f"squeue does not answer: {complaint(answer)}", "slurm", "ask who runs the cluster")
    found = [(number, state) for number, _, state in (line.partition(" ") for line in answer.stdout.splitlines())]
    return next((job for job in found if job[1] != "COMPLETING"), found[0] if found else None)


def look(number: str, name: str) -> Standing | None:
    """How the job of this number and name stands; None where Slurm does not answer, which says nothing about it."""
    answer = ask("scontrol", "--oneliner", "show", "job", number)
    if answer.returncode == 0:
        return parse_standing(answer.stdout)
    if "Invalid job id" not in answer.stderr:
        return None
    answer = ask("sacct", f"--jobs={number}", "--allocations", "--noheader", "--parsable2", f"--format={ACCOUNT}")
    return parse_account(answer.stdout, name)


def parse_standing(text: str) -> Standing:
    """What `scontrol --oneliner show job` prints of one job."""

    def value(name: str) -> str:
        found = re.search(rf"(?:^|\s){name}=(\S*)", text)
        return found[1] if found and found[1] not in ("None", "(null)") else ""

    return Standing(value("JobState"), value("Reason"), value("NodeList"), exit_code(value("ExitCode")))


def parse_account(text: str, name: str) -> Standing:
    """What `sacct --parsable2` prints of a number, in the columns `ACCOUNT`.

    Numbers are given out again in time, so only a job of this name counts.
    """
    for line in reversed(text.splitlines()):
        columns = line.split("|")
        if len(columns) == 4 and columns[0] == name and (state := columns[1].partition(" ")[0]) in ENDED:
            return Standing(state, "", "" if columns[3] == "None assigned" else columns[3], exit_code(columns[2]))
    return Standing(FORGOTTEN)


def exit_code(text: str) -> int:
    """An exit code from Slurm's `CODE:SIGNAL`."""
    code, _, signal = text.partition(":")
    return 128 + int(signal) if signal.isdecimal() and int(signal) else int(code or 0)


def cancel(number: str, name: str) -> None:
    """End a job, and wait a little for its processes to be gone."""
    ask("scancel", number)
    deadline = time.monotonic() + LET_GO_S
    while time.monotonic() < deadline:
        standing = look(number, name)
        if standing is None or standing.ended:
            return
        time.sleep(LOOK_EVERY_S)


def ask(*command: str, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run one of Slurm's commands; one that is missing or does not come back is one that failed."""
    try:
        return subprocess.run(
            command,
            env=job_environment({}) if environment is None else environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=ANSWER_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 1, "", str(error))


def complaint(answer: subprocess.CompletedProcess[str]) -> str:
    """What a command of Slurm's says went wrong, without its own name before it."""
    said = [re.sub(r"^\w+: (error: |fatal: )?", "", line) for line in answer.stderr.splitlines()]
    return "; ".join(line for line in said if line) or f"exit code {answer.returncode}"


def job_environment(more: Mapping[str, str]) -> dict[str, str]:
    """This process's environment without what another node would misunderstand, and `more`."""
    own = {key: value for key, value in os.environ.items() if key in CLUSTERS_OWN or not key.startswith(FOREIGN)}
    return own | dict(more)
