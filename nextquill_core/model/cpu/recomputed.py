"""Tensors that the backward pass computes again instead of keeping them.

Automatic differentiation keeps every input of a product with a trained weight. Some of them are element-wise functions
of tensors that are kept anyway: the output of a norm, of the norm's input; the activation of a gated feed-forward part,
of the gate. These are computed again when the backward pass needs them, bit for bit as before, in the time it takes to
read them. Products are never computed again; that is what gradient checkpointing is for.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nextquill_core.model.forward import decoder_of

_active: ContextVar[Recomputed | None] = ContextVar("recomputed", default=None)


class Recomputed:
    """Decides for each tensor of a forward pass what is kept of it for the backward pass.

    Attributes:
        kept_bytes: Size of what was kept, by the address of its memory, so that memory kept twice counts once.
    """

    def __init__(self) -> None:
        self.kept_bytes: dict[int, int] = {}
        self._recipes: dict[int, _Recipe] = {}

    def note(self, tensor: Tensor, again: Callable[[], Tensor]) -> None:
        """Declare that `again` returns the values of `tensor` as they are now."""
        address = tensor.data_ptr()

        def forget(dead: weakref.ref[Tensor]) -> None:
            if address in self._recipes and self._recipes[address].tensor is dead:
                del self._recipes[address]

        self._recipes[address] = _Recipe(weakref.ref(tensor, forget), tensor._version, again)

    def pack(self, tensor: Tensor) -> Any:
        """Return what is kept of a tensor: the tensor, or how to compute it again."""
        recipe = self._recipes.get(tensor.data_ptr())
        if recipe is not None and recipe.gives(tensor):
            recipe.uses += 1
            return recipe
        storage = tensor.untyped_storage()
        self.kept_bytes[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # with its history it would hold itself, and a pass without a backward pass stay

    def unpack(self, packed: Any) -> Tensor:
        """Return the tensor of which `pack` returned `packed`."""
        return packed if isinstance(packed, Tensor) else packed.compute()


class _Recipe:
    def __init__(self, tensor: weakref.ref[Tensor], version: int, again: Callable[[], Tensor]) -> None:
        self.tensor = tensor
        self.uses = 0
        self._version = version
        self._again = again
        self._found: Tensor | None = None

    def gives(self, tensor: Tensor) -> bool:
        """Return whether this is the recipe of a tensor at the same address, and not of a view or an earlier one."""
        noted = self.tensor()
        return (
            noted is not None
            and (noted.shape, noted.stride(), noted.dtype) == (tensor.shape, tensor.stride(), tensor.dtype)
            and self._version == tensor._version
        )

    @torch.no_grad()
    def compute(self) -> Tensor:
        """Compute the tensor, once for all layers that share it as their input."""
        found = self._again() if self._found is None else self._found
        self.uses -= 1
        self._found = found if self.uses > 0 else None
        return found


def note_recomputed(tensor: Tensor, again: Callable[[], Tensor]) -> None:
    """Declare, in a block of `recomputing`, that `again` returns the values of `tensor`; outside it, do nothing."""
    if (active := _active.get()) is not None:
        active.note(tensor, again)


@contextmanager
def recomputing(norms: Sequence[nn.Module] = ()) -> Iterator[Recomputed]:
    """Keep no tensor of the forward passes in this block that can be computed again.

    Args:
        norms: Modules whose outputs are computed again from their inputs; see `norms_of`.
    """
    kept = Recomputed()
    token = _active.set(kept)
    with ExitStack() as stack:
        for norm in norms:
            stack.callback(norm.register_forward_hook(_note_output).remove)
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(kept.pack, kept.unpack))
        try:
            yield kept
        finally:
            _active.reset(token)


def norms_of(model: Any) -> list[nn.Module]:
    """Return the norms in the layers of a causal language model, with or without adapter."""
    decoder = decoder_of(model)
    layers = getattr(decoder, "layers", None) or getattr(decoder, "h", [])
    return [
        module
        for layer in layers
        for module in layer.modules()
        if type(module).__name__.endswith("Norm") and not any(module.children())
    ]


def _note_output(norm: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
    if len(inputs) == 1 and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
        note_recomputed(output, partial(type(norm).forward, norm, inputs[0].detach()))
