"""The one way in which tokens are coloured by their effect: a unit with a CSS style, and the same in a terminal.

Pages draw units with the macros of `token_macros.html.j2`. Preference tokens are underlined too, so that no meaning is
in the colour alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from rich.style import Style
from rich.text import Text

from nextquill_core.analysis.html import printable
from nextquill_core.causal.summary import ScoredAnswer
from nextquill_core.writing.draft import Draft

GREEN, RED = "0, 158, 115", "213, 94, 0"  # Okabe and Ito's green and vermilion, told apart by any colour vision
# Opacity of a token's colour. Above 0.65 the text on it has a contrast below 4.5 : 1 on a dark page.
FAINTEST, STRONGEST, GROWTH = 0.03, 0.65, 0.9
REORDERING = re.compile("[\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Marks that change the order of letters, with which a text could imitate other output."""


@dataclass(frozen=True, slots=True)
class Unit:
    """The smallest piece of an answer that has a text: a token, or the tokens of one character.

    Attributes:
        text: The text.
        effect: The effect farthest from 0 among its tokens.
        preferred: Whether one of its tokens is a preference token.
        title: Effect and both probabilities, one line per token.
    """

    text: str
    effect: float
    preferred: bool
    title: str

    @property
    def style(self) -> str:
        """CSS of its background: green above 0, red below, stronger with distance; empty for a very small effect."""
        opacity = self.opacity
        if not opacity:
            return ""
        return f"background: rgba({GREEN if self.effect > 0 else RED}, {opacity:.2f})"

    @property
    def opacity(self) -> float:
        """Opacity of its background, in [0, 1]; 0 for a very small effect."""
        # The root, because most effects are small: 0.01 is visible, and 0.5 is below the end of the scale.
        opacity = min(STRONGEST, GROWTH * math.sqrt(abs(self.effect)))
        return opacity if opacity >= FAINTEST else 0.0


def scale() -> list[Unit]:
    """Return the legend of the colours."""
    return [Unit(f"{effect:+g}", effect, False, "") for effect in (-0.5, -0.1, -0.02, 0.02, 0.1, 0.5)]


def units_of(
    answer: ScoredAnswer, delta: float, texts: Sequence[str], weights: Sequence[float] | None = None
) -> Iterator[Unit]:
    """Yield the pieces of an answer, in order; tokens without a text belong to the next token that has one.

    Args:
        answer: An answer of T tokens.
        delta: δ of Eq. 3, compared in single precision as for the weights.
        texts: The texts of the T tokens.
        weights: The training weights of the T tokens, to be explained with the effects.
    """
    threshold = float(np.float32(delta))
    first = 0
    for last, text in enumerate(texts):
        if not text and last < len(texts) - 1:
            continue
        tokens = range(first, last + 1)
        yield Unit(
            text,
            max((answer.effect[token] for token in tokens), key=abs),
            any(answer.effect[token] > threshold for token in tokens),
            "\n".join(_explained(answer, token, weights) for token in tokens),
        )
        first = last + 1


def draft_units(draft: Draft, delta: float) -> list[Unit]:
    """Return the pieces of a draft, in order; none if its tokens were not scored.

    Args:
        draft: The draft.
        delta: As for `units_of`.
    """
    columns = [
        tuple(getattr(token, name) for token in draft.tokens)
        for name in ("token_id", "logp_with", "logp_without", "effect")
    ]
    return list(units_of(ScoredAnswer("", "", *columns), delta, [token.text for token in draft.tokens]))


def terminal_text(units: Iterable[Unit]) -> Text:
    """Return units for a terminal: black on the colour of the effect, preference tokens bold and underlined.

    The text is data: neither Rich's markup nor terminal escapes in it have an effect.
    """
    shown = Text()
    for unit in units:
        opacity = unit.opacity
        colour = ""
        if opacity:
            parts = (int(part) for part in (GREEN if unit.effect > 0 else RED).split(","))
            colour = f"rgb({','.join(str(round(255 - opacity * (255 - part))) for part in parts)})"
        style = Style(
            color="black" if colour else None, bgcolor=colour or None,
            bold=unit.preferred or None, underline=unit.preferred or None,
        )  # fmt: skip
        shown.append(terminal_safe(unit.text), style)
    return shown


def terminal_safe(text: str) -> str:
    """Return a user's text without characters that a terminal would obey: escapes, carriage returns, reordering."""
    return printable(REORDERING.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r\n", "\n").replace("\r", "\n")))


def _explained(answer: ScoredAnswer, token: int, weights: Sequence[float] | None) -> str:
    with_history, without = (math.exp(logp[token]) for logp in (answer.logp_factual, answer.logp_counterfactual))
    weight = f", weight {weights[token]:g}" if weights is not None else ""
    return f"effect {answer.effect[token]:+.4f}: {with_history:.4f} with history, {without:.4f} without{weight}"
