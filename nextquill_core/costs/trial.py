"""How fast this machine works: short trials of scoring, training and decoding on a model of the same widths.

The model has random weights, on which speed does not depend, and at most `TRIED_LAYERS` layers. On a CPU the examples
are shortened until a trial takes seconds. What is measured is the code that a run uses.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from nextquill_core.causal.scorer import Scorer
from nextquill_core.config import Config, DeepSpeedConfig, ModelConfig, PromptConfig
from nextquill_core.costs.random_model import decode_seconds, median_seconds, random_model
from nextquill_core.costs.rates import MOST_POSITIONS, Rates
from nextquill_core.costs.shape import BYTES, ModelShape
from nextquill_core.costs.sizes import Lengths
from nextquill_core.costs.work import Branches
from nextquill_core.memory import free_memory
from nextquill_core.model.cpu import make_fast
from nextquill_core.model.loading import best_device
from nextquill_core.orders import TrainOrder
from nextquill_core.records import TokenPair
from nextquill_core.training.data import TrainExample
from nextquill_core.training.losses import PreferenceLoss, denominators, training_strategy
from nextquill_core.training.worker import with_adapter

HERE = "this machine"
TRIED_LAYERS = 4
TRIED_PAIRS = 2
TRIED_ROWS = 8
BUDGET = 1.5e10
"""Operations of one example on a CPU, to which its length is reduced."""
SHORTEST = 24
"""Tokens that a part of a shortened example has at least."""


def drawn_pairs(count: int, vocabulary: int, lengths: Lengths) -> list[TokenPair]:
    """Return pairs of random ids, all with the same lengths.

    Args:
        count: Number of pairs.
        vocabulary: Number of ids to draw from.
        lengths: Numbers of tokens; they are rounded.
    """
    draw = random.Random(0)  # noqa: S311 - a seeded draw, not a secret

    def ids(size: float) -> list[int]:
        return [draw.randrange(vocabulary) for _ in range(max(1, round(size)))]

    pairs = []
    for number in range(count):
        opening, rest = ids(lengths.opening), ids(lengths.bare - lengths.opening)
        history = ids(lengths.prompt - lengths.bare)
        pairs.append(TokenPair(str(number), opening + history + rest, opening + rest, ids(lengths.answer)))
    return pairs


def measure_here(shape: ModelShape, dtype: str, lengths: Lengths, config: Config) -> Rates:
    """Return how fast this machine works with a model of these sizes.

    Args:
        shape: The model.
        dtype: Its data type, `model.dtype`.
        lengths: Mean lengths of the examples.
        config: The settings; those of training decide what is tried.
    """
    device = best_device()
    tried = replace(shape, layers=min(shape.layers, TRIED_LAYERS))
    lengths = _shortened(tried, lengths) if device.type == "cpu" else lengths
    model = make_fast(random_model(tried, getattr(torch, dtype), device))
    pairs = drawn_pairs(TRIED_PAIRS, tried.vocabulary, lengths)
    one = Branches.of(tried, lengths).both

    scorer = Scorer(model, config.score.batch_tokens)
    forward = one.forward * len(pairs) / median_seconds(lambda: scorer.score(pairs))
    single, several = decode_seconds(model, pairs, 1), decode_seconds(model, pairs * TRIED_ROWS, TRIED_ROWS)
    row_s = max(0.0, several - single) / (TRIED_ROWS - 1)
    here = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
    positions = free_memory(device) / 2 / (shape.cached * BYTES[dtype])
    training = one.training * len(pairs) / _training_seconds(model, pairs, config)
    return Rates(
        HERE,
        forward,
        training,
        max(0.0, single - row_s) * shape.parameters / tried.parameters,
        row_s * (shape.body + shape.head) / (tried.body + tried.head),
        min(MOST_POSITIONS, positions),
        f"measured now on the {here}, with {tried.layers} layers and examples of "
        f"{lengths.prompt + lengths.answer:,.0f} tokens",
    )


def _training_seconds(model: Any, pairs: Sequence[TokenPair], config: Config) -> float:
    """Return the seconds of an optimizer step over the pairs, one after the other, with L_p."""
    nowhere = Path("nowhere")
    settings = config.train.model_copy(update={"deepspeed": DeepSpeedConfig(zero_stage=0), "weights_from": "stored"})
    order = TrainOrder(
        output=nowhere, sequences=nowhere, model=ModelConfig(), prompt=PromptConfig(), train=settings, seed=0,
        weighted=True,
    )  # fmt: skip
    adapted = with_adapter(model, order).train()
    objective = PreferenceLoss(adapted, order, training_strategy(adapted, order))
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=settings.learning_rate)
    examples = [TrainExample(pair, [0.5] * len(pair.target)) for pair in pairs]

    def step() -> None:
        for example in examples:
            objective([example], denominators(examples, order)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return median_seconds(step)


def _shortened(shape: ModelShape, lengths: Lengths) -> Lengths:
    factor = min(1.0, BUDGET / Branches.of(shape, lengths).both.forward)
    prompt, bare, opening, answer = (
        max(min(value, SHORTEST), value * factor)
        for value in (lengths.prompt, lengths.bare, lengths.opening, lengths.answer)
    )
    return Lengths(prompt, bare, min(opening, bare - 1), answer)
