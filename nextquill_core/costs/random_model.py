"""A model with random weights, on which speed does not depend, and the time of a decode step.

Needs no more than torch and transformers, as `benchmarks/gpu.py` promises.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from nextquill_core.costs.shape import ModelShape
from nextquill_core.generation.decoding import PAPER
from nextquill_core.generation.engines import Request
from nextquill_core.generation.local_engine import TransformersEngine
from nextquill_core.records import TokenPair

TRIED_STEPS = 16
"""Steps in a trial of decoding."""
TRIED_S, LEAST_ROUNDS, MOST_ROUNDS = 2.0, 2, 15
"""Seconds of a trial, about, and the least and the most rounds in it."""


def random_model(shape: ModelShape, dtype: torch.dtype, device: torch.device) -> Any:
    """Return a causal language model with random weights, in evaluation mode.

    Args:
        shape: Its sizes.
        dtype: Its data type.
        device: Where it is made.
    """
    from transformers import AutoModelForCausalLM, Qwen2Config

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_size,
        max_position_embeddings=32_768,
        tie_word_embeddings=shape.tied,
        use_cache=False,
    )
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


class NoTokenizer:
    """Takes the place of a tokenizer where the text of an answer does not matter; no token ends an answer."""

    eos_token_id = None

    def decode(self, *_ids: Any, **_options: Any) -> str:
        """Return no text."""
        return ""


def decode_seconds(model: Any, pairs: Sequence[TokenPair], rows: int) -> float:
    """Return the seconds of a decode step: what answers of many tokens take longer than answers of one token.

    Args:
        model: The model.
        pairs: Examples, whose prompts are continued; at least `rows`.
        rows: Number of rows in the batch.
    """
    requests = [Request(f"{row}", pair.factual) for row, pair in enumerate(pairs[:rows])]

    def answers(tokens: int) -> Callable[[], Any]:
        engine = TransformersEngine(model, NoTokenizer(), PAPER, max_new_tokens=tokens, batch_tokens=None)
        return lambda: engine.generate(requests)

    several, one = median_seconds(answers(1 + TRIED_STEPS)), median_seconds(answers(1))
    return max(0.0, several - one) / TRIED_STEPS


def median_seconds(work: Callable[[], Any]) -> float:
    """Return the median time of the rounds that fit into `TRIED_S`, two at least, after one to warm up."""
    work()
    taken: list[float] = []
    while len(taken) < LEAST_ROUNDS or (sum(taken) < TRIED_S and len(taken) < MOST_ROUNDS):
        synchronize()
        started = time.perf_counter()
        work()
        synchronize()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def synchronize() -> None:
    """Wait until the accelerator has done its work; there is nothing to wait for on a CPU."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
