"""The feed-forward part of each layer on a CPU: in blocks of rows that stay in the cache, and in the last layer only
for the rows that are read.

Past attention every row goes its own way, so neither changes a state that is read, but for rounding. What a model's
feed-forward part returns for a row is all that is relied on; a model whose parts are other is seen by a trial on a few
tokens and is left as it is.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nextquill_core.model.forward import decoder_of

ROWS = 512  # of 11,008 numbers each in the largest model meant: 22 MB; of 2,752: 6 MB
TRIAL, TRIAL_READ, TOLERANCE = 24, 5, 1e-4
_read = threading.local()


@contextmanager
def last_rows_read(count: int) -> Iterator[None]:
    """In this thread and this block, only the last `count` final states of each sequence matter."""
    before = getattr(_read, "rows", None)
    _read.rows = count
    try:
        yield
    finally:
        _read.rows = before


@contextmanager
def sparing(parts: Sequence[nn.Module]) -> Iterator[None]:
    """Let these feed-forward parts, the last layer's last, compute no more than is read, and in blocks."""
    for part in parts:
        part.forward = partial(_in_blocks, type(part).forward.__get__(part), last=part is parts[-1])
    try:
        yield
    finally:
        for part in parts:
            del part.forward  # the class's own shows again


def feed_forward_parts(model: Any) -> list[nn.Module]:
    """What `sparing` may be used on: one part a layer, or none where the model is built otherwise."""
    decoder = decoder_of(model)
    parts = [getattr(layer, "mlp", None) for layer in getattr(decoder, "layers", None) or getattr(decoder, "h", [])]
    plain = [part for part in parts if isinstance(part, nn.Module) and "forward" not in vars(part)]
    return plain if plain and len(plain) == len(parts) and _same_states(decoder, plain) else []


@torch.inference_mode()
def _same_states(decoder: Any, parts: Sequence[nn.Module]) -> bool:
    device = next(decoder.parameters()).device
    ids = torch.arange(TRIAL, device=device)[None] % decoder.get_input_embeddings().num_embeddings
    expected = decoder(input_ids=ids, use_cache=False).last_hidden_state[:, -TRIAL_READ:]
    try:
        with sparing(parts), last_rows_read(TRIAL_READ):
            got = decoder(input_ids=ids, use_cache=False).last_hidden_state[:, -TRIAL_READ:]
    except Exception:  # whatever a model's code does: it can always be left as it is
        return False
    tolerance = TOLERANCE if expected.dtype == torch.float32 else 100 * TOLERANCE
    return bool((got - expected).abs().max() <= tolerance * expected.abs().max())


def _in_blocks(forward: Any, states_BTD: Tensor, *, last: bool) -> Tensor:
    rows = states_BTD.shape[1]
    read = getattr(_read, "rows", None)
    first = max(0, rows - read) if last and read is not None else 0
    if not first and rows <= ROWS:
        whole: Tensor = forward(states_BTD)
        return whole
    result = torch.zeros_like(states_BTD)
    for start in range(first, rows, ROWS):
        block = slice(start, start + ROWS)
        result[:, block] = forward(states_BTD[:, block])
    return result
