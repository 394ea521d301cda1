"""Score: causal effects under θ0, and the weights derived from them."""

from __future__ import annotations

from functools import partial

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from nextquill_core.pipeline import score
from nextquill_core.pipeline.run import Outcome, Run
from tasks.artifacts import data_key
from tasks.definition import our_task
from tasks.progress import ShownProgress
from tasks.ranks.processes import process_count
from tasks.ranks.scoring_workers import run_workers


@our_task()
def score_effects(run: Run, force: bool, launch: score.Launch | None = None) -> Outcome:
    """Forward passes with and without history; the expensive part, independent of δ, λ and ε.

    Args:
        run: The configuration and its store.
        force: Score anew even if the effects are fresh.
        launch: Starts the workers; None for processes of this machine, as many as `score.workers` says.
    """
    local = partial(run_workers, workers=process_count(run.config.score.workers))
    with ShownProgress("score") as progress:
        return score.effects(run, progress, launch or local, force=force)


@our_task()
def derive_weights(run: Run, force: bool, policy: str | None = None) -> Outcome:
    """Weights from stored effects; seconds, without the model."""
    return score.weights(run, policy, force=force)


@our_task()
def publish_effects(run: Run, outcome: Outcome) -> None:
    """In the UI: how many tokens carry preference, and what the effects look like."""
    create_table_artifact(
        key=data_key("score-effects", run.config),
        table=score.effect_summary(outcome.artifact),
        description=f"Causal effects of history on ground-truth tokens ({outcome.artifact.manifest.fingerprint})",
    )
    folder = outcome.artifact.folder
    create_markdown_artifact(
        key=data_key("effects", run.config),
        markdown=f"In colours: `{folder / score.PAGE}`.\n\n{(folder / score.MARKDOWN).read_text(encoding='utf-8')}",
        description="Histogram, strongest tokens and ten answers",
    )
