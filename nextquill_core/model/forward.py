"""Forward passes that scoring and training share: hidden states at answer positions, without padding.

On a GPU many sequences are packed end to end, with positions that restart at 0, for variable-length attention. On a CPU
a packed mask is dense and costs more than it saves, so each sequence runs by itself, and its result does not depend on
other sequences.

Both branches of an example share a prefix, which is computed once: their prompts begin with the same tokens, because
the instructions and the item come before the history. On a CPU the factual branch runs first, and the counterfactual
branch reuses its keys and values of the prefix. On a GPU each example is a tree in the row: prefix, rest with
history, rest without history, with a mask that separates the rests. A trial on a few tokens detects a model that does
not support this; its branches are then computed separately.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import Any, Literal

import torch
from torch import Tensor

from nextquill_core.records import TokenPair

_read = threading.local()


@contextmanager
def last_rows_read(count: int) -> Iterator[None]:
    """Declare that, in this thread and block, only the last `count` final states of each sequence are read."""
    before = rows_read()
    _read.rows = count
    try:
        yield
    finally:
        _read.rows = before


def rows_read() -> int | None:
    """Return how many final states are read in this thread; None where all are."""
    rows: int | None = getattr(_read, "rows", None)
    return rows


def decoder_of(model: Any) -> Any:
    """Return the stack of layers below the head; a PEFT model's adapter layers are inside it."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return inner.get_decoder()


def device_of(model: Any) -> torch.device:
    """Return the device of a model, which has all of its layers on one."""
    device: torch.device = next(decoder_of(model).parameters()).device
    return device


def answer_hidden_states(
    model: Any, prompts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], *, packed: bool | None = None
) -> Tensor:
    """Return the final hidden states at the positions that predict each answer token.

    Args:
        model: A causal language model, with or without adapter.
        prompts: Prompt ids of each sequence, at least one each.
        targets: Answer ids of each sequence, at least one each; the last is predicted but never read.
        packed: One call for all sequences, or one call for each; None for what is faster on the model's device.

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


Strategy = Literal["reuse", "tree", "packed", "plain"]
"""How both branches are computed.

