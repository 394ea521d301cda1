"""Hidden states at answer positions, with no padding: the one forward pass that scoring and training share.

On a GPU the branches of many examples are packed end to end, positions restarting at 0, for variable-length attention.
On a CPU a packed mask is dense and costs more than it saves, so each sequence goes through on its own; the result of a
sequence then does not depend on its neighbours at all.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_read = threading.local()


@contextmanager
def last_rows_read(count: int) -> Iterator[None]:
    """In this thread and this block, only the last `count` final states of each sequence matter."""
    before = rows_read()
    _read.rows = count
    try:
        yield
    finally:
        _read.rows = before


def rows_read() -> int | None:
    """What `last_rows_read` says here; None where all states matter."""
    rows: int | None = getattr(_read, "rows", None)
    return rows


def decoder_of(model: Any) -> Any:
    """The stack below the head; a PEFT model's adapter layers sit inside it."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return inner.get_decoder()


def answer_hidden_states(
    model: Any, prompts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], *, packed: bool | None = None
) -> Tensor:
    """Final hidden states at the positions that predict each answer token.

    Args:
        model: A causal language model, with or without adapter.
        prompts: Prompt ids of each sequence, at least one each.
        targets: Answer ids of each sequence, at least one each; the last is predicted but never read.
        packed: One call for all sequences, or one each; None for what is faster on the model's device.

    Returns:
        (N, D) in the model's dtype: the rows of all sequences one after the other, N = Σ len(target).
    """
    decoder = decoder_of(model)
    device = next(decoder.parameters()).device
    inputs = [
        torch.tensor([*prompt, *target[:-1]], device=device) for prompt, target in zip(prompts, targets, strict=True)
    ]
    if packed if packed is not None else device.type != "cpu":
        positions = torch.cat([torch.arange(len(ids), device=device) for ids in inputs])
        states_1TD = decoder(input_ids=torch.cat(inputs)[None], position_ids=positions[None], use_cache=False)
        hidden = list(states_1TD.last_hidden_state[0].split([len(ids) for ids in inputs]))
    else:
        hidden = []
        for ids, target in zip(inputs, targets, strict=True):
            with last_rows_read(len(target)):
                hidden.append(decoder(input_ids=ids[None], use_cache=False).last_hidden_state[0])
    return torch.cat([states[-len(target) :] for states, target in zip(hidden, targets, strict=True)])
