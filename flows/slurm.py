"""A stage that the configuration wants as a Slurm job: its flow submits the job and waits for the artifacts."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from nextquill_core.config import Config, MethodName, StageName
from nextquill_core.errors import UserError
from nextquill_core.pipeline import Step, outdated
from nextquill_core.pipeline.run import Outcome, Run
from storage import Artifact
from tasks.slurm.stage import in_job, introduce_job, refuse_hidden_secret, run_stage_job, stage_job

SEEN_WITHIN_S = 90.0
LOOK_EVERY_S = 1.0


def made_by_job(
    run: Run, stage: StageName, steps: Sequence[Step], *, force: bool, method: MethodName | None = None
) -> list[Outcome] | None:
    """Make the steps of a stage in a Slurm job, where `slurm.STAGE` says so and something is to be made.

    Args:
        run: The run.
        stage: The stage of this flow.
        steps: The steps that the stage makes; the job has ended well when all artifacts are there.
        force: Whether to make them even if they are up to date.
        method: The method of a training of one method alone.

    Returns:
        The outcome of each step; None where the stage is to run here.

    Raises:
        UserError: An artifact that the stage needs is missing, or the job's input is wrong, or what it made is not
            visible here.
        JobFailed: It failed otherwise.
    """
    if in_job():
        introduce_job()
    asked = run.config.slurm.job(stage)
    if asked is None:
        return None
    fresh = [not force and run.freshness(step).state == "fresh" for step in steps]
    if all(fresh):
        return None
    refuse_hidden_secret(run.config)
    run.require_inputs(steps)  # now, and not after hours in a queue
    job = stage_job(run, stage, asked, steps, _job_config(run.config, method), program=program(), force=force)
    number = run_stage_job(run, stage, job)
    run.look_again()
    log = str(job.log(number))
    return [
        Outcome(_visible(run, step, number, log), reused, "" if reused else f"Slurm job {number}")
        for step, reused in zip(steps, fresh, strict=True)
    ]


def program() -> tuple[str, ...]:
    """Return the command line of this environment's `nextquill`."""
    command = Path(sys.executable).with_name("nextquill")
    return (str(command),) if command.is_file() else (sys.executable, "-m", "flows")


def _job_config(config: Config, method: MethodName | None) -> Config:
    """Return the configuration under which the command `train` trains this method alone."""
    if method is None:
        return config
    train = config.train.model_copy(update={"method": method})
    evaluate = config.evaluate.model_copy(update={"methods": ("qwen",)})  # which trains nothing
    return config.model_copy(update={"train": train, "evaluate": evaluate})


def _visible(run: Run, step: Step, number: str, log: str) -> Artifact:
    """Return the artifact that a job made, as soon as this machine sees it; shared file systems lag behind."""
    deadline = time.monotonic() + SEEN_WITHIN_S
    while True:
        artifact = run.store.find(step.kind, step.fingerprint)
        if artifact is not None and not outdated(run.store, step, artifact):
            return artifact
        if time.monotonic() > deadline:
            raise UserError(
                f"Slurm job {number} has ended, and the {step.name} artifact is not here",
                run.store.location(step.kind, step.fingerprint),
                f"see {log}; `store` must be the same place for this machine and the nodes",
            )
        time.sleep(LOOK_EVERY_S)
