"""LoRA's dropout with less memory: B·A·dropout(x) keeps one byte per element for the backward pass.

As PEFT composes it, automatic differentiation keeps the noise and the dropped input of every adapted layer, each in
single precision: a third of all memory of a step. Here both are computed again from x, which neighbouring layers share,
and the mask.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

LANES = 4  # 16-bit draws in a 64-bit number


def kept_elements(x: Tensor, rate: float) -> Tensor:
    """Return which elements dropout keeps, each with probability 1 − rate to 16 bits.

    On a CPU one 64-bit draw decides four elements, because single draws take a tenth of a training step.

    Args:
        x: Input of the dropout, any shape.
        rate: Probability that an element is dropped.

    Returns:
        A bool tensor of x's shape on x's device.
    """
    if x.device.type != "cpu":
        return torch.empty(x.shape, dtype=torch.bool, device=x.device).bernoulli_(1 - rate)
    drawn = torch.empty(-(-x.numel() // LANES), dtype=torch.int64).random_(-(2**63), None)
    return drawn.view(torch.int16)[: x.numel()].view(x.shape) >= round(rate * 2**16) - 2**15


class DroppedLinear(torch.autograd.Function):
    """W·dropout(x), with the factor 1 / (1 − rate) applied to the smaller side."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_RI: Tensor, rate: float) -> Tensor:
        """Return W·dropout(x), shape (…, R).

        Args:
            ctx: Keeps what the backward pass needs.
            x: Input, shape (…, I).
            weight_RI: W, shape (R, I).
            rate: Probability that an element is dropped.
        """
        kept = kept_elements(x, rate)
        ctx.save_for_backward(x, kept)
        ctx.weight = weight_RI  # by reference: ZeRO-3 removes the values and brings them back
        ctx.scale = 1 / (1 - rate)
        out: Tensor = torch.nn.functional.linear(x * kept, weight_RI) * ctx.scale
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """Return the gradients by x and W, where they are needed."""
        x, kept = ctx.saved_tensors
        above = gradients[0] * ctx.scale
        of_x = (above @ ctx.weight).mul_(kept) if ctx.needs_input_grad[0] else None
        of_weight = None
        if ctx.needs_input_grad[1]:
            of_weight = above.flatten(0, -2).T @ (x * kept).flatten(0, -2)
        return of_x, of_weight, None


def use_lean_dropout(model: Any) -> None:
    """Make the LoRA layers of a PEFT model use `DroppedLinear`; their saved parameters do not change."""
    from peft.tuners.lora import LoraLayer

    for layer in model.modules():
        if not isinstance(layer, LoraLayer):
            continue
        for name, dropout in layer.lora_dropout.items():
            if isinstance(dropout, nn.Dropout) and name in layer.lora_A and type(layer.lora_A[name]) is nn.Linear:
                layer.lora_dropout[name] = nn.Identity()
                layer.lora_A[name].forward = partial(_forward, layer.lora_A[name], dropout.p)


def _forward(linear: nn.Linear, rate: float, x: Tensor) -> Tensor:
    if not linear.training or rate == 0:
        return torch.nn.functional.linear(x, linear.weight)
    result: Tensor = DroppedLinear.apply(x, linear.weight, rate)  # type: ignore[no-untyped-call]
    return result
