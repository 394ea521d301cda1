"""What is minimised, as one module: a PEFT model and the preference-weighted losses on top of both its branches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nextquill_core.model.branches import Way, best_way, branch_states
from nextquill_core.model.forward import answer_hidden_states, decoder_of
from nextquill_core.model.head import head_of
from nextquill_core.training.batches import TrainExample
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

    def forward(self, examples: Sequence[TrainExample], denominator: float) -> LossOutput:
        """The examples' share of the step's loss; without L_p the branch without history is not computed."""
        pairs = [example.pair for example in examples]
        null = None
        if self.spec.alpha:
            both = branch_states(self.model, pairs, self.way, through=self.spec.counterfactual_grad == "through")
            hidden, null = (torch.cat([states[branch] for states in both]) for branch in (0, 1))
        else:
            packed = self.way in ("packed", "tree")
            prompts, targets = [pair.factual for pair in pairs], [pair.target for pair in pairs]
            hidden = answer_hidden_states(self.model, prompts, targets, packed=packed)
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


def training_way(model: Any, spec: TrainSpec) -> Way:
    """How both branches are computed in training.

    ZeRO-3 needs as many forward calls on every rank, so all examples go in one. Gradient checkpointing computes a layer
    again without its cache, so nothing can be kept of a beginning.
    """
    if spec.zero_stage == 3:
        return "packed"
    on_cpu = next(decoder_of(model).parameters()).device.type == "cpu"
    if spec.gradient_checkpointing or not spec.alpha:
        return "plain" if on_cpu else "packed"
    training = model.training
    model.eval()  # dropout would make every two passes differ
    try:
        with torch.inference_mode():
            return best_way(model)
    finally:
        model.train(training)


def _flat(values: Sequence[Sequence[float]], beside: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.tensor([value for row in values for value in row], device=beside.device, dtype=dtype)
