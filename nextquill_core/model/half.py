"""Products of half-precision tensors on a CPU that has no instructions for them.

There the library multiplies bfloat16 element by element, seven times slower than float32. A product of two bfloat16
numbers is exact in float32, and both ways add in float32 and round once at the end, so going through float32 changes
nothing but the order of additions. Weights are converted for one product at a time; the model keeps its size.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")  # of x86 and ARM, by the names torch gives them


@cache
def half_is_slow() -> bool:
    """Whether this CPU lacks instructions for products of bfloat16."""
    return not any(torch.cpu.get_capabilities().get(name) for name in INSTRUCTIONS)


def linear(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`, by way of float32 where half precision is slow and the weight is frozen."""
    if rows.device.type != "cpu" or weight.dtype != torch.bfloat16 or weight.requires_grad or not half_is_slow():
        return functional.linear(rows, weight, bias)
    product: Tensor = _FrozenProduct.apply(rows, weight)  # type: ignore[no-untyped-call]
    return product if bias is None else product + bias


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
        return functional.linear(rows.float(), weight.float()).to(weight.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (weight,) = ctx.saved_tensors
        return (grads[0].float() @ weight.float()).to(grads[0].dtype), None
