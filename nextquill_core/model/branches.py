"""Final hidden states of both branches of an example, what they share computed once.

The branches open alike: the instructions and the item stand before the past reviews. How that beginning is shared
depends on the device. On a CPU the factual branch goes through alone and leaves its keys and values behind, of which
the counterfactual one reads those of the common beginning. On a GPU many examples stand end to end in one row, each as
a tree: beginning, rest with history, rest without, with a mask that keeps the rests apart. A model that cannot do the
one or the other is seen by a trial on a few tokens, and goes the plain way.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import takewhile
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from nextquill_core.model.forward import answer_hidden_states, decoder_of, last_rows_read

Way = Literal["reuse", "tree", "packed", "plain"]
"""How both branches are computed: `reuse` one example at a time, keys and values of the beginning kept; `tree` many in
one row, the beginning once; `packed` many in one row, each branch whole; `plain` one branch at a time."""

SHORTEST_BEGINNING = 16  # below that, sharing saves less than it costs
TREE_BLOCK = 128  # flex attention looks at the mask in blocks of so many tokens
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}  # of the largest state, in a trial
ROUGH_TOLERANCE = 5e-2  # half precision
TRIAL = (40, 24, 9, 8)  # tokens of beginning, history, rest and answer
logger = logging.getLogger(__name__)


class Pair(Protocol):
    """What is needed of an example: see `tokens.TokenPair`."""

    @property
    def factual(self) -> list[int]:
        """Prompt ids with history."""

    @property
    def counterfactual(self) -> list[int]:
        """Prompt ids without."""

    @property
    def target(self) -> list[int]:
        """Answer ids."""


def beginning(pair: Pair) -> int:
    """Tokens that both prompts open with; at least the last of each is left out, because it predicts an answer token.

    0 where there are too few to be worth sharing.
    """
    prompts = zip(pair.factual[:-1], pair.counterfactual[:-1], strict=False)
    shared = sum(1 for _ in takewhile(lambda both: both[0] == both[1], prompts))
    return shared if shared >= SHORTEST_BEGINNING else 0


def computed_tokens(pair: Pair, way: Way = "reuse") -> int:
    """Token positions that a forward pass over both branches computes; a pair whose branches are equal has one."""
    read = len(pair.target) - 1
    if pair.factual == pair.counterfactual:
        return len(pair.factual) + read
    shared = beginning(pair) if way in ("reuse", "tree") else 0
    return len(pair.factual) + len(pair.counterfactual) + 2 * read - shared


def branch_states(model: Any, pairs: Sequence[Pair], way: Way, *, through: bool = True) -> list[tuple[Tensor, Tensor]]:
    """Final hidden states of both branches at the positions that predict each answer token.

    Args:
        model: A causal language model, with or without adapter.
        pairs: Examples. Where both prompts are the same, so are the two results, and there is one pass only.
        way: Out of `best_way`.
        through: Whether gradients flow through the branch without history.

    Returns:
        (factual, counterfactual) of each pair, each (len(target), D) in the model's dtype.
    """
    if way == "reuse":
        return [_reused(model, pair, through) for pair in pairs]
    if way == "tree":
        return [(factual, _kept(other, through)) for factual, other in _tree(model, pairs)]
    differing = [pair for pair in pairs if pair.factual != pair.counterfactual]
    prompts = [pair.factual for pair in pairs] + [pair.counterfactual for pair in differing]
    targets = [pair.target for pair in (*pairs, *differing)]
    states = answer_hidden_states(model, prompts, targets, packed=way == "packed")
    branches = states.split([len(target) for target in targets])
    without = iter(branches[len(pairs) :])
    return [
        (factual, _kept(factual if pair.factual == pair.counterfactual else next(without), through))
        for pair, factual in zip(pairs, branches, strict=False)
    ]


def _kept(states: Tensor, through: bool) -> Tensor:
    return states if through else states.detach()


def best_way(model: Any) -> Way:
    """The cheapest way that gives this model's own states on its device; tried on a few tokens.

    Turns the model's attention to `flex_attention` where that is the way.
    """
    device = next(decoder_of(model).parameters()).device
    ways: tuple[Way, ...] = ("reuse",) if device.type == "cpu" else ("tree", "packed")
    for way in ways:
        fault = _fault(model, way)
        if not fault:
            return way
        logger.warning("%s: %s; scoring goes another way", _name(model), fault)
    return "plain"


def _fault(model: Any, way: Way) -> str:
    """What keeps a model from a way, or "". The attention is put back where it does not serve."""
    before = model.config._attn_implementation
    try:
        if way == "tree" and before != "flex_attention":
            model.set_attn_implementation("flex_attention")
        trial = [_trial(model, seed) for seed in range(2)]
        expected, got = (branch_states(model, trial, how) for how in ("plain", way))
        dtype = expected[0][0].dtype
        tolerance = TOLERANCE.get(dtype, ROUGH_TOLERANCE)
        for one, other in zip(_flat(got), _flat(expected), strict=True):
            if not (one - other).abs().max() <= tolerance * other.abs().max():
                raise ValueError("its states differ from those of plain forward passes")
    except Exception as error:  # whatever a model's code does: the plain way is always there
        if model.config._attn_implementation != before:
            model.set_attn_implementation(before)
        return f"what both branches share cannot be computed once ({way}: {str(error).splitlines()[0]})"
    return ""


class _Trial:
    def __init__(self, ids: list[int]) -> None:
        shared, history, rest, answer = TRIAL
        self.target = ids[:answer]
        ids = ids[answer:]
        self.factual = ids[: shared + history + rest]
        self.counterfactual = ids[:shared] + ids[shared + history : shared + history + rest]


def _trial(model: Any, seed: int) -> Pair:
    size = model.get_input_embeddings().num_embeddings
    generator = torch.Generator().manual_seed(seed)
    return _Trial(torch.randint(size, (sum(TRIAL),), generator=generator).tolist())


def _reused(model: Any, pair: Pair, through: bool) -> tuple[Tensor, Tensor]:
    """One example: the factual branch whole, then the rest of the other one on top of the common beginning."""
    answers, shared = len(pair.target), beginning(pair)
    whole = [*pair.factual, *pair.target[:-1]]
    if pair.factual == pair.counterfactual:
        states = answer_hidden_states(model, [pair.factual], [pair.target], packed=False)
        return states, _kept(states, through)
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
    """Whether a cache holds the keys of all tokens: sliding windows drop early ones, recurrent layers have none."""
    keys = [getattr(layer, "keys", None) for layer in cache.layers]
    return all(isinstance(key, Tensor) and key.shape[-2] == tokens for key in keys)


def _tree(model: Any, pairs: Sequence[Pair]) -> list[tuple[Tensor, Tensor]]:
    """Many examples in one row, the common beginning of each computed once; the model's attention is flex attention.

    A token sees those before it in its example, but the rest without history does not see the rest with it.
    """
    from torch.nn.attention.flex_attention import create_block_mask

    ids: list[int] = []
    positions: list[int] = []
    example: list[int] = []
    branch: list[int] = []  # 0 shared, 1 with history, 2 without
    ends: list[tuple[int, int]] = []
    for number, pair in enumerate(pairs):
        same, read = pair.factual == pair.counterfactual, pair.target[:-1]
        shared = len(pair.factual) - 1 if same else beginning(pair)
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
    padding = -len(ids) % TREE_BLOCK  # so that lengths, and with them compiled kernels, are few
    decoder = decoder_of(model)
    device = next(decoder.parameters()).device
    row, place, owner, part = (
        torch.tensor(values + fill * padding, device=device)
        for values, fill in ((ids, [0]), (positions, [0]), (example, [-1]), (branch, [0]))
    )

    def sees(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        apart = (part[query] == 2) & (part[key] == 1)
        return (owner[query] == owner[key]) & (key <= query) & ~apart

    mask = create_block_mask(sees, None, None, len(row), len(row), device=str(device), _compile=device.type != "cpu")
    result = decoder(
        input_ids=row[None], position_ids=place[None], attention_mask=_for_each_kind(model, mask), use_cache=False
    )
    states = result.last_hidden_state[0]
    counts = [len(pair.target) for pair in pairs]
    return [
        (states[factual - count : factual], states[without - count : without])
        for (factual, without), count in zip(ends, counts, strict=True)
    ]


def _for_each_kind(model: Any, mask: Any) -> Any:
    """The mask as the model takes it; one that also has sliding windows is refused.

    Raises:
        ValueError: Some layers see a window only.
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds - {"full_attention"} or (not kinds and getattr(config, "sliding_window", None)):
        raise ValueError("some of its layers see a window only")
    return mask


def _flat(states: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    return [branch for both in states for branch in both]


def _name(model: Any) -> str:
    return model.config.name_or_path or type(model).__name__
