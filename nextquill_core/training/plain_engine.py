"""The part of DeepSpeed's engine that the trainer uses, in one process and torch alone: for machines without it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class PlainEngine:
    """Accumulates gradients, clips and steps as one DeepSpeed rank does, under the names of DeepSpeed's engine.

    Args:
        module: The model with its loss.
        optimizer: Holds what is trained; its state is tensors alone, as AdamW's.
        max_grad_norm: Gradients are scaled down to this norm.
    """

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, max_grad_norm: float) -> None:
        self.module = module
        self.optimizer = optimizer
        self._max_grad_norm = max_grad_norm
        self._trained = {name: value for name, value in module.named_parameters() if value.requires_grad}
        self._at_boundary = True
        self._norm = 0.0
        self.device: torch.device = next(module.parameters()).device

    def __call__(self, *inputs: Any) -> Any:
        """The module's output."""
        return self.module(*inputs)

    def train(self) -> None:
        """Turn dropout on."""
        self.module.train()

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a part of the step's loss."""
        torch.autograd.backward(loss)

    def set_gradient_accumulation_boundary(self, is_boundary: bool) -> None:
        """Whether the next `step` ends the optimizer step."""
        self._at_boundary = is_boundary

    def step(self) -> None:
        """At the boundary: clip, step and forget the gradients."""
        if not self._at_boundary:
            return
        self._norm = float(nn.utils.clip_grad_norm_(self._trained.values(), self._max_grad_norm))
        self.optimizer.step()
        self.optimizer.zero_grad()

    def get_global_grad_norm(self) -> float:
        """The norm of the last step's gradients before clipping."""
        return self._norm
