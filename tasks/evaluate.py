"""Evaluate: what methods need and write, then metrics, figures and the report."""

from __future__ import annotations

from prefect import task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE

from nextquill_core.plan import Step, freshness
from nextquill_core.stages import evaluate
from nextquill_core.stages.run import Outcome, Run
from tasks.progress import ShownProgress
from tasks.retries import RETRIED
from tasks.slot import training_place


@task(cache_policy=NO_CACHE, persist_result=False, task_run_name="{step.name}", **RETRIED)
def make_part(run: Run, step: Step, force: bool) -> Outcome:
    """One thing that the evaluation is made from: texts of a method, a choice on val, likelihoods, ..."""
    trains = step.kind == "personal" and (force or freshness(run.store, step).state != "fresh")
    with training_place(step.name, needed=trains), ShownProgress(step.name) as progress:
        return evaluate.part(run, step, progress, force=force)


@task(cache_policy=NO_CACHE, persist_result=False, **RETRIED)
def measure(run: Run, force: bool) -> Outcome:
    """Metrics with intervals, figures and report, from stored predictions."""
    with ShownProgress("metrics") as progress:
        return evaluate.evaluation(run, progress, force=force)


@task(cache_policy=NO_CACHE, persist_result=False, **RETRIED)
def publish_results(outcome: Outcome) -> None:
    """Methods by metrics, as a table and as the report in short, in the UI."""
    artifact = outcome.artifact
    create_table_artifact(
        key="evaluation",
        table=evaluate.result_cells(artifact),
        description=f"Methods by metrics, 95 % bootstrap intervals over users ({artifact.manifest.fingerprint})",
    )
    create_markdown_artifact(key="report", markdown=evaluate.result_markdown(artifact), description="Report")
