"""The score stage: causal effects of every ground-truth token, and preference weights."""

from __future__ import annotations

from typing import Annotated, Any

from flows.forms import SETTINGS, Form
from flows.results import announce, finished
from flows.runs import open_run
from flows.slurm import made_by_job
from flows.stage import our_flow
from nextquill_core.config import Config
from nextquill_core.pipeline.run import Outcome, Run
from nextquill_core.pipeline.score import Launch
from tasks.reasons import publish_reasons
from tasks.score import derive_weights, publish_effects, score_effects
from tasks.train import train_adapter


@our_flow("score")
def score(config: Annotated[Config, Form("score", "weights")] = SETTINGS, force: bool = False) -> dict[str, Any]:
    """Score with and without history, then derive weights; a change of δ, λ or ε only does the second.

    Under `score.effect_source: adapter` the adapters that score are trained first, each going on where it stopped.

    Args:
        config: The run's settings.
        force: Score anew, even where the effects are fresh.
    """
    run = open_run(config)
    plan = run.plan
    publish_reasons(run, "score", [plan.score, *plan.weights.values(), plan.effects, *plan.folds.values()], force)
    made = made_by_job(run, "score", [*plan.folds.values(), *plan.weights.values(), plan.score], force=force)
    outcome = made[-1] if made else _weights(run, force)
    publish_effects(run, outcome)
    return finished("score", outcome)


def _weights(run: Run, force: bool) -> Outcome:
    for fold in run.plan.folds:  # the models that score in place of θ0, if any
        trained = train_adapter(run, fold, force)
        if not trained.reused:
            announce(f"train {fold}", trained)
    effects = score_effects(run, force, _launch(run))
    if not effects.reused:
        announce("effects", effects)
    for policy in run.plan.weights:  # of methods that weight tokens in their own way
        derived = derive_weights(run, force, policy)
        if not derived.reused:
            announce(f"weights {policy}", derived)
    return derive_weights(run, force)


def _launch(run: Run) -> Launch | None:
    """What starts the workers: Ray, or None for processes of this machine."""
    settings = run.config.score
    if settings.launcher == "local":
        return None
    from flows.ray import ray_launch

    return ray_launch(settings.ray_address, settings.workers)
