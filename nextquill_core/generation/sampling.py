"""From logits to the next token of each row: steering, repetition penalty, temperature, nucleus, draw."""

from __future__ import annotations

import torch
from torch import Tensor

from nextquill_core.generation.decoding import Decoding


def steered(with_BV: Tensor, without_BV: Tensor, strength: float) -> Tensor:
    """Context steering (CoS, arXiv 2405.01768): log p ∝ log p_h + λ(log p_h − log p_∅).

    Logits serve as log-probabilities, since softmax ignores the shift between them; λ = 0 gives the logits with
    history and λ = −1 those without, both to the last bit.

    Args:
        with_BV: Logits behind the prompt with history.
        without_BV: Logits behind the one without.
        strength: λ.

    Returns:
        (B, V), up to a constant for each row.
    """
    return (1 + strength) * with_BV - strength * without_BV


def penalised(logits_BV: Tensor, seen_BV: Tensor, penalty: float) -> Tensor:
    """Logits of tokens already seen, divided by the penalty, or multiplied where they are negative; shape (B, V)."""
    lowered = torch.where(logits_BV < 0, logits_BV * penalty, logits_BV / penalty)
    return torch.where(seen_BV, lowered, logits_BV)


def nucleus(p_BV: Tensor, top_p: float) -> Tensor:
    """Probabilities with 0 for all tokens but the fewest likeliest ones that sum to at least `top_p`; not rescaled."""
    if top_p >= 1.0:
        return p_BV
    sorted_BV, order_BV = p_BV.sort(dim=-1, descending=True)
    before_BV = sorted_BV.cumsum(dim=-1) - sorted_BV
    return p_BV.masked_fill((before_BV >= top_p).scatter(-1, order_BV, before_BV >= top_p), 0.0)


def next_tokens(logits_BV: Tensor, decoding: Decoding, uniform_B: Tensor | None = None) -> Tensor:
    """The next token of each row.

    A row's draw inverts its cumulative distribution at one uniform number, which is all that chance contributes: it
    comes from the row's own generator, so the answer is the same in whatever batch the row stands.

    Args:
        logits_BV: Logits, penalised already.
        decoding: Temperature and top-p.
        uniform_B: float64 in [0, 1) on the CPU, one a row; not needed for greedy decoding.

    Returns:
        Token ids, shape (B,).
    """
    if decoding.greedy or uniform_B is None:
        return logits_BV.argmax(dim=-1)
    p_BV = nucleus(torch.softmax(logits_BV.float() / decoding.temperature, dim=-1), decoding.top_p)
    below_BV = p_BV.double().cumsum(dim=-1)
    aim_B1 = uniform_B.to(below_BV.device)[:, None] * below_BV[:, -1:]
    return torch.searchsorted(below_BV, aim_B1, right=True)[:, 0].clamp(max=p_BV.shape[-1] - 1)
