"""Decoding presets: everything that decides which token comes out, apart from the model. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Decoding:
    """A decoding preset.

    Attributes:
        summary: A few words for people.
        temperature: Divides the logits before sampling; 0 takes the likeliest token (greedy).
        top_p: Samples among the fewest tokens whose probabilities sum to at least this (nucleus sampling, Holtzman et
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
        """Whether nothing is drawn, so that the seed has no part in the answer."""
        return self.temperature == 0.0


PAPER = Decoding("paper", "greedy, penalty 1.2 on repeating prompt and output (published)", repetition_penalty=1.2)
GREEDY = Decoding("greedy", "greedy, no penalty")
SAMPLED = Decoding("sampled", "temperature 0.6, top-p 0.9, no penalty", temperature=0.6, top_p=0.9)

DECODINGS: Mapping[str, Decoding] = MappingProxyType({preset.name: preset for preset in (PAPER, GREEDY, SAMPLED)})

SANE_CANDIDATES = (GREEDY.name, SAMPLED.name)
"""The preset `sane` is the one of these that does better on val."""

STEERING_STRENGTHS = (0.5, 1.0, 2.0, 3.0)
"""CoS's λ; the one that does best on val is taken."""
