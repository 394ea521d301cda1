"""Scoring: log-probabilities of every answer token with and without history under a frozen model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from nextquill_core.causal.weights import token_effects
from nextquill_core.errors import ModelError
from nextquill_core.memory import is_out_of_memory
from nextquill_core.model.cpu import completed, fast_feed_forward, feed_forward_parts, passes_at_once
from nextquill_core.model.forward import Strategy, best_strategy, branch_states, computed_tokens, token_budget_batches
from nextquill_core.model.head import Head, head_of, target_logprobs
from nextquill_core.schemas import EFFECTS
from nextquill_core.tokens import TokenPair

logger = logging.getLogger(__name__)
Scores = list[tuple[Tensor, Tensor]]
"""(logp_factual, logp_counterfactual) of each example, nats, fp32 on the CPU, shape (T,) each for T answer tokens."""


class Scorer:
    """Computes log-probabilities under a frozen model in the cheapest way for its device.

    On a CPU every example goes through the model by itself, with as many examples side by side as there are threads.
    No number then depends on the other examples or on the number of threads. On a GPU examples are packed, so the last
    bits of a number depend on the token budget, and on nothing else.

    Args:
        model: A Hugging Face causal language model in evaluation mode.
        batch_tokens: Token positions of one forward pass on a GPU; a single example may have more. Halved when memory
            runs out; on a CPU the number of examples side by side is halved instead.
        on_scored: Called after each pass with the number of examples and of token positions in it.
        strategy: How the branches are computed; None for the best strategy that the model supports.
    """

    def __init__(
        self,
        model: Any,
        batch_tokens: int,
        on_scored: Callable[[int, int], None] | None = None,
        *,
        strategy: Strategy | None = None,
    ) -> None:
        self.model = model
        self.batch_tokens = batch_tokens
        with torch.inference_mode():
            self.strategy: Strategy = strategy or best_strategy(model)
        self._on_cpu = next(model.parameters()).device.type == "cpu"
        self._one_by_one = self._on_cpu and self.strategy in ("reuse", "plain")
        self.side_by_side = passes_at_once(model)
        self._feed_forward = feed_forward_parts(model) if self._one_by_one else []
        self._on_scored = on_scored or (lambda examples, tokens: None)
        self._head = head_of(model)

    def score(self, pairs: Sequence[TokenPair]) -> Scores:
        """Return the log-probabilities of each pair's answer tokens in both branches.

        A pair without history has only one branch, so its effects are exactly 0.

        Raises:
            ModelError: Memory does not suffice for a single example.
        """
        tokens = [computed_tokens(pair, self.strategy) for pair in pairs]
        found: dict[int, tuple[Tensor, Tensor]] = {}
        passes = self._passes_side_by_side if self._one_by_one else self._passes_in_turn
        while waiting := [index for index in range(len(pairs)) if index not in found]:
            try:
                with fast_feed_forward(self._feed_forward), closing(passes(pairs, waiting, tokens)) as scored:
                    for batch, scores in scored:
                        found.update(zip(batch, scores, strict=True))
                        self._on_scored(len(batch), sum(tokens[index] for index in batch))
            except _OutOfMemory as error:
                self._reduce(error.pairs)
        return [found[index] for index in range(len(pairs))]

    def _passes_in_turn(
        self, pairs: Sequence[TokenPair], waiting: Sequence[int], tokens: Sequence[int]
    ) -> Generator[tuple[list[int], Scores], None, None]:
        for chosen in token_budget_batches([tokens[index] for index in waiting], self.batch_tokens):
            batch = [waiting[position] for position in chosen]
            yield batch, self._score([pairs[index] for index in batch])

    def _passes_side_by_side(
        self, pairs: Sequence[TokenPair], waiting: Sequence[int], tokens: Sequence[int]
    ) -> Generator[tuple[list[int], Scores], None, None]:
        longest_first = sorted(waiting, key=lambda index: (-tokens[index], index))
        with closing(completed(lambda index: self._score([pairs[index]]), longest_first, self.side_by_side)) as passes:
            for position, scores in passes:
                yield [longest_first[position]], scores

    def _score(self, pairs: Sequence[TokenPair]) -> Scores:
        try:
            return self._log_probabilities(pairs)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        raise _OutOfMemory(pairs)  # outside the handler, where nothing holds the tensors of the failed pass

    @torch.inference_mode()
    def _log_probabilities(self, pairs: Sequence[TokenPair]) -> Scores:
        both = branch_states(self.model, pairs, self.strategy)
        distinct = [states if pair.has_history else states[:1] for pair, states in zip(pairs, both, strict=True)]
        targets = [pair.target * len(states) for pair, states in zip(pairs, distinct, strict=True)]
        logps = self._of_targets([torch.cat(states) for states in distinct], targets)
        branches = [found.split(len(pair.target)) for pair, found in zip(pairs, logps, strict=True)]
        return [(found[0], found[-1]) for found in branches]

    def _of_targets(
        self, states: Sequence[Tensor], targets: Sequence[list[int]], head: Head | None = None
    ) -> list[Tensor]:
        """Return the log-probabilities of each example's targets, example by example on a CPU.

        There, a matrix product rounds differently with the number of its rows.

        Args:
            states: The state before each target, (T, D) for each example.
            targets: The token ids, T for each example.
            head: A head in place of the model's.
        """
        head = head or self._head
        ids = [torch.tensor(target, device=rows.device) for rows, target in zip(states, targets, strict=True)]
        if self._on_cpu:
            return [target_logprobs(head, hidden, target) for hidden, target in zip(states, ids, strict=True)]
        together = target_logprobs(head, torch.cat(list(states)), torch.cat(ids)).cpu()
        return list(together.split([len(target) for target in targets]))

    def _reduce(self, tried: Sequence[TokenPair]) -> None:
        """Halve what is computed at once.

        Raises:
            ModelError: It was a single example already.
        """
        tokens = sum(computed_tokens(pair, self.strategy) for pair in tried)
        if len(tried) == 1 and (not self._one_by_one or self.side_by_side == 1):
            raise ModelError(
                f"out of memory with one example of {tokens} tokens",
                tried[0].example_id,
                "lower prompt.max_prompt_tokens, or use a larger device",
            )
        if self._one_by_one:
            self.side_by_side //= 2
            logger.warning("out of memory: continuing with %d examples side by side", self.side_by_side)
        else:
            self.batch_tokens = max(1, min(self.batch_tokens, tokens) // 2)
            logger.warning("out of memory with %d tokens in a batch: continuing with %d", tokens, self.batch_tokens)
            if not self._on_cpu:
                torch.accelerator.empty_cache()


def effects_table(pairs: Sequence[TokenPair], logps: Scores) -> pa.Table:
    """Return a table of schema EFFECTS with one row per pair."""
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


class _OutOfMemory(Exception):  # noqa: N818 - says what happened
    def __init__(self, pairs: Sequence[TokenPair]) -> None:
        super().__init__(len(pairs))
        self.pairs = pairs
