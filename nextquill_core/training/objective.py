"""What is minimised, as one module: a PEFT model and the preference-weighted losses on top of both its branches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nextquill_core.causal.effects import token_effects
from nextquill_core.causal.weighting import token_weights
from nextquill_core.causal.weights import TokenEffects
from nextquill_core.model.branches import Way, best_way, branch_states
from nextquill_core.model.cpu.feed_forward import feed_forward_parts, sparing
from nextquill_core.model.cpu.gated import gated_forward
from nextquill_core.model.forward import answer_hidden_states, decoder_of
from nextquill_core.model.head import Head, head_of, target_logprobs
from nextquill_core.tokens import TokenPair
from nextquill_core.training.batches import TrainExample
from nextquill_core.training.losses import LossOutput, nextquill_loss
from nextquill_core.training.spec import TrainSpec


class Denominators(NamedTuple):
    """What L_n and L_p of a step are divided by: its number of samples, or the sum of its weights."""

    normal: float
    causal: float


def denominators(examples: Sequence[TrainExample], spec: TrainSpec) -> Denominators:
    """The denominators of one optimizer step over `examples`, whatever it is cut into."""
    if spec.normalization != "weight":
        return Denominators(float(len(examples)), float(len(examples)))
    weight = float(sum(sum(example.weights) for example in examples)) or 1.0
    tokens = float(sum(len(example.pair.target) for example in examples))
    return Denominators(weight, weight if spec.causal_weighted else tokens)


class PreferenceLoss(nn.Module):
    """A PEFT model and the loss on top of it: what DeepSpeed wraps.

    Args:
        model: A PEFT model.
        spec: Which losses, and how their gradients go.
        way: How both branches are computed; see `training_way`.
    """

    def __init__(self, model: Any, spec: TrainSpec, way: Way) -> None:
        super().__init__()
        self.model = model
        self.spec = spec
        self.way = way
        self._feed_forward = spared_parts(model, spec, way)

    def forward(self, examples: Sequence[TrainExample], step: Denominators) -> LossOutput:
        """Return the share of the step's loss that these examples have.

        The branch without history is computed where L_p or live weights need it.

        Args:
            examples: A micro-batch of the step.
            step: The denominators of the whole step.
        """
        pairs = [example.pair for example in examples]
        with sparing(self._feed_forward, gated_forward):
            hidden, null = self._states(pairs)
        head = head_of(self.model)
        target = _flat([pair.target for pair in pairs], hidden, torch.long)
        if self.spec.live_weights is not None and null is not None:
            weight = live_weights(head, hidden, null, target, self.spec.live_weights)
        else:
            weight = _flat([example.weights for example in examples], hidden, torch.float32)
        return nextquill_loss(
            hidden,
            null,
            head,
            target,
            weight,
            torch.repeat_interleave(torch.tensor([len(pair.target) for pair in pairs], device=hidden.device)),
            alpha=self.spec.alpha,
            normalization=self.spec.normalization,
            denominator=step.normal,
            causal_weight_N=None if self.spec.causal_weighted else torch.ones_like(weight),
            causal_denominator=step.causal,
            effect_N=_flat([example.effects for example in examples], hidden, torch.float32)
            if self.spec.causal_target == "effect"
            else None,
        )

    @contextmanager
    def plain_likelihood(self) -> Iterator[None]:
        """In this block, L_n of examples with weight 1 a token is their summed negative log-likelihood in nats.

        The denominators to give are (1, 1). Only the branch with history is computed.
        """
        spec = self.spec
        self.spec = replace(spec, alpha=0.0, live_weights=None, normalization="sequence")
        try:
            yield
        finally:
            self.spec = spec

    def _states(self, pairs: Sequence[TokenPair]) -> tuple[Tensor, Tensor | None]:
        if needs_both_branches(self.spec):
            through = bool(self.spec.alpha) and self.spec.counterfactual_grad == "through"
            both = branch_states(self.model, pairs, self.way, through=through)
            factual, counterfactual = (torch.cat([states[branch] for states in both]) for branch in (0, 1))
            return factual, counterfactual
        packed = self.way in ("packed", "tree")
        prompts, targets = [pair.factual for pair in pairs], [pair.target for pair in pairs]
        return answer_hidden_states(self.model, prompts, targets, packed=packed), None


def needs_both_branches(spec: TrainSpec) -> bool:
    """Whether the branch without history is computed: for L_p, or for weights that the trained model decides."""
    return bool(spec.alpha) or spec.live_weights is not None


@torch.no_grad()
def live_weights(
    head: Head, hidden_ND: Tensor, hidden_null_ND: Tensor, target_N: Tensor, settings: Mapping[str, Any]
) -> Tensor:
    """Preference weights from the model as it is in this step, as the official code and PerCE take them.

    The log-probabilities of both branches cost one more pass over the head each, without gradient and in blocks, so no
    vocabulary-sized tensor is kept.

    Args:
        head: The LM head.
        hidden_ND: Final hidden states with history at the positions that predict each answer token.
        hidden_null_ND: The same without history.
        target_N: Answer token ids.
        settings: The weight policy and its settings, as `weight_settings` gives them.

    Returns:
        ω in fp32, shape (N,).
    """
    logp_N, logp_null_N = (target_logprobs(head, states, target_N) for states in (hidden_ND, hidden_null_ND))
    return token_weights(TokenEffects(logp_N, logp_null_N, token_effects(logp_N, logp_null_N)), **settings)


def training_way(model: Any, spec: TrainSpec) -> Way:
    """How both branches are computed in training.

    ZeRO-3 needs as many forward calls on every rank, so all examples go in one. Gradient checkpointing computes a layer
    again without its cache, so nothing can be kept of a beginning.
    """
    if spec.zero_stage == 3:
        return "packed"
    on_cpu = _on_cpu(model)
    if spec.gradient_checkpointing or not needs_both_branches(spec):
        return "plain" if on_cpu else "packed"
    with _without_dropout(model):
        return best_way(model)


def spared_parts(model: Any, spec: TrainSpec, way: Way) -> list[nn.Module]:
    """The feed-forward parts that keep less, and of which, in the last layer, only rows that are read are computed.

    None where examples stand in one row, or where a layer is computed again in the backward pass: there nobody knows
    what is read any more.
    """
    if way in ("packed", "tree") or spec.gradient_checkpointing or not _on_cpu(model):
        return []
    with _without_dropout(model):
        return feed_forward_parts(model, gated_forward)


def _on_cpu(model: Any) -> bool:
    return bool(next(decoder_of(model).parameters()).device.type == "cpu")


@contextmanager
def _without_dropout(model: Any) -> Iterator[None]:
    """For trials: with dropout every two passes differ."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)


def _flat(values: Sequence[Sequence[float]], beside: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.tensor([value for row in values for value in row], device=beside.device, dtype=dtype)
