"""Sequences that a model reads together: rows of one cache, right-aligned, that come and go while others go on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from nextquill_core.errors import ModelError
from nextquill_core.memory import free_memory

ROOM = 64  # columns kept free for tokens to come
MOST = 262_144  # positions of a batch: 119 rows of 2,200 tokens each


class RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """A cache layer that writes a new token beside the others; the library's own copies all of them at every token.

    Args:
        keys: (B, H, T + room, d), of which the first `width` columns are filled.
        values: Likewise.
        width: T.
    """

    def __init__(self, keys: Tensor, values: Tensor, width: int) -> None:
        super().__init__()
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self._buffers = [keys, values]
        self.keys, self.values = keys[:, :, :width], values[:, :, :width]

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append the states of new tokens, (B, H, n, d) each; returns those of all tokens."""
        start: int = self.keys.shape[-2]
        end = start + key_states.shape[-2]
        if end > self._buffers[0].shape[-2]:
            self._buffers = [F.pad(buffer[:, :, :start], (0, 0, 0, end - start + ROOM)) for buffer in self._buffers]
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:end] = states
        self.keys, self.values = (buffer[:, :, :end] for buffer in self._buffers)
        return self.keys, self.values


@dataclass
class Rows:
    """What a model has read of each row.

    Attributes:
        cache: Keys and values, every row right-aligned, padding on the left.
        lengths: Real tokens of each row.
    """

    cache: Any
    lengths: list[int]


def read(model: Any, prompts: Sequence[Sequence[int]], **options: Any) -> tuple[Rows, Tensor]:
    """Read prompts in one pass.

    Args:
        model: A causal language model.
        prompts: At least one, of at least one token each.
        options: Passed on to the model.

    Returns:
        The rows, and the logits of the token behind each, fp32, shape (B, V).
    """
    lengths = [len(prompt) for prompt in prompts]
    width = max(lengths)
    padded = [[0] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    rows = Rows(DynamicCache(), lengths)
    return rows, _forward(model, rows, torch.tensor(padded, device=model.device), **options)


def advance(model: Any, rows: Rows, tokens_B: Tensor, **options: Any) -> Tensor:
    """Read one more token of each row; returns the logits of the next one, fp32, shape (B, V)."""
    rows.lengths = [length + 1 for length in rows.lengths]
    return _forward(model, rows, tokens_B[:, None], **options)


def _forward(model: Any, rows: Rows, ids_BT: Tensor, **options: Any) -> Tensor:
    """Masks and positions say of every row where its real tokens begin; no mask is needed where no row is padded."""
    new = ids_BT.shape[1]
    width = rows.cache.get_seq_length() + new
    lengths_B = torch.tensor(rows.lengths, device=ids_BT.device)
    columns_T = torch.arange(width, device=ids_BT.device)
    mask_BT = columns_T[None] >= (width - lengths_B)[:, None]
    positions_BT = columns_T[None, -new:] - (width - lengths_B)[:, None]
    output = model(
        input_ids=ids_BT,
        attention_mask=mask_BT.long() if min(rows.lengths) < width else None,
        position_ids=positions_BT.clamp(min=0),
        past_key_values=rows.cache,
        use_cache=True,
        logits_to_keep=1,
        **options,
    )
    logits: Tensor = output.logits[:, -1].float()
    return logits


def joined(parts: Sequence[tuple[Rows, Sequence[int]]]) -> Rows:
    """One set of rows out of several, as narrow as its longest row.

    Args:
        parts: Rows, and which of them to take, in this order. They are used up, layer by layer, so that no more than
            one layer is ever held twice.
    """
    lengths = [rows.lengths[row] for rows, chosen in parts for row in chosen]
    caches = [rows.cache for rows, _ in parts]
    choices = [list(chosen) for _, chosen in parts]
    layers = []
    while caches[0].layers:
        level = [cache.layers.pop(0) for cache in caches]
        keys, values = ([getattr(layer, name) for layer in level] for name in ("keys", "values"))
        width = max(lengths)
        layers.append(RoomyLayer(_stacked(keys, choices, width), _stacked(values, choices, width), width))
    return Rows(Cache(layers=layers), lengths)


def _stacked(parts: Sequence[Tensor], choices: Sequence[list[int]], width: int) -> Tensor:
    """(B, H, width + ROOM, d): the chosen rows of all parts, right-aligned at `width`, zeros before them."""
    _, heads, _, size = parts[0].shape
    whole = parts[0].new_zeros(sum(map(len, choices)), heads, width + ROOM, size)
    start = 0
    for part, chosen in zip(parts, choices, strict=True):
        kept = min(part.shape[-2], width)
        for row in chosen:  # row by row, so that nothing is copied twice
            whole[start, :, width - kept : width] = part[row, :, -kept:]
            start += 1
    return whole


@torch.inference_mode()
def room_in_memory(model: Any) -> int:
    """Positions whose keys and values fit into half of the memory that is free on the model's device now.

    The other half is for what a pass computes, and for a layer that is copied when rows come and go.
    """
    rows, _ = read(model, [[0]])
    kept: int = sum(states.nbytes for layer in rows.cache.layers for states in (layer.keys, layer.values))
    return max(1, min(MOST, free_memory(model.device) // 2 // kept))


def check_cache(model: Any) -> None:
    """Whether all that a model keeps of what it has read are keys and values.

    Raises:
        ModelError: Some layers keep a state of another kind, which cannot be joined to batches here.
    """
    config = model.config
    kinds = {type(layer) for layer in DynamicCache(config=config).layers}
    if not kinds <= {DynamicLayer, DynamicSlidingWindowLayer}:
        raise ModelError(
            "some of its layers keep something else than keys and values",
            config.name_or_path or type(model).__name__,
            "serve it and set evaluate.engine to openai",
        )
