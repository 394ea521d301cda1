"""Style vectors of a run: the style-free texts, each user's vector, and the model that adds the vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import torch

from nextquill_core.causal.shard_queue import split_into_shards
from nextquill_core.generation.decoding import GREEDY
from nextquill_core.generation.engines import Journal, Request
from nextquill_core.methods.example_tensors import load_tensors, save_tensors
from nextquill_core.methods.registry import METHODS, Style
from nextquill_core.methods.style_vectors import (
    blocks_of,
    layer_at,
    style_differences,
    style_vector,
    styled,
    without_stop,
)
from nextquill_core.pipeline.methods import Shard, base_model, local_engine, method_encoder, planned, split_examples
from nextquill_core.pipeline.run import Run
from nextquill_core.pipeline.shard_counts import ShardCounts
from nextquill_core.pipeline.step import Step
from nextquill_core.progress import Progress, advancing
from nextquill_core.records import Example, Review
from nextquill_core.schemas import NEUTRAL
from storage import Staging

VECTORS, NEUTRAL_TEXTS = "vectors", "neutral"
"""Folders of the artifact: the vectors, and the style-free texts behind them."""


def build_style_vectors(run: Run, step: Step, staging: Staging, progress: Progress) -> dict[str, Any]:
    """Write the style vectors of the examples of val and of the measured split, and the style-free texts behind them.

    A user's past reviews are the same for both splits but for the newest, so each is read once for both.

    Args:
        run: The run; sequences and base model are in its store.
        step: `EvaluationPlan.style`.
        staging: Folder of the new artifact.
        progress: Receives the reviews that are done.
    """
    newest = run.config.evaluate.style.newest
    users: dict[tuple[str, str], list[Example]] = {}
    for split in step.settings["splits"]:
        for example in split_examples(run, split):
            users.setdefault((example.category, example.user_id), []).append(example)
    groups = [_UserReviews(of_user, newest) for of_user in users.values()]
    progress(0, 0, phase="loading the model")
    advance = advancing(progress, sum(len(group.reviews) for group in groups))
    counts = ShardCounts(staging, "reviews", "empty_texts")
    for number, part in split_into_shards(groups):
        name = f"{VECTORS}/{number}.safetensors"
        reviews = [example for group in part for example in group.as_examples()]
        if staging.has(name) and counts.restore(number):
            advance(len(reviews))
            continue
        differences = _differences(run, step, reviews, staging, number, advance)
        empty = sum(difference is None for difference in differences)
        counts.add(number, {"reviews": len(reviews), "empty_texts": empty})
        shape = len(step.settings["depths"]), base_model(run.model).config.get_text_config().hidden_size
        vectors: dict[str, torch.Tensor] = {}
        rest = iter(differences)
        for group in part:
            vectors |= group.vectors([next(rest) for _ in group.reviews], shape)
        save_tensors(staging.path(name), vectors)
        staging.finish(name, rows=len(vectors))
    return {"users": len(groups), **counts.total}


class _UserReviews:
    """The past reviews behind the vectors of one user's examples, each once.

    Args:
        examples: The user's examples.
        newest: Number of newest reviews that a vector is made of; None for all.
    """

    def __init__(self, examples: Sequence[Example], newest: int | None) -> None:
        self._examples = examples
        self._shown = [example.history[-newest:] if newest else example.history for example in examples]
        self.reviews: list[Review] = list(dict.fromkeys(review for shown in self._shown for review in shown))

    def as_examples(self) -> list[Example]:
        """Return each review as something to write without history."""
        first = self._examples[0]
        name = f"{first.category}:{first.user_id}"
        return [
            Example(f"{name}#{number}", first.user_id, first.category, first.split, review, ())
            for number, review in enumerate(self.reviews)
        ]

    def vectors(self, differences: Sequence[torch.Tensor | None], shape: tuple[int, int]) -> dict[str, torch.Tensor]:
        """Return the vector of each example, from the differences of all reviews in order."""
        of = dict(zip(self.reviews, differences, strict=True))
        return {
            example.example_id: style_vector([of[review] for review in shown], shape)
            for example, shown in zip(self._examples, self._shown, strict=True)
        }


def _differences(
    run: Run, step: Step, reviews: Sequence[Example], staging: Staging, number: str, advance: Callable[[int], None]
) -> list[torch.Tensor | None]:
    """Return how each review differs from the style-free text that is written for its query, and store the texts."""
    model, encoder = base_model(run.model), method_encoder(run, METHODS["stylevector"])
    own = encoder.encode(reviews)
    engine = local_engine(run, model, encoder, GREEDY, run.config.evaluate.style.max_tokens)
    journal = Journal(staging.scratch / f"{NEUTRAL_TEXTS}-{number}.jsonl")
    requests = [Request(pair.example_id, pair.factual) for pair in own]
    missing = journal.missing(requests)
    advance(len(requests) - len(missing))
    engine.generate(missing, advance, keep=journal.keep)
    answers = journal.answers(requests)
    neutral = encoder.encode(
        [
            replace(review, target=replace(review.target, text=answer.text))
            for review, answer in zip(reviews, answers, strict=True)
        ]
    )
    columns = {
        "review_id": [review.example_id for review in reviews],
        "text": [answer.text for answer in answers],
        "n_tokens": [answer.n_tokens for answer in answers],
        "finish_reason": [answer.finish_reason for answer in answers],
    }
    staging.write_table(f"{NEUTRAL_TEXTS}/{number}.parquet", pa.table(columns, schema=NEUTRAL))
    layers = [layer_at(depth, len(blocks_of(model))) for depth in step.settings["depths"]]
    return style_differences(
        model,
        [without_stop(pair, encoder.stop_id) for pair in own],
        [without_stop(pair, encoder.stop_id) for pair in neutral],
        layers,
    )


def styled_shards(run: Run, shards: Iterable[tuple[str, Sequence[Example]]], style: Style) -> Iterator[Shard]:
    """Yield shards with a model that adds each user's style vector.

    Args:
        run: The run; the style vectors are in its store.
        shards: Name and examples of each shard.
        style: Where and how strongly the vectors are added.
    """
    step = planned(run.plan.evaluation.style, "style vectors")
    stored = load_tensors(run.artifact(step).files(f"{VECTORS}/"), "style vectors")
    place = step.settings["depths"].index(style.depth)
    model = base_model(run.model)
    layer = layer_at(style.depth, len(blocks_of(model)))
    for name, part in shards:
        ids = [example.example_id for example in part]
        with styled(model, layer, {key: style.strength * stored[key][place] for key in ids}) as adding:
            yield Shard(name, part, adding, dict(zip(ids, ids, strict=True)))
