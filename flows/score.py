"""The score stage: causal effects of every token of the true reviews, and preference weights."""

from __future__ import annotations

from typing import Annotated, Any

from flows.forms import SETTINGS, Form
from flows.results import finished
from flows.runs import open_run
from flows.stage import make_stage, nextquill_flow
from nextquill_core.config import Config
from tasks.ui import publish_effects


@nextquill_flow("score")
def score(config: Annotated[Config, Form("score", "weights")] = SETTINGS, force: bool = False) -> dict[str, Any]:
    """Score with and without history, then derive weights; a change of δ, λ or ε only does the second.

    Under `score.effect_source: adapter` and `trained` adapters score; they are trained first, and each resumes where it
    stopped.

    Args:
        config: The run's settings.
        force: Score again, even where the effects are up to date.
    """
    run = open_run(config)
    plan = run.plan
    steps = [*plan.scoring.values(), plan.effects, *plan.weights.values(), plan.score]
    *_, outcome = make_stage(run, "score", steps, force=force)
    publish_effects(run, outcome)
    return finished("score", outcome)