`reuse`: one example at a time, with the keys and values of the prefix reused; `tree`: many examples in one row, with
each prefix once; `packed`: many examples in one row, with each branch in full; `plain`: one branch at a time.
"""

SHORTEST_PREFIX = 16  # tokens; sharing a shorter prefix costs more than it saves
TREE_BLOCK = 128  # tokens in a block of flex attention's mask
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}  # relative to the largest state, in a trial
ROUGH_TOLERANCE = 5e-2  # in half precision
TRIAL = (40, 24, 9, 8)  # tokens of prefix, history, rest and answer
logger = logging.getLogger(__name__)


def shared_prefix(pair: TokenPair) -> int:
    """Return how many tokens both prompts begin with, or 0 if they are too few to be worth sharing.

    The last token of each prompt never counts, because it predicts an answer token.
    """
    prompts = zip(pair.factual[:-1], pair.counterfactual[:-1], strict=False)
    shared = sum(1 for _ in takewhile(lambda both: both[0] == both[1], prompts))
    return shared if shared >= SHORTEST_PREFIX else 0


def computed_tokens(pair: TokenPair, strategy: Strategy = "reuse") -> int:
    """Return the token positions that computing both branches takes; a pair with equal prompts has one branch."""
    read = len(pair.target) - 1
    if not pair.has_history:
        return len(pair.factual) + read
    shared = shared_prefix(pair) if strategy in ("reuse", "tree") else 0
    return len(pair.factual) + len(pair.counterfactual) + 2 * read - shared


def branch_states(
    model: Any, pairs: Sequence[TokenPair], strategy: Strategy, *, through: bool = True
) -> list[tuple[Tensor, Tensor]]:
    """Return the final hidden states of both branches at the positions that predict each answer token.

    Args:
        model: A causal language model, with or without adapter.
        pairs: Examples. If both prompts are equal, there is only one pass and both results are the same tensor.
        strategy: What `best_strategy` returned.
        through: Whether gradients flow through the branch without history.

    Returns:
        (factual, counterfactual) of each pair, each (len(target), D) in the model's dtype.
    """
    if strategy == "reuse":
        return [_reused(model, pair, through) for pair in pairs]
    if strategy == "tree":
        return [(factual, _attached(other, through)) for factual, other in _tree(model, pairs)]
    differing = [pair for pair in pairs if pair.has_history]
    prompts = [pair.factual for pair in pairs] + [pair.counterfactual for pair in differing]
    targets = [pair.target for pair in (*pairs, *differing)]
    states = answer_hidden_states(model, prompts, targets, packed=strategy == "packed")
    branches = states.split([len(target) for target in targets])
    without = iter(branches[len(pairs) :])
    return [
        (factual, _attached(factual if not pair.has_history else next(without), through))
        for pair, factual in zip(pairs, branches, strict=False)
    ]


def _attached(states: Tensor, through: bool) -> Tensor:
    return states if through else states.detach()


def best_strategy(model: Any) -> Strategy:
    """Return the cheapest strategy that gives the model's own states on its device, by a trial on a few tokens.

    For `tree` the model's attention is set to `flex_attention`.
    """
    device = device_of(model)
    candidates: tuple[Strategy, ...] = ("reuse",) if device.type == "cpu" else ("tree", "packed")
    for strategy in candidates:
        fault = _fault(model, strategy)
        if not fault:
            return strategy
        logger.warning("%s: %s; using a slower strategy", _name(model), fault)
    return "plain"


def _fault(model: Any, strategy: Strategy) -> str:
    """Return why a model does not support a strategy, or ""; the attention is restored if it does not."""
    before = model.config._attn_implementation
    try:
        if strategy == "tree" and before != "flex_attention":
            model.set_attn_implementation("flex_attention")
        trial = [_trial(model, seed) for seed in range(2)]
        expected, got = (branch_states(model, trial, how) for how in ("plain", strategy))
        dtype = expected[0][0].dtype
        tolerance = TOLERANCE.get(dtype, ROUGH_TOLERANCE)
        for one, other in zip(_flat(got), _flat(expected), strict=True):
            if not (one - other).abs().max() <= tolerance * other.abs().max():
                raise ValueError("its states differ from those of plain forward passes")
    except Exception as error:  # a model's code may raise anything; `plain` always works
        if model.config._attn_implementation != before:
            model.set_attn_implementation(before)
        return f"the shared prefix cannot be computed once ({strategy}: {str(error).splitlines()[0]})"
    return ""


def _trial(model: Any, seed: int) -> TokenPair:
    size = model.get_input_embeddings().num_embeddings
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(size, (sum(TRIAL),), generator=generator)
    answer, shared, history, rest = (part.tolist() for part in ids.split([TRIAL[3], *TRIAL[:3]]))
    return TokenPair("trial", shared + history + rest, shared + rest, answer)


def _reused(model: Any, pair: TokenPair, through: bool) -> tuple[Tensor, Tensor]:
    """Compute the factual branch in full, then the rest of the other branch after the shared prefix."""
    answers, shared = len(pair.target), shared_prefix(pair)
    whole = [*pair.factual, *pair.target[:-1]]
    if not pair.has_history:
        states = answer_hidden_states(model, [pair.factual], [pair.target], packed=False)
        return states, _attached(states, through)
    decoder = decoder_of(model)
    device = next(decoder.parameters()).device
    with last_rows_read(answers):
        result = decoder(input_ids=torch.tensor([whole], device=device), use_cache=shared > 0)
    factual = result.last_hidden_state[0, -answers:]
    cache = result.past_key_values if shared else None
    with torch.set_grad_enabled(torch.is_grad_enabled() and through):
        if cache is None or not _keeps(cache, len(whole)):
            return factual, answer_hidden_states(model, [pair.counterfactual], [pair.target], packed=False)
        cache.crop(shared - len(whole))
        rest = torch.tensor([[*pair.counterfactual[shared:], *pair.target[:-1]]], device=device)
        positions = torch.arange(shared, shared + rest.shape[1], device=device)[None]
        with last_rows_read(answers):
            result = decoder(input_ids=rest, past_key_values=cache, position_ids=positions, use_cache=True)
    return factual, result.last_hidden_state[0, -answers:]


def _keeps(cache: Any, tokens: int) -> bool:
    """Return whether a cache holds the keys of all tokens, unlike those of sliding windows and recurrent layers."""
    keys = [getattr(layer, "keys", None) for layer in cache.layers]
    return all(isinstance(key, Tensor) and key.shape[-2] == tokens for key in keys)


def _tree(model: Any, pairs: Sequence[TokenPair]) -> list[tuple[Tensor, Tensor]]:
    """Compute many examples in one row, each prefix once; the model's attention is flex attention.

    A token attends to the tokens before it in its example, but the rest without history does not attend to the rest
    with history.
    """
    from torch.nn.attention.flex_attention import create_block_mask

    _require_full_attention(model)
    ids: list[int] = []
    positions: list[int] = []
    example: list[int] = []
    branch: list[int] = []  # 0 shared, 1 with history, 2 without
    ends: list[tuple[int, int]] = []
    for number, pair in enumerate(pairs):
        same, read = not pair.has_history, pair.target[:-1]
        shared = len(pair.factual) - 1 if same else shared_prefix(pair)
        rests = [[*pair.factual[shared:], *read]] + ([] if same else [[*pair.counterfactual[shared:], *read]])
        ids += pair.factual[:shared]
        positions += range(shared)
        branch += [0] * shared
        marks = []
        for mark, rest in enumerate(rests, 1):
            ids += rest
            positions += range(shared, shared + len(rest))
            branch += [mark] * len(rest)
            marks.append(len(ids))
        example += [number] * (len(ids) - len(example))
        ends.append((marks[0], marks[-1]))
    padding = -len(ids) % TREE_BLOCK  # so that there are few lengths, and so few compiled kernels
    decoder = decoder_of(model)
    device = next(decoder.parameters()).device
    row, place, owner, part = (
        torch.tensor(values + fill * padding, device=device)
        for values, fill in ((ids, [0]), (positions, [0]), (example, [-1]), (branch, [0]))
    )

    def attends(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        apart = (part[query] == 2) & (part[key] == 1)
        return (owner[query] == owner[key]) & (key <= query) & ~apart

    mask = create_block_mask(attends, None, None, len(row), len(row), device=str(device), _compile=device.type != "cpu")
    result = decoder(input_ids=row[None], position_ids=place[None], attention_mask=mask, use_cache=False)
    states = result.last_hidden_state[0]
    counts = [len(pair.target) for pair in pairs]
    return [
        (states[factual - count : factual], states[without - count : without])
        for (factual, without), count in zip(ends, counts, strict=True)
    ]


def _require_full_attention(model: Any) -> None:
    """Check that all layers of a model attend to all tokens, since one mask is used for all of them.

    Raises:
        ValueError: Some layers attend to a window only.
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds - {"full_attention"} or (not kinds and getattr(config, "sliding_window", None)):
        raise ValueError("some of its layers attend to a window only")


def _flat(states: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    return [branch for both in states for branch in both]


def _name(model: Any) -> str:
    return model.config.name_or_path or type(model).__name__


def token_budget_batches(tokens: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Yield the indices of examples in batches of at most `batch_tokens`, largest examples first.

    Args:
        tokens: Number of tokens of each example.
        batch_tokens: Budget of a batch; a single example may exceed it and is then a batch by itself.
    """
    order = sorted(range(len(tokens)), key=lambda index: (-tokens[index], index))
    batch: list[int] = []
    used = 0
    for index in order:
        if batch and used + tokens[index] > batch_tokens:
            yield batch
            batch, used = [], 0
        batch.append(index)
        used += tokens[index]
    if batch:
        yield batch
