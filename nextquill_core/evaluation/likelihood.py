"""Log-likelihood of the true answers under a model: as it is, steered by the history, or with parts for each user.

Passes use the scorer, with its batches, its threads and its handling of full memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from nextquill_core.causal.scorer import Scorer, Scores
from nextquill_core.generation.decoding import Contrast, steering
from nextquill_core.methods.individual_model import IndividualModel
from nextquill_core.model.forward import branch_states
from nextquill_core.model.head import EVERYTHING, Head
from nextquill_core.tokens import TokenPair

Advance = Callable[[int], None]
"""Receives how many more examples are done."""


def _nothing(examples: int) -> None:
    """Show no progress."""


def answer_logps(
    model: Any, pairs: Sequence[TokenPair], batch_tokens: int, advance: Advance = _nothing
) -> list[Tensor]:
    """Return log p(y_t | factual prompt, y_<t) of each answer token.

    Args:
        model: A causal language model in evaluation mode; a PEFT model uses its active adapter.
        pairs: Examples; their counterfactual prompts are not used.
        batch_tokens: As for `Scorer`.
        advance: Receives how many more examples are done, pass by pass.

    Returns:
        Nats, fp32 on the CPU, (len(target),) each.

    Raises:
        ModelError: Memory does not suffice for one example alone.
    """
    with _attention_kept(model):
        return _factual(Scorer(model, batch_tokens, _counting(advance)), pairs)


def personal_logps(
    model: Any,
    pairs: Sequence[TokenPair],
    adapters: Sequence[str | None],
    batch_tokens: int,
    advance: Advance = _nothing,
) -> list[Tensor]:
    """Return `answer_logps` with a separate adapter for each example, one adapter after the other.

    Args:
        model: A PEFT model that holds all of them, as `methods.personal_adapters.with_personal_adapters` makes it.
        pairs: As for `answer_logps`.
        adapters: The name of each example's adapter; None for the model without an adapter.
        batch_tokens: As for `Scorer`.
        advance: As for `answer_logps`.

    Returns:
        As `answer_logps`.

    Raises:
        ModelError: As `answer_logps`.
    """
    with _attention_kept(model):
        return _by_adapter(Scorer(model, batch_tokens, _counting(advance)), pairs, adapters)


def contrasted_logps(
    model: Any,
    pairs: Sequence[TokenPair],
    adapters: Sequence[str],
    contrast: Contrast,
    batch_tokens: int,
    advance: Advance = _nothing,
) -> list[Tensor]:
    """Return `personal_logps` of the distributions that decoding contrasts with the model without an adapter (CoPe).

    They are normalised over the whole vocabulary. The plausibility of a contrast belongs to the choice of tokens, as
    top-p does; with it, true tokens that are not plausible would have the probability 0.

    Args:
        model: As for `personal_logps`.
        pairs: As for `answer_logps`.
        adapters: The name of each example's adapter.
        contrast: How the logits of both become one.
        batch_tokens: As for `Scorer`.
        advance: As for `answer_logps`.

    Returns:
        As `answer_logps`.

    Raises:
        ModelError: As `answer_logps`.
    """
    with _attention_kept(model):
        scorer = AdapterContrastScorer(model, batch_tokens, contrast, _counting(advance))
        return _by_adapter(scorer, pairs, adapters)


def _by_adapter(scorer: Scorer, pairs: Sequence[TokenPair], adapters: Sequence[str | None]) -> list[Tensor]:
    """Score with the factual prompt and each example's adapter, one adapter after the other."""
    found: list[Any] = [None] * len(pairs)
    model = scorer.model
    active = model.active_adapter
    try:
        for name in dict.fromkeys(adapters):
            chosen = [index for index, of in enumerate(adapters) if of == name]
            with _only(model, name):
                logps = _factual(scorer, [pairs[index] for index in chosen])
            for index, logp in zip(chosen, logps, strict=True):
                found[index] = logp
    finally:
        model.set_adapter(active, inference_mode=True)
    return found


def individual_logps(
    model: IndividualModel, pairs: Sequence[TokenPair], batch_tokens: int, advance: Advance = _nothing
) -> list[Tensor]:
    """Return `answer_logps` of a model with a part for each example, such as a style vector or soft tokens.

    Args:
        model: The model; its parts have the ids of the examples as their names.
        pairs: As for `answer_logps`, as the model's `prepared` returned them.
        batch_tokens: As for `Scorer`.
        advance: As for `answer_logps`.

    Returns:
        As `answer_logps`.

    Raises:
        ModelError: As `answer_logps`.
    """
    scorer = IndividualScorer(model, batch_tokens, _counting(advance), strategy="plain")
    return [logp for logp, _ in scorer.score(pairs)]


def steered_logps(
    model: Any, pairs: Sequence[TokenPair], strengths: Sequence[float], batch_tokens: int, advance: Advance = _nothing
) -> list[Tensor]:
    """Return the log-probability of each answer token under context steering, normalised over the vocabulary.

    Args:
        model: As for `answer_logps`.
        pairs: Examples; one without history is not steered.
        strengths: Values of s in softmax((1 + s) · log p_h − s · log p_∅): 0 is the model with history, −1 the one
            without. Each further one costs the output layer alone.
        batch_tokens: As for `Scorer`.
        advance: As for `answer_logps`.

    Returns:
        Nats, fp32 on the CPU, (len(strengths), len(target)) each.

    Raises:
        ModelError: As `answer_logps`.
    """
    with _attention_kept(model):
        scorer = SteeredScorer(model, batch_tokens, strengths, _counting(advance))
        return [logps for logps, _ in scorer.score(pairs)]


