"""Gated feed-forward parts that keep less for the backward pass.

W_down(a(g) · u), with g = W_gate(x) and u = W_up(x), is what most present models have in each layer. Of it, automatic
differentiation keeps g, a(g), u and, for LoRA on W_down, a(g) · u, each five times as wide as a state. From g and u the
other two are made again in the time it takes to read them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nextquill_core.model.cpu.feed_forward import own_forward

GATED = ("gate_proj", "up_proj", "down_proj", "act_fn")  # and nothing else, such as a dropout of its own


def gated_forward(part: nn.Module, states_BTD: Tensor) -> Tensor:
    """What the part makes of states; one that is not gated, or otherwise named, does it in its own way."""
    if {name for name, _ in part.named_children()} != set(GATED):
        return own_forward(part, states_BTD)
    gate_proj, up_proj, down_proj, activation = (getattr(part, name) for name in GATED)
    gate, up = gate_proj(states_BTD), up_proj(states_BTD)
    remade = _Remade(activation, gate.detach(), up.detach())
    with torch.autograd.graph.saved_tensors_hooks(remade.pack, remade.unpack):
        activated = activation(gate)
        remade.activated = activated.data_ptr()
        product = activated * up
        remade.product = product.data_ptr()
        result: Tensor = down_proj(product)
    return result


class _Remade:
    """Packs the two tensors as their names, and makes them again."""

    def __init__(self, activation: nn.Module, gate: Tensor, up: Tensor) -> None:
        self.activation, self.gate, self.up = activation, gate, up
        self.activated = self.product = 0

    def pack(self, tensor: Tensor) -> Any:
        if tensor.shape == self.gate.shape and tensor.data_ptr() in (self.activated, self.product):
            return "activated" if tensor.data_ptr() == self.activated else "product"
        return tensor

    def unpack(self, packed: Any) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        activated: Tensor = self.activation(self.gate)
        return activated if packed == "activated" else activated * self.up
