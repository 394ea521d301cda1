"""Matrix products of bfloat16 tensors on a CPU that has no instructions for them.

On such a CPU the library multiplies bfloat16 element by element, seven times slower than float32. A product of two
bfloat16 numbers is exact in float32, and both ways add in float32 and round once at the end, so computing in float32
changes nothing but the order of additions. Weights are converted for one product at a time; the model keeps its size.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

FEATURES = 512  # rows of a weight that are converted at a time: 4 MB for 2,048 columns, which stay in the cache
INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")  # of x86 and ARM, by the names that torch gives them


@cache
def half_is_slow() -> bool:
    """Return whether this CPU lacks instructions for bfloat16 products."""
    return not any(torch.cpu.get_capabilities().get(name) for name in INSTRUCTIONS)


def linear(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x·Wᵀ + b, computed in float32 where half precision is slow and the weight is not trained.

    Args:
        rows: x, shape (…, I).
        weight: W, shape (O, I).
        bias: b, shape (O,).
    """
    if not _slow(weight):
        return functional.linear(rows, weight, bias)
    result: Tensor = _FrozenProduct.apply(rows, weight)  # type: ignore[no-untyped-call]
    return result if bias is None else result + bias


def product(rows: Tensor, weight: Tensor) -> Tensor:
    """Return x·W for x (…, O) and W (O, I), the backward pass of `linear`; not differentiable itself."""
    if not _slow(weight):
        return rows @ weight
    wide = rows.flatten(0, -2).float()
    total = wide.new_zeros(len(wide), weight.shape[1])
    for features, block in _converted(weight):
        total.addmm_(wide[:, features], block)
    return total.to(weight.dtype).view(*rows.shape[:-1], -1)


def use_fast_products(model: nn.Module) -> None:
    """Make the linear layers that a model has now multiply as `linear` does, where that is faster."""
    for layer in model.modules() if half_is_slow() else ():
        if type(layer) is nn.Linear and layer.weight.dtype == torch.bfloat16:
            layer.forward = partial(_forward, layer)  # type: ignore[method-assign]


def _slow(weight: Tensor) -> bool:
    trained = weight.requires_grad and torch.is_grad_enabled()
    return weight.dtype == torch.bfloat16 and weight.device.type == "cpu" and not trained and half_is_slow()


def _forward(layer: nn.Linear, rows: Tensor) -> Tensor:
    return linear(rows, layer.weight, layer.bias)


class _FrozenProduct(torch.autograd.Function):
    """x·Wᵀ that keeps W for the backward pass, where automatic differentiation would keep its converted copy."""

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
    """Yield the weight in float32, one block of rows after the other in the same memory."""
    memory = weight.new_empty(min(FEATURES, len(weight)), weight.shape[1], dtype=torch.float32)
    for start in range(0, len(weight), FEATURES):
        part = weight[start : start + FEATURES]
        yield slice(start, start + len(part)), memory[: len(part)].copy_(part)
