"""Feed-forward parts of a decoder on a CPU: blocks of rows that fit the cache, and unread rows left out.

After attention, each row is computed separately from the others. So rows can be computed in blocks, and in the last
layer only those rows that are read (`model.forward.last_rows_read`). Neither changes a state that is read, except by
rounding. A trial on a few tokens compares the states; a model for which they differ is left unchanged.

In training, gated parts also keep less for the backward pass. Of W_down(a(g) · u), with g = W_gate(x) and u = W_up(x),
automatic differentiation keeps g, a(g), u and, for LoRA on W_down, a(g) · u, each up to five times as wide as a state.
Two of them are computed again from g and u (`model.cpu.recomputed`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nextquill_core.model.cpu.recomputed import note_recomputed
from nextquill_core.model.forward import decoder_of, last_rows_read, rows_read

ROWS = 512  # of up to 11,008 numbers in the largest models: 22 MB; of 2,752 numbers: 6 MB
TRIAL, TRIAL_READ, TOLERANCE = 24, 5, 1e-4
GATED = ("gate_proj", "up_proj", "down_proj", "act_fn")
"""The children of a gated part; one with further children, such as a dropout, computes something else."""

PartForward = Callable[[Any, Tensor], Tensor]
"""Forward pass of a feed-forward part: the part and states (B, T, D) in, states (B, T, D) out."""


def own_forward(part: nn.Module, states_BTD: Tensor) -> Tensor:
    """Forward pass as the model's code defines it."""
    result: Tensor = type(part).forward(part, states_BTD)
    return result


def gated_forward(part: nn.Module, states_BTD: Tensor) -> Tensor:
    """Forward pass of a gated part that keeps less in a block of `recomputing`.

    Parts of another structure use `own_forward`.
    """
    if {name for name, _ in part.named_children()} != set(GATED):
        return own_forward(part, states_BTD)
    gate_proj, up_proj, down_proj, activation = (getattr(part, name) for name in GATED)
    gate, up = gate_proj(states_BTD), up_proj(states_BTD)
    kept_gate, kept_up = gate.detach(), up.detach()
    activated = activation(gate)
    note_recomputed(activated, lambda: activation(kept_gate))
    product = activated * up
    note_recomputed(product, lambda: activation(kept_gate) * kept_up)
    result: Tensor = down_proj(product)
    return result


@contextmanager
def fast_feed_forward(parts: Sequence[nn.Module], forward: PartForward = own_forward) -> Iterator[None]:
    """Use the faster forward pass of these parts within the block.

    Args:
        parts: What `feed_forward_parts` returned for the same `forward`: one part per layer, the last layer's last.
        forward: Forward pass of one block of rows.
    """
    for part in parts:
        part.forward = partial(_in_blocks, partial(forward, part), last=part is parts[-1])
    try:
        yield
    finally:
        for part in parts:
            del part.forward  # the class's own method shows again


def feed_forward_parts(model: Any, forward: PartForward = own_forward) -> list[nn.Module]:
    """Return the parts that `fast_feed_forward` may be used on: one per layer, or none for models of another structure.

    Args:
        model: A causal language model, with or without adapter.
        forward: Forward pass that will be used, which a trial compares with the model's own.
    """
    decoder = decoder_of(model)
    parts = [getattr(layer, "mlp", None) for layer in getattr(decoder, "layers", None) or getattr(decoder, "h", [])]
    plain = [part for part in parts if isinstance(part, nn.Module) and "forward" not in vars(part)]
    return plain if plain and len(plain) == len(parts) and _same_states(decoder, plain, forward) else []


@torch.inference_mode()
def _same_states(decoder: Any, parts: Sequence[nn.Module], forward: PartForward) -> bool:
    device = next(decoder.parameters()).device
    length = min(TRIAL, getattr(decoder.config, "max_position_embeddings", None) or TRIAL)
    ids = torch.arange(length, device=device)[None] % decoder.get_input_embeddings().num_embeddings
    expected = decoder(input_ids=ids, use_cache=False).last_hidden_state[:, -TRIAL_READ:]
    try:
        with fast_feed_forward(parts, forward), last_rows_read(TRIAL_READ):
            got = decoder(input_ids=ids, use_cache=False).last_hidden_state[:, -TRIAL_READ:]
    except Exception:  # a model's code may raise anything; the model is then left unchanged
        return False
    tolerance = TOLERANCE if expected.dtype == torch.float32 else 100 * TOLERANCE
    return bool((got - expected).abs().max() <= tolerance * expected.abs().max())


def _in_blocks(forward: Any, states_BTD: Tensor, *, last: bool) -> Tensor:
    rows = states_BTD.shape[1]
    first = max(0, rows - (rows_read() or rows)) if last else 0
    at_once = rows if torch.is_grad_enabled() else ROWS  # the backward pass needs all blocks anyway
    blocks = [forward(states_BTD[:, start : start + at_once]) for start in range(first, rows, at_once)]
    unread = [states_BTD.new_zeros(len(states_BTD), first, states_BTD.shape[2])] if first else []
    return torch.cat([*unread, *blocks], dim=1) if len([*unread, *blocks]) > 1 else blocks[0]
