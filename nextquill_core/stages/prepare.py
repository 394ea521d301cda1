"""The first stages: raw files into user sequences, and the offline base model."""

from __future__ import annotations

from typing import Any

from nextquill_core.progress import Progress
from nextquill_core.stages.run import Outcome, Run
from storage import Staging


def ingest(run: Run, progress: Progress, *, force: bool = False) -> Outcome:
    """Sequences, items, examples and quarantine from the raw files."""
    from nextquill_core.ingest.stage import make_sequences

    def build(staging: Staging) -> dict[str, Any]:
        return make_sequences(run.config.ingest, list(run.plan.files), staging, progress)

    return run.make(run.plan.ingest, build, force=force)


def base_model(run: Run, progress: Progress, *, force: bool = False) -> Outcome | None:
    """The offline base model, or None where the model comes from outside."""
    step = run.plan.model
    if step is None:
        return None

    def build(staging: Staging) -> dict[str, Any]:
        from nextquill_core.ingest.reader import base_profiles
        from nextquill_core.model.tiny import TinySpec, train_tiny_model

        prompt = run.config.prompt
        spec = TinySpec(
            **run.config.model.tiny.model_dump(),
            max_history=prompt.max_history,
            max_tokens=prompt.max_prompt_tokens + prompt.max_target_tokens,
            seed=run.config.seed,
        )
        profiles = base_profiles(run.artifact(run.plan.ingest).folder)
        return dict(train_tiny_model(profiles, spec, staging.path("model"), progress))

    return run.make(step, build, force=force)
