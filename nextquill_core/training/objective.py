"""What is minimised, as one module: a PEFT model and the preference-weighted losses on top of both its branches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nextquill_core.model.branches import Way, best_way, branch_states
from nextquill_core.model.feed_forward import feed_forward_parts, sparing
from nextquill_core.model.forward import answer_hidden_states, decoder_of
from nextquill_core.model.head import head_of
from nextquill_core.tokens import TokenPair
from nextquill_core.training.batches import TrainExample
from nextquill_core.training.gated import gated_forward
from nextquill_core.training.losses import LossOutput, nextquill_loss
from nextquill_core.training.spec import TrainSpec


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

    def forward(self, examples: Sequence[TrainExample], denominator: float) -> LossOutput:
        """The examples' share of the step's loss; without L_p the branch without history is not computed."""
        pairs = [example.pair for example in examples]
        with sparing(self._feed_forward, gated_forward):
            hidden, null = self._states(pairs)
        return nextquill_loss(
            hidden,
            null,
            head_of(self.model),
            _flat([pair.target for pair in pairs], hidden, torch.long),
            _flat([example.weights for example in examples], hidden, torch.float32),
            torch.repeat_interleave(torch.tensor([len(pair.target) for pair in pairs], device=hidden.device)),
            alpha=self.spec.alpha,
            normalization="weight" if self.spec.normalization == "weight" else "sequence",
            denominator=denominator,
            effect_N=_flat([example.effects for example in examples], hidden, torch.float32)
            if self.spec.causal_target == "effect"
            else None,
        )

    def _states(self, pairs: Sequence[TokenPair]) -> tuple[Tensor, Tensor | None]:
        if self.spec.alpha:
            both = branch_states(self.model, pairs, self.way, through=self.spec.counterfactual_grad == "through")
            factual, counterfactual = (torch.cat([states[branch] for states in both]) for branch in (0, 1))
            return factual, counterfactual
        packed = self.way in ("packed", "tree")
        prompts, targets = [pair.factual for pair in pairs], [pair.target for pair in pairs]
        return answer_hidden_states(self.model, prompts, targets, packed=packed), None


def training_way(model: Any, spec: TrainSpec) -> Way:
    """How both branches are computed in training.

    ZeRO-3 needs as many forward calls on every rank, so all examples go in one. Gradient checkpointing computes a layer
    again without its cache, so nothing can be kept of a beginning.
    """
    if spec.zero_stage == 3:
        return "packed"
    on_cpu = _on_cpu(model)
    if spec.gradient_checkpointing or not spec.alpha:
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
