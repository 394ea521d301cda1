"""The key-value cache of a batch: prompts enter it by prefill, tokens by decode steps, and rows join and leave it.

On a CPU prompts are processed in parallel, one per core, with as little computation as possible, because prefill is
most of the work where answers are short.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from nextquill_core.errors import ModelError
from nextquill_core.memory import free_memory
from nextquill_core.model.cpu import fast_feed_forward, feed_forward_parts, passes_at_once, side_by_side
from nextquill_core.model.forward import last_rows_read

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
        """Append the states of new tokens, (B, H, n, d) each, and return those of all tokens."""
        start: int = self.keys.shape[-2]
        end = start + key_states.shape[-2]
        if end > self._buffers[0].shape[-2]:
            self._buffers = [F.pad(buffer[:, :, :start], (0, 0, 0, end - start + ROOM)) for buffer in self._buffers]
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:end] = states
        self.keys, self.values = (buffer[:, :, :end] for buffer in self._buffers)
        return self.keys, self.values


@dataclass
class CachedRows:
    """The cached tokens of a batch of rows.

    Attributes:
        cache: Keys and values, every row right-aligned, padding on the left.
        lengths: Number of real tokens in each row.
    """

    cache: Any
    lengths: list[int]


def prefill(model: Any, prompts: Sequence[Sequence[int]], **options: Any) -> tuple[CachedRows, Tensor]:
    """Process prompts in one forward pass.

    Args:
        model: A causal language model.
        prompts: Token ids; at least one prompt of at least one token.
        options: Further arguments of the model.

    Returns:
        The cached rows, and the logits of the next token of each, fp32, shape (B, V).
    """
    lengths = [len(prompt) for prompt in prompts]
    width = max(lengths)
    padded = [[0] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    rows = CachedRows(DynamicCache(), lengths)
    return rows, _forward(model, rows, torch.tensor(padded, device=model.device), **options)


def decode_step(model: Any, rows: CachedRows, tokens_B: Tensor, **options: Any) -> Tensor:
    """Append one token to each row.

    Args:
        model: A causal language model.
        rows: Its cached rows; they are extended in place.
        tokens_B: The token ids.
        options: Further arguments of the model.

    Returns:
        The logits of the next token of each row, fp32, shape (B, V).
    """
    rows.lengths = [length + 1 for length in rows.lengths]
    return _forward(model, rows, tokens_B[:, None], **options)


def _forward(model: Any, rows: CachedRows, ids_BT: Tensor, **options: Any) -> Tensor:
    """Run the model with the mask and positions of right-aligned rows; without padding no mask is needed."""
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


def joined(parts: Sequence[tuple[CachedRows, Sequence[int]]]) -> CachedRows:
    """Join rows of several caches into one, as narrow as its longest row.

    Args:
        parts: Cached rows, and the indices of those to take, in this order. Their caches are emptied layer by layer, so
            that at most one layer is held twice.
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
    return CachedRows(Cache(layers=layers), lengths)


def _stacked(parts: Sequence[Tensor], choices: Sequence[list[int]], width: int) -> Tensor:
    """Return the chosen rows of all parts, right-aligned at `width` after zeros, (B, H, width + ROOM, d)."""
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
    """Return the number of positions whose keys and values fit into half of the device's free memory.

    The other half is for activations, and for a layer that is copied when rows join or leave.
    """
    rows, _ = prefill(model, [[0]])
    kept: int = sum(states.nbytes for layer in rows.cache.layers for states in (layer.keys, layer.values))
    return max(1, min(MOST, free_memory(model.device) // 2 // kept))


def check_cache(model: Any) -> None:
    """Check that a model caches keys and values only.

    Raises:
        ModelError: Some layers cache another state, whose rows cannot be joined.
    """
    config = model.config
    kinds = {type(layer) for layer in DynamicCache(config=config).layers}
    if not kinds <= {DynamicLayer, DynamicSlidingWindowLayer}:
        raise ModelError(
            "some of its layers cache something else than keys and values",
            config.name_or_path or type(model).__name__,
            "serve it and set evaluate.engine to openai",
        )


TOGETHER = 512  # positions up to which prompts share a pass; a longer prompt occupies a thread alone


class Prefiller:
    """Processes prompts with one model.

    On a CPU several prompts pass through the model in parallel, each on one thread, and the feed-forward part of the
    last layer computes only the last token of each prompt. Both change the numbers by rounding only. A model that
    allows only one of them, or neither, runs without.

    Attributes:
        at_once: Number of parallel passes; the number of prompts is best a multiple of it.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.at_once = passes_at_once(model)
        on_cpu = next(model.parameters()).device.type == "cpu"
        self._feed_forward = feed_forward_parts(model) if on_cpu else []

    def __call__(
        self, prompts: Sequence[Sequence[int]], options: Callable[[slice], dict[str, Any]]
    ) -> list[tuple[CachedRows, Tensor]]:
        """Process all prompts; short neighbours share a pass.

        Args:
            prompts: Token ids, of at least one token each.
            options: Further arguments of the model for a slice of the prompts.

        Returns:
            The result of `prefill` for each group of neighbours, in order.
        """
        groups = [(prompts[group], options(group)) for group in together(prompts)]
        with_options = any(options for _, options in groups)  # PEFT sets them by hooks, which all passes would share
        with fast_feed_forward(self._feed_forward):
            return side_by_side(self._pass, groups, 1 if with_options else self.at_once)

    def _pass(self, group: tuple[Sequence[Sequence[int]], dict[str, Any]]) -> tuple[CachedRows, Tensor]:
        prompts, options = group
        with last_rows_read(1):
            return prefill(self.model, prompts, **options)


def together(prompts: Sequence[Sequence[int]]) -> Iterator[slice]:
    """Yield the groups of neighbours that share a pass."""
    start = longest = 0
    for end, prompt in enumerate(prompts):
        longest = max(longest, len(prompt))
        if end > start and longest * (end + 1 - start) > TOGETHER:
            yield slice(start, end)
            start, longest = end, len(prompt)
    if start < len(prompts):
        yield slice(start, len(prompts))
