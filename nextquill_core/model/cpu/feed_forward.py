"""The feed-forward part of each layer on a CPU: in blocks of rows that stay in the cache, and in the last layer only
for the rows that are read.

Past attention every row goes its own way, so neither changes a state that is read, but for rounding. What a model's
feed-forward part returns for a row is all that is relied on; a model whose parts are other is seen by a trial on a few
tokens and is left as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nextquill_core.model.forward import decoder_of, last_rows_read, rows_read

ROWS = 512  # of 11,008 numbers each in the largest model meant: 22 MB; of 2,752: 6 MB
TRIAL, TRIAL_READ, TOLERANCE = 24, 5, 1e-4


PartForward = Callable[[Any, Tensor], Tensor]
"""What a feed-forward part makes of states (B, T, D): another way to compute what its own `forward` does."""


def own_forward(part: nn.Module, states_BTD: Tensor) -> Tensor:
    """As the model's code has it."""
    result: Tensor = type(part).forward(part, states_BTD)
    return result


@contextmanager
def sparing(parts: Sequence[nn.Module], forward: PartForward = own_forward) -> Iterator[None]:
    """Let these feed-forward parts, the last layer's last, compute no more than is read, and in blocks."""
    for part in parts:
        part.forward = partial(_in_blocks, partial(forward, part), last=part is parts[-1])
    try:
        yield
    finally:
        for part in parts:
            del part.forward  # the class's own shows again


def feed_forward_parts(model: Any, forward: PartForward = own_forward) -> list[nn.Module]:
    """What `sparing` may be used on: one part a layer, or none where the model is built otherwise."""
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
        with sparing(parts, forward), last_rows_read(TRIAL_READ):
            got = decoder(input_ids=ids, use_cache=False).last_hidden_state[:, -TRIAL_READ:]
    except Exception:  # whatever a model's code does: it can always be left as it is
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
