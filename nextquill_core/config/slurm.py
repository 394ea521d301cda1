"""Settings of stages that run as jobs of a Slurm cluster."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from nextquill_core.config.base import NonNegative, Section

StageName = Literal["ingest", "model", "score", "train", "evaluate"]
RESERVED = ("job-name", "output", "error", "open-mode", "array", "wrap", "wait", "test-only", "parsable", "clusters")
RESERVED_SHORT = ("-J", "-o", "-e", "-a", "-W", "-M")
"""Options of sbatch that NextQuill sets itself, because it follows the job by them."""


class SlurmJob(Section):
    """The resources of a job. Null means the value of `slurm.common`, and null there means the cluster's default."""

    partition: str | None = None
    """Partition, or several separated by commas (--partition)"""
    account: str | None = None
    """Account that is charged (--account)"""
    qos: str | None = None
    """Quality of service (--qos)"""
    gpus: int | str | None = None
    """GPUs of each node: a number, or TYPE:NUMBER (--gres=gpu:…)"""
    cpus: Annotated[int | None, Field(ge=1)] = None
    """CPU cores of each node (--cpus-per-task)"""
    memory: Annotated[str | None, Field(pattern=r"^(0|[1-9]\d*[KMGT])$")] = None
    """Memory of each node, such as 64G; '0' for all it has (--mem)"""
    time: str | None = None
    """Time limit in quotes, as sbatch takes it: '12:00:00', or '2-0' for two days (--time)"""
    arguments: tuple[str, ...] = ()
    """More options of sbatch, such as --constraint=a100; they follow those of slurm.common"""

    @field_validator("time", "memory", mode="before")
    @classmethod
    def _in_quotes(cls, value: Any) -> Any:
        if isinstance(value, int | float) and not isinstance(value, bool):
            raise ValueError(
                "put it in quotes; YAML reads 12:00:00 as the number 43200, and a plain number has no unit"
            )
        return value

    @field_validator("partition", "account", "qos", "time", "gpus")
    @classmethod
    def _one_word(cls, value: int | str | None) -> int | str | None:
        if isinstance(value, int) and value < 1:
            raise ValueError("it must be at least 1")
        if isinstance(value, str) and not re.fullmatch(r"[^\s-]\S*", value):
            raise ValueError("it must be one word")
        return value

    @field_validator("arguments")
    @classmethod
    def _no_reserved_options(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            if not text.isprintable() or not re.fullmatch(r"--[\w-]+(=.+)?|-\w\S*", text):
                raise ValueError(f"{text!r} is not an option; write each as one word, --name=value")
            if text.startswith(RESERVED_SHORT) or text.removeprefix("--").partition("=")[0] in RESERVED:
                raise ValueError(f"{text!r} is set by nextquill, which follows the job by it; remove it")
        return value


class SlurmJobs(Section):
    """Stages that run as Slurm jobs: those that have a section here, even an empty one (`{}`)."""

    common: SlurmJob = SlurmJob()
    ingest: SlurmJob | None = None
    model: SlurmJob | None = None
    score: SlurmJob | None = None
    train: SlurmJob | None = None
    evaluate: SlurmJob | None = None
    resubmit: NonNegative = 3
    """Number of times that a job which Slurm ended is submitted again; it resumes"""
    resubmit_after: tuple[Literal["PREEMPTED", "NODE_FAIL", "BOOT_FAIL", "TIMEOUT"], ...] = (
        "PREEMPTED",
        "NODE_FAIL",
        "BOOT_FAIL",
    )
    """States of an ended job after which it is submitted again, unless Slurm has requeued it"""
    poll_s: Annotated[float, Field(gt=0)] = 10.0
    """Seconds between two queries to Slurm about a job"""
    folder: str | None = None
    """Folder for scripts and logs of jobs, visible to all nodes; null: .slurm in the store, or in the current folder if
    the store is remote"""

    def job(self, stage: StageName) -> SlurmJob | None:
        """Return the resources of a stage's job, completed by `common`; None if the stage is not run as a job."""
        own: SlurmJob | None = getattr(self, stage)
        if own is None:
            return None
        changes: dict[str, Any] = {name: value for name, value in own if value is not None}
        changes["arguments"] = (*self.common.arguments, *own.arguments)
        return self.common.model_copy(update=changes)
