"""Output of Slurm's programs, without a cluster."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from storage import UserError
from tasks.slurm.client import UNKNOWN, JobStatus, job_environment, parse_sacct, parse_scontrol, require_slurm

RUNNING = (
    "JobId=12 JobName=nextquill-score-0123456789 UserId=ann(1000) GroupId=ann(1000) MCS_label=N/A Priority=429 "
    "Nice=0 Account=(null) QOS=(null) JobState=RUNNING Reason=None Dependency=(null) Requeue=1 Restarts=0 BatchFlag=1 "
    "Reboot=0 ExitCode=0:0 RunTime=00:00:03 ReqNodeList=(null) ExcNodeList=(null) NodeList=n[1-2] BatchHost=n1 "
    "Command=/a folder/JobState=FAILED/job.sh WorkDir=/home/ann\n"
)


def test_output_of_scontrol_is_parsed() -> None:
    assert parse_scontrol(RUNNING) == JobStatus("RUNNING", "", "n[1-2]", 0)
    assert str(parse_scontrol(RUNNING)) == "runs on n[1-2]"
    waiting = RUNNING.replace("JobState=RUNNING Reason=None", "JobState=PENDING Reason=Priority").replace(
        "NodeList=n[1-2]", "NodeList=(null)"
    )
    assert parse_scontrol(waiting) == JobStatus("PENDING", "Priority", "", 0)
    assert str(parse_scontrol(waiting)) == "waits (Priority)"
    killed = RUNNING.replace("JobState=RUNNING Reason=None", "JobState=FAILED Reason=NonZeroExitCode")
    assert parse_scontrol(killed.replace("ExitCode=0:0", "ExitCode=1:0")).code == 1
    assert parse_scontrol(killed.replace("ExitCode=0:0", "ExitCode=0:9")).code == 128 + 9
    assert parse_scontrol(killed).ended
    assert not parse_scontrol(RUNNING.replace("JobState=RUNNING", "JobState=COMPLETING")).ended


def test_accounting_counts_only_for_a_job_of_this_name() -> None:
    rows = "other|FAILED|1:0|n1\nmine|CANCELLED by 1000|0:15|n[1-2]\n"
    assert parse_sacct(rows, "mine") == JobStatus("CANCELLED", "", "n[1-2]", 143)
    assert parse_sacct("mine|CANCELLED|0:0|None assigned\n", "mine") == JobStatus("CANCELLED")
    assert parse_sacct(rows, "its number was given out again") == JobStatus(UNKNOWN)
    assert parse_sacct("", "mine").ended, "there is no accounting here"


@pytest.mark.parametrize(
    ("status", "why"),
    [
        (JobStatus("FAILED", "NonZeroExitCode", "n1", 1), "FAILED"),
        (
            JobStatus("OUT_OF_MEMORY", "OutOfMemory", "n1"),
            "OUT_OF_MEMORY, it used more memory than it had asked for, see slurm.train.memory, Slurm says OutOfMemory",
        ),
        (
            JobStatus("TIMEOUT", "TimeLimit", "n1"),
            "TIMEOUT, it reached its time limit, see slurm.train.time; the same command resumes, Slurm says TimeLimit",
        ),
        (JobStatus("PREEMPTED", "", "n1"), "PREEMPTED, another job took its place"),
    ],
)
def test_the_end_of_a_job_is_explained(status: JobStatus, why: str) -> None:
    assert status.why("slurm.train") == why


def test_missing_slurm_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"^slurm\.score: there is no `sbatch` on this machine; run it on a login node"):
        require_slurm("slurm.score")


def test_a_job_does_not_inherit_another_allocation(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_MEM_PER_NODE", "CUDA_VISIBLE_DEVICES", "PREFECT__FLOW_RUN_ID", "SQUEUE_FORMAT"):
        monkeypatch.setenv(name, "3")
    monkeypatch.setenv("SLURM_CONF", "/etc/other/slurm.conf")
    monkeypatch.setenv("SBATCH_ACCOUNT", "lab")
    found = job_environment({"PREFECT_API_KEY": "hush"})
    assert set(os.environ) - set(found) >= {"SLURM_JOB_ID", "SLURM_MEM_PER_NODE", "CUDA_VISIBLE_DEVICES"}
    assert not set(found) & {"PREFECT__FLOW_RUN_ID", "SQUEUE_FORMAT"}
    assert (found["SLURM_CONF"], found["SBATCH_ACCOUNT"]) == ("/etc/other/slurm.conf", "lab")
    assert found["PREFECT_API_KEY"] == "hush"
