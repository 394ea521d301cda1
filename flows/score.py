"""The score stage: causal effects of every ground-truth token, and preference weights."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.results import announce, finished, run_name
from flows.runs import open_run
from nextquill_core.config import Config
from tasks.score import derive_weights, publish_effects, score_effects


@flow(name="score", persist_result=False, flow_run_name=run_name)
def score(config: Config, force: bool = False) -> dict[str, Any]:
    """Score under θ0 with and without history, then derive weights; a change of δ, λ or ε only does the second."""
    run = open_run(config)
    effects = score_effects(run, force)
    if not effects.reused:
        announce("effects", effects)
    outcome = derive_weights(run, force)
    publish_effects(outcome)
    return finished("score", outcome)
