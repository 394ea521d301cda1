"""Evaluation: predictions by method and preset, each an artifact of its own, then everything that follows from them."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nextquill_core.evaluation.methods import METHODS
from nextquill_core.ingest.reader import read_examples
from nextquill_core.model.identity import ModelSpec
from nextquill_core.progress import Progress
from nextquill_core.schemas import METRICS, PREDICTIONS, Example
from nextquill_core.stages.run import Outcome, Run
from nextquill_core.stages.score import in_shards
from storage import Artifact, Staging, write_json, write_text


def predictions(run: Run, method: str, decoding: str, progress: Progress, *, force: bool = False) -> Outcome:
    """What one method writes under one decoding preset, for every example of the split."""

    def build(staging: Staging) -> dict[str, Any]:
        return _generate(run, method, decoding, staging, progress)

    return run.make(run.plan.predictions[method, decoding], build, force=force)


def _generate(run: Run, method: str, decoding: str, staging: Staging, progress: Progress) -> dict[str, Any]:
    from nextquill_core.evaluation.generate import DECODINGS, generate
    from nextquill_core.model.loading import load_tokenizer
    from nextquill_core.tokens import encoder_for

    settings = run.config.evaluate
    tokenizer = load_tokenizer(run.model_spec)
    limits = run.prompt_settings | ({} if METHODS[method].history else {"max_history": 0})
    encoder = encoder_for(run.model_spec, tokenizer, **limits)
    examples = _examples(run)
    adapter = run.artifact(run.plan.train[method]).folder / "adapter" if method in run.plan.train else None
    finished, stopped = 0, 0

    def advance(count: int) -> None:
        nonlocal finished
        finished += count
        progress(finished, len(examples))

    with _adapted(_base_model(run.model_spec), adapter) as model:
        for number, part in in_shards(examples):
            name = f"predictions/{method}-{decoding}-{number}.parquet"
            if not staging.has(name):
                answers = generate(
                    model,
                    tokenizer,
                    [pair.factual for pair in encoder.encode(part)],
                    DECODINGS[decoding],
                    max_new_tokens=settings.max_new_tokens,
                    batch_tokens=settings.batch_tokens,
                    advance=advance,
                )
                columns = {
                    "example_id": [example.example_id for example in part],
                    "method": [method] * len(part),
                    "decoding": [decoding] * len(part),
                    "text": [answer.text for answer in answers],
                    "n_tokens": [answer.n_tokens for answer in answers],
                    "finish_reason": [answer.finish_reason for answer in answers],
                }
                staging.write_table(name, pa.table(columns, schema=PREDICTIONS))
            reasons = pq.read_table(staging.path(name), columns=["finish_reason"])["finish_reason"]
            stopped += reasons.to_pylist().count("stop")
    return {"examples": len(examples), "stopped": stopped, "truncation": dict(encoder.truncation)}


def _examples(run: Run) -> list[Example]:
    return list(read_examples(run.artifact(run.plan.ingest).folder, (run.config.evaluate.split,)))


@functools.lru_cache(maxsize=1)
def _base_model(spec: ModelSpec) -> Any:
    from nextquill_core.model.loading import load_model

    return load_model(spec)


@contextmanager
def _adapted(base: Any, adapter: Path | None) -> Iterator[Any]:
    """The base model with an adapter on it for the length of the block; the base is loaded once for all methods."""
    if adapter is None:
        yield base
        return
    from peft import PeftModel

    model = PeftModel.from_pretrained(base, str(adapter))
    try:
        yield model.eval()
    finally:
        model.unload()
