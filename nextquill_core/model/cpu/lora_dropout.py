"""LoRA's dropout with less memory: B·A·dropout(x) keeps x alone, which neighbouring layers share.

As PEFT composes it, automatic differentiation keeps the noise and the dropped input of every adapted layer, each in
single precision: a third of all memory of a step. Here both are computed again in the backward pass. On a CPU only the
elements that are dropped are drawn and written, one in twenty at the usual rate, and drawn again from their seed; on
other devices one byte per element is kept.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def dropped_positions(elements: int, rate: float, seed: int) -> Tensor:
    """Return the positions of the elements that dropout drops, each with probability `rate`.

    The distance from one dropped element to the next has a geometric distribution, so one draw for each dropped element
    suffices.

    Args:
        elements: Number of elements.
        rate: Probability that an element is dropped, above 0 and below 1.
        seed: Seed of the draws.

    Returns:
        Ascending positions from 0 to `elements` − 1, int64, on the CPU.
    """
    generator = np.random.Generator(np.random.SFC64(seed))
    scale = -1 / math.log1p(-rate)
    expected = elements * rate
    draws = int(expected + 8 * math.sqrt(expected) + 16)  # enough but for one case in 10^15
    parts, last = [], -1
    while last < elements:
        distances = (generator.standard_exponential(draws, dtype=np.float32) * scale).astype(np.int64) + 1
        parts.append(last + np.cumsum(distances))
        last = int(parts[-1][-1])
    positions = np.concatenate(parts) if len(parts) > 1 else parts[0]
    return torch.from_numpy(positions[: np.searchsorted(positions, elements)])


class DroppedLinear(torch.autograd.Function):
    """W·dropout(x), with the factor 1 / (1 − rate) applied to the smaller side."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_RI: Tensor, rate: float) -> Tensor:
        """Return W·dropout(x), shape (…, R).

        Args:
            ctx: Keeps what the backward pass needs.
            x: Input, shape (…, I).
            weight_RI: W, shape (R, I).
            rate: Probability that an element is dropped, above 0 and below 1.
        """
        ctx.rate, mask = rate, None
        if x.device.type == "cpu":
            ctx.seed = int(torch.randint(2**63 - 1, ()))
        else:
            mask = torch.empty(x.shape, dtype=torch.bool, device=x.device).bernoulli_(rate)
        ctx.save_for_backward(x, mask)
        ctx.weight = weight_RI  # by reference: ZeRO-3 removes the values and brings them back
        ctx.scale = 1 / (1 - rate)
        rest = _without(_copy(x), _dropped(ctx, x, mask))
        out: Tensor = torch.nn.functional.linear(rest, weight_RI) * ctx.scale
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """Return the gradients by x and W, where they are needed."""
        x, mask = ctx.saved_tensors
        dropped = _dropped(ctx, x, mask)
        above = gradients[0] * ctx.scale
        of_x = _without(above @ ctx.weight, dropped) if ctx.needs_input_grad[0] else None
        of_weight = None
        if ctx.needs_input_grad[1]:
            of_weight = above.flatten(0, -2).T @ _without(_copy(x), dropped).flatten(0, -2)
        return of_x, of_weight, None


def _copy(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.contiguous_format)


def _dropped(ctx: Any, x: Tensor, mask: Tensor | None) -> Tensor:
    """Return the positions of the dropped elements, or the mask that marks them."""
    return dropped_positions(x.numel(), ctx.rate, ctx.seed) if mask is None else mask


def _without(values: Tensor, dropped: Tensor) -> Tensor:
    """Set the dropped elements of a contiguous tensor to 0 in place, and return it."""
    if dropped.dtype == torch.bool:
        return values.masked_fill_(dropped, 0.0)
    values.view(-1).index_fill_(0, dropped, 0.0)
    return values


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
