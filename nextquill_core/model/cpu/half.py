"""Products of half-precision tensors on a CPU that has no instructions for them.

There the library multiplies bfloat16 element by element, seven times slower than float32. A product of two bfloat16
numbers is exact in float32, and both ways add in float32 and round once at the end, so going through float32 changes
nothing but the order of additions. Weights are converted for one product at a time; the model keeps its size.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

FEATURES = 512  # of a weight are converted at a time: 4 MB of 2,048 numbers each, which stay in the cache
INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")  # of x86 and ARM, by the names torch gives them


@cache
def half_is_slow() -> bool:
    """Whether this CPU lacks instructions for products of bfloat16."""
    return not any(torch.cpu.get_capabilities().get(name) for name in INSTRUCTIONS)


def linear(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`, by way of float32 where half precision is slow and the weight does not learn."""
    if not _slow(weight):
        return functional.linear(rows, weight, bias)
    result: Tensor = _FrozenProduct.apply(rows, weight)  # type: ignore[no-untyped-call]
    return result if bias is None else result + bias


def product(rows: Tensor, weight: Tensor) -> Tensor:
    """x·W, where `linear` has x·Wᵀ; not for automatic differentiation."""
    if not _slow(weight):
        return rows @ weight
    wide = rows.flatten(0, -2).float()
    total = wide.new_zeros(len(wide), weight.shape[1])
    for features, block in _converted(weight):
        total.addmm_(wide[:, features], block)
    return total.to(weight.dtype).view(*rows.shape[:-1], -1)


def _slow(weight: Tensor) -> bool:
    learns = weight.requires_grad and torch.is_grad_enabled()
    return weight.dtype == torch.bfloat16 and weight.device.type == "cpu" and not learns and half_is_slow()


def spare_half_products(model: nn.Module) -> None:
    """Let the linear layers that the model has now multiply as `linear` does, where that is faster."""
    for layer in model.modules() if half_is_slow() else ():
        if type(layer) is nn.Linear and layer.weight.dtype == torch.bfloat16:
            layer.forward = partial(_forward, layer)  # type: ignore[method-assign]


def _forward(layer: nn.Linear, rows: Tensor) -> Tensor:
    return linear(rows, layer.weight, layer.bias)


class _FrozenProduct(torch.autograd.Function):
    """x·Wᵀ, keeping the W that is there anyway, where automatic differentiation would keep its converted copy."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        wide = rows.float()
        result = rows.new_empty(*rows.shape[:-1], len(weight))
        for features, block in _converted(weight):
            result[..., features] = functional.linear(wide, block)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (weight,) = ctx.saved_tensors
        return product(grads[0], weight), None


def _converted(weight: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """The weight in float32, block by block of its rows, in the same memory one after the other."""
    memory = weight.new_empty(min(FEATURES, len(weight)), weight.shape[1], dtype=torch.float32)
    for start in range(0, len(weight), FEATURES):
        part = weight[start : start + FEATURES]
        yield slice(start, start + len(part)), memory[: len(part)].copy_(part)
