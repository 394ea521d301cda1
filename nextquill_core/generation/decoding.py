"""Decoding: presets, and from logits to the next token: contrast, repetition penalty, temperature, nucleus, draw.

torch is imported only where tokens are chosen, because a plan reads the presets without it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Decoding:
    """A decoding preset.

    Attributes:
        name: Name in `DECODINGS`.
        summary: One line for people.
        temperature: Divides the logits before sampling; 0 takes the likeliest token (greedy).
        top_p: Sample among the fewest tokens whose probabilities sum to at least this (nucleus sampling, Holtzman et
            al. 2020, arXiv 1904.09751); 1 is all of them.
        repetition_penalty: Divides the logit of every token seen in prompt or output, or multiplies it where it is
            negative (Keskar et al. 2019, arXiv 1909.05858); 1 is none.
    """

    name: str
    summary: str
    temperature: float = 0.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0

    @property
    def greedy(self) -> bool:
        """Whether decoding is deterministic, so that the seed does not matter."""
        return self.temperature == 0.0


PAPER = Decoding("paper", "greedy, penalty 1.2 on repeating prompt and output (published)", repetition_penalty=1.2)
GREEDY = Decoding("greedy", "greedy, no penalty")
SAMPLED = Decoding("sampled", "temperature 0.6, top-p 0.9, no penalty", temperature=0.6, top_p=0.9)

DECODINGS: Mapping[str, Decoding] = MappingProxyType({preset.name: preset for preset in (PAPER, GREEDY, SAMPLED)})

SANE_CANDIDATES = (GREEDY.name, SAMPLED.name)
"""The preset `sane` is the one of these that is better on val."""


@dataclass(frozen=True)
class Contrast:
    """How the logits z of an answer and those z′ of a second branch become one: ours · z − theirs · z′.

    Attributes:
        ours: Weight of z.
        theirs: Weight of z′.
        plausibility: Only tokens with at least this share of the probability of z's likeliest token can be chosen
            (Li et al. 2023, arXiv 2210.15097); 0 is all of them.
        log_probabilities: Contrast log softmax(z), over the tokens that can be chosen, with log softmax(z′). The
            distribution is the same, because softmax ignores a shift. A repetition penalty is not: it multiplies or
            divides the numbers themselves.
    """

    ours: float
    theirs: float
    plausibility: float = 0.0
    log_probabilities: bool = False

    @property
    def neutral(self) -> bool:
        """Whether the result is z, so that the second branch need not be computed."""
        return self == Contrast(1.0, 0.0)

    def __call__(self, ours_BV: Tensor, theirs_BV: Tensor) -> Tensor:
        """Return the contrasted logits, (B, V); −∞ for tokens that cannot be chosen."""
        if self.plausibility:
            least_B1 = ours_BV.amax(dim=-1, keepdim=True) + math.log(self.plausibility)
            ours_BV = ours_BV.masked_fill(ours_BV < least_B1, -math.inf)
        if self.log_probabilities:
            ours_BV, theirs_BV = (logits_BV.float().log_softmax(dim=-1) for logits_BV in (ours_BV, theirs_BV))
        return self.ours * ours_BV - self.theirs * theirs_BV


def steering(strength: float) -> Contrast:
    """Return the contrast of context steering (CoS, arXiv 2405.01768): log p ∝ log p_h + λ(log p_h − log p_∅).

    λ = 0 gives the logits with history and λ = −1 those without, both bit for bit.

    Args:
        strength: λ.
    """
    return Contrast(1 + strength, strength)


COPE = Contrast(1.0, 0.1, plausibility=0.1, log_probabilities=True)
"""CoPe (arXiv 2506.12109): log p_user − α · log p_task where p_user ≥ β · max p_user, with α and β of its code.

As in that code, p_user is normalised over these tokens, and a repetition penalty changes the result: log p becomes
1.2 · log p, which hardly moves a token that the model is sure of.
"""


def penalised(logits_BV: Tensor, seen_BV: Tensor, penalty: float) -> Tensor:
    """Return logits with the repetition penalty, shape (B, V).

    Args:
        logits_BV: Logits.
        seen_BV: bool; tokens of each row's prompt and output.
        penalty: Divides a seen token's logit, or multiplies it where it is negative.
    """
    import torch

    lowered = torch.where(logits_BV < 0, logits_BV * penalty, logits_BV / penalty)
    return torch.where(seen_BV, lowered, logits_BV)


def nucleus(p_BV: Tensor, top_p: float) -> Tensor:
    """Return probabilities with 0 outside the fewest likeliest tokens that sum to at least `top_p`; not rescaled."""
    if top_p >= 1.0:
        return p_BV
    sorted_BV, order_BV = p_BV.sort(dim=-1, descending=True)
    before_BV = sorted_BV.cumsum(dim=-1) - sorted_BV
    return p_BV.masked_fill((before_BV >= top_p).scatter(-1, order_BV, before_BV >= top_p), 0.0)


def next_tokens(logits_BV: Tensor, decoding: Decoding, uniform_B: Tensor | None = None) -> Tensor:
    """Choose the next token of each row.

    A row's draw inverts its cumulative distribution at one uniform number, which comes from the row's own generator. So
    the answer does not depend on the batch.

    Args:
        logits_BV: Logits, already penalised.
        decoding: Temperature and top-p.
        uniform_B: float64 in [0, 1) on the CPU, one per row; not needed for greedy decoding.

    Returns:
        Token ids, shape (B,).
    """
    import torch

    if decoding.greedy or uniform_B is None:
        return logits_BV.argmax(dim=-1)
    p_BV = nucleus(torch.softmax(logits_BV.float() / decoding.temperature, dim=-1), decoding.top_p)
    below_BV = p_BV.double().cumsum(dim=-1)
    aim_B1 = uniform_B.to(below_BV.device)[:, None] * below_BV[:, -1:]
    return torch.searchsorted(below_BV, aim_B1, right=True)[:, 0].clamp(max=p_BV.shape[-1] - 1)