@dataclass(frozen=True)
class ContrastHead(Head):
    """A head from the states of two branches side by side, (N, 2·D), to the logits ours · z − theirs · z′.

    Attributes:
        ours: Weight of z, the logits of the first branch.
        theirs: Weight of z′, those of the second.
    """

    ours: float = 1.0
    theirs: float = 0.0

    def logits(self, hidden_ND: Tensor, vocabulary: slice = EVERYTHING) -> Tensor:
        """Return contrasted logits of a part of the vocabulary in fp32, shape (N, size of that part)."""
        first, second = (Head.logits(self, states, vocabulary) for states in hidden_ND.chunk(2, dim=1))
        return self.ours * first - self.theirs * second

    @staticmethod
    def of(head: Head, contrast: Contrast) -> ContrastHead:
        """Return this head with the weights of a contrast."""
        return ContrastHead(
            head.weight_VD, head.bias_V, head.softcap, head.scale, ours=contrast.ours, theirs=contrast.theirs
        )


class SteeredScorer(Scorer):
    """A scorer of steered log-probabilities, a row for each strength; both results of a pair are the same.

    softmax ignores the constant by which log p and z differ, so the steered distribution is
    softmax((1 + s)·z_h − s·z_∅). The weights of that sum add up to 1, so bias, scale and W can be applied after it: one
    head on (1 + s)·h_h − s·h_∅ is enough. Only a soft cap has to be applied to the logits of each branch.

    Args:
        model: As for `Scorer`.
        batch_tokens: As for `Scorer`.
        strengths: Values of s.
        on_scored: As for `Scorer`.
    """

    def __init__(
        self,
        model: Any,
        batch_tokens: int,
        strengths: Sequence[float],
        on_scored: Callable[[int, int], None] | None = None,
    ) -> None:
        super().__init__(model, batch_tokens, on_scored)
        self._strengths = strengths

    @torch.inference_mode()
    def _log_probabilities(self, pairs: Sequence[TokenPair]) -> Scores:
        branches = branch_states(self.model, pairs, self.strategy)
        targets = [pair.target for pair in pairs]
        by_strength = [self._steered(branches, targets, strength) for strength in self._strengths]
        return [(logps, logps) for logps in map(torch.stack, zip(*by_strength, strict=True))]

    def _steered(
        self, branches: Sequence[tuple[Tensor, Tensor]], targets: Sequence[list[int]], strength: float
    ) -> list[Tensor]:
        if self._head.softcap is not None:
            head = ContrastHead.of(self._head, steering(strength))  # passes side by side share the scorer's own
            return self._of_targets([torch.cat(both, dim=1) for both in branches], targets, head)
        # In single precision: the difference of two similar states in half precision has few digits left.
        joined = [
            (1 + strength) * with_history.float() - strength * without.float() for with_history, without in branches
        ]
        return self._of_targets(joined, targets)


class AdapterContrastScorer(Scorer):
    """A scorer of the model's active adapter contrasted with the bare model; both results of a pair are the same.

    The weights of this contrast need not add up to 1, so it is computed on the logits of both.

    Args:
        model: A PEFT model, for one branch at a time: passes side by side would share the selection of adapters.
        batch_tokens: As for `Scorer`.
        contrast: How the logits of both become one; its plausibility is not used.
        on_scored: As for `Scorer`.
    """

    def __init__(
        self, model: Any, batch_tokens: int, contrast: Contrast, on_scored: Callable[[int, int], None] | None = None
    ) -> None:
        super().__init__(model, batch_tokens, on_scored)
        self.side_by_side = 1
        self._head = ContrastHead.of(self._head, contrast)

    @torch.inference_mode()
    def _log_probabilities(self, pairs: Sequence[TokenPair]) -> Scores:
        ours = branch_states(self.model, pairs, self.strategy)
        with self.model.disable_adapter():
            theirs = branch_states(self.model, pairs, self.strategy)
        states = [torch.cat([mine, other], dim=1) for (mine, _), (other, _) in zip(ours, theirs, strict=True)]
        return [(logp, logp) for logp in self._of_targets(states, [pair.target for pair in pairs])]


class IndividualScorer(Scorer):
    """A scorer of examples with a part of the model for each; both results of a pair are the same."""

    @torch.inference_mode()
    def _log_probabilities(self, pairs: Sequence[TokenPair]) -> Scores:
        states = [self.model.answer_states(pair) for pair in pairs]
        return [(logp, logp) for logp in self._of_targets(states, [pair.target for pair in pairs])]


def _counting(advance: Advance) -> Callable[[int, int], None]:
    """Return what a scorer calls to report the examples of a pass."""
    return lambda examples, tokens: advance(examples)


def _factual(scorer: Scorer, pairs: Sequence[TokenPair]) -> list[Tensor]:
    """Score with the factual prompt for both branches, so that only one is computed."""
    return [logp for logp, _ in scorer.score([replace(pair, counterfactual=pair.factual) for pair in pairs])]


@contextmanager
def _only(model: Any, name: str | None) -> Iterator[None]:
    if name is None:
        with model.disable_adapter():
            yield
    else:
        model.set_adapter(name, inference_mode=True)
        yield


@contextmanager
def _attention_kept(model: Any) -> Iterator[None]:
    """Restore the attention implementation, which the scorer may change on a GPU."""
    before = model.config._attn_implementation
    try:
        yield
    finally:
        if model.config._attn_implementation != before:
            model.set_attn_implementation(before)
