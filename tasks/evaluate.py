"""Evaluate: what methods need and write, then metrics, figures and the report."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from nextquill_core.pipeline import Step, evaluate, freshness
from nextquill_core.pipeline.run import Outcome, Run
from storage import Artifact
from tasks.artifacts import data_key
from tasks.definition import our_task
from tasks.gpu_lock import training_place
from tasks.progress import ShownProgress

MOST_FIGURES_BYTES = 1_000_000
OPEN_REPORT = (
    "This page cannot open the report. Copy its path into the address bar of a browser on the machine that has the "
    "file, or print the path with `nextquill report --config FILE`."
)


@our_task(task_run_name="{step.name}")
def make_part(run: Run, step: Step, force: bool) -> Outcome:
    """One thing that the evaluation is made from: texts of a method, a choice on val, likelihoods, ..."""
    trains = step.kind == "personal" and (force or freshness(run.store, step).state != "fresh")
    with training_place(step.name, needed=trains), ShownProgress(step.name) as progress:
        return evaluate.part(run, step, progress, force=force)


@our_task()
def measure(run: Run, force: bool) -> Outcome:
    """Metrics with intervals, figures and report, from stored predictions."""
    with ShownProgress("metrics") as progress:
        return evaluate.evaluation(run, progress, force=force)


@our_task()
def publish_results(run: Run, outcome: Outcome) -> None:
    """Show methods by metrics, as a table and as the report in short, in the UI."""
    artifact = outcome.artifact
    create_table_artifact(
        key=data_key("evaluation", run.config),
        table=evaluate.result_cells(artifact),
        description=" ".join(
            [
                f"Methods by metrics, 95 % bootstrap intervals over users ({artifact.manifest.fingerprint}).",
                *evaluate.result_cautions(artifact),
            ]
        ),
    )
    create_markdown_artifact(
        key=data_key("report", run.config), markdown=report_markdown(artifact), description="Report"
    )


def publish_pipeline(run: Run, results: Sequence[Mapping[str, Any]]) -> None:
    """Show what became of each stage, and the report in short, on the page of the pipeline's own run.

    Args:
        run: The configuration, all of whose artifacts are there.
        results: What the stages returned, in order.
    """
    report = report_markdown(run.artifact(run.plan.evaluate))
    create_markdown_artifact(
        key=data_key("pipeline", run.config),
        markdown=f"{stages_markdown(results)}\n{report}",
        description="Stages and results",
    )


def stages_markdown(results: Sequence[Mapping[str, Any]]) -> str:
    """Return a table of stages: a link to each one's run, whether it was made or reused, and its folder."""
    lines = ["# Stages", "", "| stage | | artifact |", "| --- | --- | --- |"]
    for found in results:
        # Relative to the artifact's page, so that it works in both versions of the UI, through a tunnel and a proxy.
        stage = f"[{found['stage']}](../../runs/flow-run/{found['flow_run']})"
        lines.append(f"| {stage} | {'reused' if found['reused'] else 'made'} | `{found['path']}` |")
    return "\n".join(lines) + "\n"


def report_markdown(artifact: Artifact) -> str:
    """Return the report in short, with its figures and how to open the whole of it.

    A browser follows no link from a page of a server to a file, and the UI removes such links. Pictures have to be in
    the text itself.
    """
    figures = [shard for shard in artifact.manifest.shards if shard.path.startswith("figures/")]
    figures.sort(key=lambda shard: not shard.path.startswith("figures/metrics"))
    if sum(shard.bytes for shard in figures) > MOST_FIGURES_BYTES:
        figures = []
    pictures = [
        f"![{Path(shard.path).stem}](data:image/png;base64,"
        f"{b64encode((artifact.folder / shard.path).read_bytes()).decode()})"
        for shard in figures
    ]
    parts = [evaluate.result_markdown(artifact).rstrip(), OPEN_REPORT, *pictures]
    return "\n\n".join(parts) + "\n"
