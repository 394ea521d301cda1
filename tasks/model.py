"""The offline base model."""

from __future__ import annotations

from nextquill_core.pipeline import ingest as prepare
from nextquill_core.pipeline.run import Outcome, Run
from tasks.definition import our_task
from tasks.progress import ShownProgress


@our_task()
def train_base_model(run: Run, force: bool) -> Outcome | None:
    """Tokenizer and small Qwen2 from base profiles; None where the model comes from outside."""
    with ShownProgress("base model") as progress:
        return prepare.base_model(run, progress, force=force)
