"""Scoring: log-probabilities of every answer token with and without history, under a frozen model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from nextquill_core.causal.effects import token_effects
from nextquill_core.causal.weights import preference_weights
from nextquill_core.model.forward import answer_hidden_states
from nextquill_core.model.head import head_of, target_logprobs
from nextquill_core.schemas import EFFECTS, WEIGHTS
from nextquill_core.tokens import TokenPair


def token_budget_batches(pairs: Sequence[TokenPair], batch_tokens: int) -> Iterator[list[int]]:
    """Indices of `pairs`, longest first, in batches of at most `batch_tokens` positions (one pair may exceed it)."""
    order = sorted(range(len(pairs)), key=lambda index: (-pairs[index].tokens, index))
    batch: list[int] = []
    used = 0
    for index in order:
        if batch and used + pairs[index].tokens > batch_tokens:
            yield batch
            batch, used = [], 0
        batch.append(index)
        used += pairs[index].tokens
    if batch:
        yield batch


@torch.inference_mode()
def score_batch(model: Any, pairs: Sequence[TokenPair]) -> list[tuple[Tensor, Tensor]]:
    """(logp_factual, logp_counterfactual) of each pair, nats, fp32 on the CPU, shape (len(target),) each.

    A pair without history has one branch only, so its effects are exactly 0. The head is applied sequence by sequence:
    a matrix product rounds differently with the number of its rows, and no number here shall depend on what else was
    in the batch. (On a GPU the packed forward pass still may.)
    """
    with_history = [pair for pair in pairs if pair.has_history]
    prompts = [pair.factual for pair in pairs] + [pair.counterfactual for pair in with_history]
    targets = [pair.target for pair in pairs] + [pair.target for pair in with_history]
    hidden_ND = answer_hidden_states(model, prompts, targets)
    head = head_of(model)
    branches = [
        target_logprobs(head, hidden_TD, torch.tensor(target, device=hidden_TD.device)).cpu()
        for hidden_TD, target in zip(hidden_ND.split([len(target) for target in targets]), targets, strict=True)
    ]
    counterfactual = iter(branches[len(pairs) :])
    return [
        (factual, next(counterfactual) if pair.has_history else factual)
        for pair, factual in zip(pairs, branches, strict=False)
    ]


def effects_table(pairs: Sequence[TokenPair], logps: Sequence[tuple[Tensor, Tensor]]) -> pa.Table:
    """A table of schema EFFECTS, one row a pair."""
    return pa.table(
        {
            "example_id": [pair.example_id for pair in pairs],
            "target_ids": [pair.target for pair in pairs],
            "logp_factual": [factual.numpy() for factual, _ in logps],
            "logp_counterfactual": [counterfactual.numpy() for _, counterfactual in logps],
            "effect": [token_effects(*both).numpy() for both in logps],
        },
        schema=EFFECTS,
    )


def weights_table(effects: pa.Table, *, delta: float, high: float, low: float) -> pa.Table:
    """A table of schema WEIGHTS from one of schema EFFECTS; the model is not needed."""
    column = effects["effect"].combine_chunks()
    weight = preference_weights(torch.tensor(column.flatten().to_numpy()), delta=delta, high=high, low=low)
    lists = pa.ListArray.from_arrays(_offsets(column), pa.array(weight.numpy()))
    return pa.table({"example_id": effects["example_id"], "weight": lists}, schema=WEIGHTS)


def _offsets(column: pa.ListArray) -> pa.Array:
    lengths = column.value_lengths().to_numpy()
    return pa.array([0, *lengths.cumsum()], type=pa.int32())
