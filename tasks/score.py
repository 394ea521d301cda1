"""Score: causal effects under θ0, and the weights derived from them."""

from __future__ import annotations

from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from nextquill_core.stages import score
from nextquill_core.stages.run import Outcome, Run
from tasks.progress import ShownProgress


@task(cache_policy=NO_CACHE, persist_result=False)
def score_effects(run: Run, force: bool) -> Outcome:
    """Forward passes with and without history; the expensive part, independent of δ, λ and ε."""
    with ShownProgress("score") as progress:
        return score.effects(run, progress, force=force)


@task(cache_policy=NO_CACHE, persist_result=False)
def derive_weights(run: Run, force: bool) -> Outcome:
    """Weights from stored effects; seconds, without the model."""
    return score.weights(run, force=force)


@task(cache_policy=NO_CACHE, persist_result=False)
def publish_effects(outcome: Outcome) -> None:
    """How many tokens carry preference, as a table in the UI."""
    create_table_artifact(
        key="score-effects",
        table=score.effect_summary(outcome.artifact),
        description=f"Causal effects of history on ground-truth tokens ({outcome.artifact.manifest.fingerprint})",
    )
