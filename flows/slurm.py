"""A stage that its configuration wants as a Slurm job: what stands in its flow in the place of making it."""

from __future__ import annotations

import time
from collections.abc import Sequence

from nextquill_core.config import Config, MethodName, StageName
from nextquill_core.errors import UserError
from nextquill_core.pipeline import Step, freshness, outdated
from nextquill_core.pipeline.run import Outcome, Run
from storage import Artifact
from tasks.slurm.stage import in_job, introduce_job, refuse_hidden_secret, run_stage_job, stage_job

SEEN_WITHIN_S = 90.0
LOOK_EVERY_S = 1.0


def made_by_job(
    run: Run, stage: StageName, steps: Sequence[Step], *, force: bool, method: MethodName | None = None
) -> list[Outcome] | None:
    """Let a Slurm job make what a stage makes, where `slurm.STAGE` says so and something is to be made.

    Args:
        run: The configuration and its store.
        stage: Whose flow this is.
        steps: Everything that people know by name that the stage makes; the job ends when all of it is there.
        force: Make it anew even if it is fresh.
        method: Of a training of one method alone.

    Returns:
        What became of each step; None where the stage is to run here.

    Raises:
        UserError: An artifact that the stage needs is missing, or the job's input is wrong, or what it made is not seen
            here.
        JobFailed: It failed otherwise.
    """
    if in_job():
        introduce_job()
    asked = run.config.slurm.job(stage)
    if asked is None:
        return None
    fresh = [not force and freshness(run.store, step).state == "fresh" for step in steps]
    if all(fresh):
        return None
    refuse_hidden_secret(run.config)
    run.require_inputs(steps)  # now, and not after hours in a queue
    job = stage_job(run, stage, asked, steps, _settings(run.config, method), force=force)
    number = run_stage_job(run, stage, job)
    why = f"Slurm job {number}"
    return [
        Outcome(_seen(run, step, number, str(job.log(number))), reused, "" if reused else why)
        for step, reused in zip(steps, fresh, strict=True)
    ]


def _settings(config: Config, method: MethodName | None) -> Config:
    """The configuration under which the command `train` trains this method alone."""
    if method is None:
        return config
    train = config.train.model_copy(update={"method": method})
    evaluate = config.evaluate.model_copy(update={"methods": ("qwen",)})  # which trains nothing
    return config.model_copy(update={"train": train, "evaluate": evaluate})


def _seen(run: Run, step: Step, number: str, log: str) -> Artifact:
    """The artifact that a job made, as soon as this machine sees it too; file systems take their time to tell."""
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
