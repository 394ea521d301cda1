"""What a writer returns: the text, what the prompt showed, and how much likelier the history made each token."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nextquill_core.records import Review

WORD = re.compile(r"\w+(?:['’]\w+)*")


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token of a review under one model.

    Attributes:
        text: What it adds to the text; empty for the first tokens of a character that takes several.
        token_id: Its number in the vocabulary.
        logp_with: log p(token | prompt with history), nats.
        logp_without: log p(token | prompt without history), nats.
        effect: The difference of the two probabilities (Eq. 4), computed in single precision.
        weight: ω, its weight in training; None where no policy was asked.
    """

    text: str
    token_id: int
    logp_with: float
    logp_without: float
    effect: float
    weight: float | None = None

    @property
    def p_with(self) -> float:
        """Probability with the history."""
        return math.exp(self.logp_with)

    @property
    def p_without(self) -> float:
        """Probability without the history."""
        return math.exp(self.logp_without)


def likelier_words(tokens: Sequence[ScoredToken], delta: float) -> list[tuple[str, float]]:
    """Return the words that the history made likelier by more than δ, with their effect, the largest first.

    The effect of a word is the largest of its tokens. A word that occurs several times is named once.

    Args:
        tokens: The tokens of a text, in order.
        delta: δ, a difference of probabilities.
    """
    effects: list[float] = []
    for token in tokens:
        effects += [token.effect] * len(token.text)
    found: dict[str, float] = {}
    for word in WORD.finditer("".join(token.text for token in tokens)):
        effect = max(effects[word.start() : word.end()])
        if effect > delta:
            found[word[0]] = max(effect, found.get(word[0], effect))
    return sorted(found.items(), key=lambda one: (-one[1], one[0]))


@dataclass(frozen=True)
class Draft:
    """A review that a model wrote for a person.

    Attributes:
        text: The text.
        n_tokens: Number of tokens; a stop token is not counted.
        finish_reason: `stop` if the model ended it, `length` if the limit did.
        history_shown: The past reviews in the prompt, oldest first; a text that was cut to fit is cut here too.
        note: What a reader should know about the history, such as that there is none; "" for nothing.
        method: Name of the method.
        decoding: Name of the decoding preset.
        sampler: How tokens were chosen: for the preset `sane`, what val chose, or `greedy` without a choice.
        adapter: Fingerprint of the adapter's artifact; None for a method that trains none.
        tokens: The tokens with their probabilities with and without the history; empty unless they were asked for.
        request: Name of the request in a file of many.
    """

    text: str
    n_tokens: int
    finish_reason: str
    history_shown: tuple[Review, ...]
    note: str
    method: str
    decoding: str
    sampler: str
    adapter: str | None
    tokens: tuple[ScoredToken, ...] = ()
    request: str | None = None

    def likelier_words(self, delta: float = 0.05) -> list[tuple[str, float]]:
        """Return the words that the history made likelier by more than δ, with their effect, the largest first."""
        return likelier_words(self.tokens, delta)

    def to_dict(self) -> dict[str, Any]:
        """Return the draft as JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        return self.text
