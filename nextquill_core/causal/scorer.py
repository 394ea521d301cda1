"""Scoring: log-probabilities of every answer token with and without history, under a frozen model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from nextquill_core.causal.effects import token_effects
from nextquill_core.errors import ModelError
from nextquill_core.model.branches import Way, best_way, branch_states, computed_tokens
from nextquill_core.model.cpu.feed_forward import feed_forward_parts, sparing
from nextquill_core.model.head import head_of, target_logprobs
from nextquill_core.schemas import EFFECTS
from nextquill_core.tokens import TokenPair

logger = logging.getLogger(__name__)
Scored = tuple[list[int], list[tuple[Tensor, Tensor]]]
"""Indices of examples, and the scores of each."""


class Scorer:
    """A frozen model, and the cheapest way to get log-probabilities out of it.

    On a CPU every example goes through the model on its own, as many side by side as there are threads, each on one:
    products and what lies between them then keep all cores busy, and no number depends on what else was in a batch or
    on the number of threads, as it would where several threads share a product. On a GPU examples are packed, so the
    last bits of a number depend on the token budget, and on nothing else.

    Args:
        model: A Hugging Face causal language model in evaluation mode.
        batch_tokens: Token positions of one forward pass on a GPU; one example may have more. Halved when memory runs
            out; on a CPU it is the number of examples side by side that is.
        on_tokens: Told the number of token positions after each pass.
        way: How the branches are computed; None for the best one the model can do.
    """

    def __init__(
        self,
        model: Any,
        batch_tokens: int,
        on_tokens: Callable[[int], None] | None = None,
        *,
        way: Way | None = None,
    ) -> None:
        self.model = model
        self.batch_tokens = batch_tokens
        with torch.inference_mode():
            self.way: Way = way or best_way(model)
        self._on_cpu = next(model.parameters()).device.type == "cpu"
        self._alone = self._on_cpu and self.way in ("reuse", "plain")
        self.side_by_side = torch.get_num_threads() if _can_share(model) else 1
        self._feed_forward = feed_forward_parts(model) if self._alone else []
        self._on_tokens = on_tokens or (lambda tokens: None)
        self._head = head_of(model)

    def score(self, pairs: Sequence[TokenPair]) -> list[tuple[Tensor, Tensor]]:
        """(logp_factual, logp_counterfactual) of each pair, nats, fp32 on the CPU, shape (len(target),) each.

        A pair without history has one branch only, so its effects are exactly 0.

        Raises:
            ModelError: Memory does not suffice for one example alone.
        """
        tokens = [computed_tokens(pair, self.way) for pair in pairs]
        found: dict[int, tuple[Tensor, Tensor]] = {}
        passes = self._side_by_side if self._alone else self._in_turn
        while waiting := [index for index in range(len(pairs)) if index not in found]:
            try:
                with sparing(self._feed_forward):
                    for batch, scored in passes(pairs, waiting, tokens):
                        found.update(zip(batch, scored, strict=True))
                        self._on_tokens(sum(tokens[index] for index in batch))
            except _OutOfMemory as error:
                self._make_do_with_less(error.pairs)
        return [found[index] for index in range(len(pairs))]

    def _in_turn(self, pairs: Sequence[TokenPair], waiting: Sequence[int], tokens: Sequence[int]) -> Iterator[Scored]:
        for chosen in token_budget_batches([tokens[index] for index in waiting], self.batch_tokens):
            batch = [waiting[place] for place in chosen]
            yield batch, self._score([pairs[index] for index in batch])

    def _side_by_side(
        self, pairs: Sequence[TokenPair], waiting: Sequence[int], tokens: Sequence[int]
    ) -> Iterator[Scored]:
        threads = torch.get_num_threads()
        with ThreadPoolExecutor(self.side_by_side, "scorer", initializer=lambda: torch.set_num_threads(1)) as pool:
            longest_first = sorted(waiting, key=lambda index: (-tokens[index], index))
            futures = {pool.submit(self._score, [pairs[index]]): index for index in longest_first}
            try:
                for future in as_completed(futures):
                    yield [futures[future]], future.result()
            finally:
                for future in futures:
                    future.cancel()
        torch.set_num_threads(threads)  # what the pool's threads set is also what later threads of others begin with

    def _score(self, pairs: Sequence[TokenPair]) -> list[tuple[Tensor, Tensor]]:
        try:
            return self._log_probabilities(pairs)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        raise _OutOfMemory(pairs)  # out here, where nothing holds the tensors of the failed pass any more

    @torch.inference_mode()
    def _log_probabilities(self, pairs: Sequence[TokenPair]) -> list[tuple[Tensor, Tensor]]:
        both = branch_states(self.model, pairs, self.way)
        distinct = [states if pair.has_history else states[:1] for pair, states in zip(pairs, both, strict=True)]
        targets = [pair.target * len(states) for pair, states in zip(pairs, distinct, strict=True)]
        logps = self._of_targets([torch.cat(states) for states in distinct], targets)
        branches = [found.split(len(pair.target)) for pair, found in zip(pairs, logps, strict=True)]
        return [(found[0], found[-1]) for found in branches]

    def _of_targets(self, states: Sequence[Tensor], targets: Sequence[list[int]]) -> list[Tensor]:
        """Example by example on a CPU, because products round differently with the number of their rows."""
        ids = [torch.tensor(target, device=rows.device) for rows, target in zip(states, targets, strict=True)]
        if self._on_cpu:
            return [target_logprobs(self._head, hidden, target) for hidden, target in zip(states, ids, strict=True)]
        together = target_logprobs(self._head, torch.cat(list(states)), torch.cat(ids)).cpu()
        return list(together.split([len(target) for target in targets]))

    def _make_do_with_less(self, tried: Sequence[TokenPair]) -> None:
        """Halve what is computed at once.

        Raises:
            ModelError: It was one example already.
        """
        tokens = sum(computed_tokens(pair, self.way) for pair in tried)
        if len(tried) == 1 and (not self._alone or self.side_by_side == 1):
            raise ModelError(
                f"out of memory with one example of {tokens} tokens",
                tried[0].example_id,
                "lower prompt.max_prompt_tokens, or use a larger device",
            )
        if self._alone:
            self.side_by_side //= 2
            logger.warning("out of memory: going on with %d examples side by side", self.side_by_side)
        else:
            self.batch_tokens = max(1, min(self.batch_tokens, tokens) // 2)
            logger.warning("out of memory with %d tokens a batch: going on with %d", tokens, self.batch_tokens)
            if not self._on_cpu:
                torch.accelerator.empty_cache()


def token_budget_batches(tokens: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices of things of these sizes, largest first, in batches of at most `batch_tokens` (one may exceed it)."""
    order = sorted(range(len(tokens)), key=lambda index: (-tokens[index], index))
    batch: list[int] = []
    used = 0
    for index in order:
        if batch and used + tokens[index] > batch_tokens:
            yield batch
            batch, used = [], 0
        batch.append(index)
        used += tokens[index]
    if batch:
        yield batch


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


class _OutOfMemory(Exception):  # noqa: N818 - says what happened
    def __init__(self, pairs: Sequence[TokenPair]) -> None:
        super().__init__(len(pairs))
        self.pairs = pairs


def is_out_of_memory(error: BaseException) -> bool:
    """Accelerators have an error of their own; the CPU's allocator only says so."""
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or "can't allocate memory" in str(error) or "out of memory" in str(error).lower()


def _can_share(model: Any) -> bool:
    """Whether threads may go through the model side by side: some position embeddings change while they are used."""
    rope = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    return not any("dynamic" in str(value) or "longrope" in str(value) for value in rope.values())
