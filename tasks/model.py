"""The offline base model."""

from __future__ import annotations

from prefect import task
from prefect.cache_policies import NO_CACHE

from nextquill_core.pipeline import ingest as prepare
from nextquill_core.pipeline.run import Outcome, Run
from tasks.progress import ShownProgress
from tasks.retries import RETRIED


@task(cache_policy=NO_CACHE, persist_result=False, **RETRIED)
def train_base_model(run: Run, force: bool) -> Outcome | None:
    """Tokenizer and small Qwen2 from base profiles; None where the model comes from outside."""
    with ShownProgress("base model") as progress:
        return prepare.base_model(run, progress, force=force)
