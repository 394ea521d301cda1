"""Stages as jobs of a Slurm cluster."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from nextquill_core.config.base import NonNegative, Section

StageName = Literal["ingest", "model", "score", "train", "evaluate"]
OURS = ("job-name", "output", "error", "open-mode", "array", "wrap", "wait", "test-only", "parsable", "clusters")
OURS_SHORT = ("-J", "-o", "-e", "-a", "-W", "-M")
"""Options of sbatch without which a job could not be followed."""


class SlurmJob(Section):
    """What a job asks for; null is what `slurm.common` says, and where that says nothing, what the cluster gives."""

    partition: Annotated[str | None, Field(description="partitions, one or several with commas (--partition)")] = None
    account: Annotated[str | None, Field(description="that it is charged to (--account)")] = None
    qos: Annotated[str | None, Field(description="quality of service (--qos)")] = None
    gpus: Annotated[int | str | None, Field(description="of each node: a number, or TYPE:NUMBER (--gres=gpu:…)")] = None
    cpus: Annotated[int | None, Field(ge=1, description="of each node (--cpus-per-task)")] = None
    memory: Annotated[
        str | None, Field(pattern=r"^(0|[1-9]\d*[KMGT])$", description="of each node, such as 64G; '0': all it has")
    ] = None
    time: Annotated[
        str | None, Field(description="limit as sbatch takes it, in quotes: '12:00:00', or '2-0' for two days")
    ] = None
    arguments: Annotated[
        tuple[str, ...], Field(description="further options of sbatch, such as --constraint=a100; common's come first")
    ] = ()

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
            raise ValueError("must be 1 at least")
        if isinstance(value, str) and not re.fullmatch(r"[^\s-]\S*", value):
            raise ValueError("must be one word")
        return value

    @field_validator("arguments")
    @classmethod
    def _leave_ours_alone(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            if not text.isprintable() or not re.fullmatch(r"--[\w-]+(=.+)?|-\w\S*", text):
                raise ValueError(f"{text!r} is no option; write each as one word, --name=value")
            if text.startswith(OURS_SHORT) or text.removeprefix("--").partition("=")[0] in OURS:
                raise ValueError(f"{text!r} is set by nextquill, which follows the job by it")
        return value


class SlurmJobs(Section):
    """The stages that run as Slurm jobs: those with a section of their own here, be it `{}`; it makes nothing stale."""

    common: SlurmJob = SlurmJob()
    ingest: SlurmJob | None = None
    model: SlurmJob | None = None
    score: SlurmJob | None = None
    train: SlurmJob | None = None
    evaluate: SlurmJob | None = None
    resubmit: Annotated[
        NonNegative, Field(description="times that a job which Slurm ended is submitted again; it goes on")
    ] = 3
    resubmit_after: Annotated[
        tuple[Literal["PREEMPTED", "NODE_FAIL", "BOOT_FAIL", "TIMEOUT"], ...],
        Field(description="the ends of which that is true, where Slurm has not requeued the job by itself"),
    ] = ("PREEMPTED", "NODE_FAIL", "BOOT_FAIL")
    poll_s: Annotated[float, Field(gt=0, description="seconds between two questions to Slurm about a job")] = 10.0
    folder: Annotated[
        str | None,
        Field(
            description="scripts and logs of jobs, where all nodes see it; null: .slurm in the store, or in the "
            "current folder where the store is remote"
        ),
    ] = None

    def job(self, stage: StageName) -> SlurmJob | None:
        """What a stage's job asks for, with what `common` says; None where the stage runs in the flow's process."""
        own: SlurmJob | None = getattr(self, stage)
        if own is None:
            return None
        said: dict[str, Any] = {name: value for name, value in own if value is not None}
        said["arguments"] = (*self.common.arguments, *own.arguments)
        return self.common.model_copy(update=said)
