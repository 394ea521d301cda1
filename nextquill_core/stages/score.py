"""Scoring: effects under θ0, shard by shard; weights from stored effects."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pyarrow.parquet as pq

from nextquill_core.ingest.reader import read_examples
from nextquill_core.progress import Progress
from nextquill_core.stages.run import Outcome, Run
from storage import Artifact, Staging

EXAMPLES_A_SHARD = 256
T = TypeVar("T")


def in_shards(rows: Sequence[T], size: int = EXAMPLES_A_SHARD) -> Iterator[tuple[str, Sequence[T]]]:
    """(`00000`, rows), ...: boundaries depend on the rows alone."""
    for start in range(0, len(rows), size):
        yield f"{start // size:05d}", rows[start : start + size]


def effects(run: Run, progress: Progress, *, force: bool = False) -> Outcome:
    """The causal effect of every ground-truth token of every split."""

    def build(staging: Staging) -> dict[str, Any]:
        return _score(run, staging, progress)

    return run.make(run.plan.effects, build, force=force)


def _score(run: Run, staging: Staging, progress: Progress) -> dict[str, Any]:
    from nextquill_core.causal.scorer import effects_table, score_batch, token_budget_batches
    from nextquill_core.model.loading import load_model, load_tokenizer
    from nextquill_core.tokens import encoder_for

    model = load_model(run.model_spec)
    encoder = encoder_for(run.model_spec, load_tokenizer(run.model_spec), **run.prompt_settings)
    examples = list(read_examples(run.artifact(run.plan.ingest).folder))
    done = tokens = 0
    started = time.perf_counter()
    for number, part in in_shards(examples):
        name = f"effects/{number}.parquet"
        pairs = encoder.encode(part)  # also where the shard is finished already, so that truncation is counted whole
        if staging.has(name):
            done += len(part)
            continue
        logps: list[Any] = [None] * len(pairs)
        for batch in token_budget_batches(pairs, run.config.score.batch_tokens):
            for index, both in zip(batch, score_batch(model, [pairs[index] for index in batch]), strict=True):
                logps[index] = both
            tokens += sum(pairs[index].tokens for index in batch)
            done += len(batch)
            progress(done, len(examples), f"{tokens / (time.perf_counter() - started):,.0f} tokens/s")
        staging.write_table(name, effects_table(pairs, logps))
    return {"examples": len(examples), "truncation": dict(encoder.truncation)}


def weights(run: Run, *, force: bool = False) -> Outcome:
    """Effects and the preference weights derived from them, side by side; takes seconds and no model."""

    def build(staging: Staging) -> dict[str, Any]:
        from nextquill_core.causal.scorer import weights_table

        source = run.artifact(run.plan.effects)
        settings = run.config.weights
        category = categories(run.artifact(run.plan.ingest).folder)
        tally: dict[str, list[float]] = defaultdict(lambda: [0, 0, 0.0])
        staging.adopt(source.folder, source.shards("effects/"))
        for shard in source.shards("effects/"):
            table = pq.read_table(source.folder / shard.path)
            derived = weights_table(table, delta=settings.delta, high=settings.high, low=settings.low)
            staging.write_table(shard.path.replace("effects/", "weights/"), derived)
            for example_id, effect in zip(table["example_id"].to_pylist(), table["effect"].to_pylist(), strict=True):
                counts = tally[category[example_id]]
                counts[0] += len(effect)
                counts[1] += sum(value > settings.delta for value in effect)
                counts[2] += sum(effect)
        per_category = {
            name: {"tokens": tokens, "preference_tokens": above, "mean_effect": total / tokens}
            for name, (tokens, above, total) in tally.items()
        }
        return {**source.manifest.stats, "per_category": per_category}

    return run.make(run.plan.score, build, force=force)


def categories(sequences: Path) -> dict[str, str]:
    """The category of each example of an ingest artifact."""
    found: dict[str, str] = {}
    for shard in sorted((sequences / "examples").glob("*.parquet")):
        table = pq.read_table(shard, columns=["example_id", "category"])
        found.update(zip(table["example_id"].to_pylist(), table["category"].to_pylist(), strict=True))
    return found


def effect_summary(score: Artifact) -> list[dict[str, Any]]:
    """A row a category for people: tokens, the share above δ, the mean effect."""
    return [
        {
            "category": name,
            "tokens": f"{counts['tokens']:,}",
            "preference tokens": f"{counts['preference_tokens'] / counts['tokens']:.1%}",
            "mean effect": f"{counts['mean_effect']:+.4f}",
        }
        for name, counts in score.manifest.stats["per_category"].items()
    ]
