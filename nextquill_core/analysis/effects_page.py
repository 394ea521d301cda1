"""The causal effects of history as an HTML page with coloured answers, and as Markdown for the UI.

The page is self-contained, and every value in it is escaped. The UI removes styles from Markdown, so there a coloured
answer is a picture.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from nextquill_core.analysis.figures import effect_panels, png
from nextquill_core.analysis.html import page, printable, visible
from nextquill_core.analysis.result_tables import markdown_table
from nextquill_core.analysis.token_colours import Unit, scale, units_of
from nextquill_core.causal.summary import CategoryEffects, EffectsSummary, ScoredAnswer

Decode = Callable[[Sequence[int]], list[str]]
"""The text of each token of an answer, as `nextquill_core.tokens.token_texts` gives them."""

UI_EDGES = (-1.0, -0.5, -0.1, -0.01, -0.001, 0.001, 0.01, 0.1, 0.5, 1.0)
WIDTH, LINE, LINE_CHARS, PADDING = 720, 24, 85, 20  # of a picture: pixels, pixels, letters that fit, pixels


@dataclass(frozen=True, slots=True)
class ShownAnswer:
    """An answer as the page shows it."""

    title: str
    facts: str
    units: tuple[Unit, ...]


def effects_html(summary: EffectsSummary, decode: Decode, *, source: str = "the initial model") -> str:
    """Return the page as HTML.

    Args:
        summary: The effects to show.
        decode: Gives the text of each token.
        source: The model whose probabilities give the effects, in words.
    """
    parts = parts_of(summary)
    figure = png(effect_panels({part.category: part.histogram for part in parts}, summary.edges, summary.delta))
    return page(
        "effects.html.j2",
        summary=summary,
        delta=f"{summary.delta:g}",
        source=source,
        parts=[(part.category, *_cells(part)) for part in parts],
        figure=figure,
        tokens=_top_tokens(summary, decode),
        answers=[_shown(answer, summary.delta, decode) for answer in summary.answers],
        scale=scale(),
    )


def effects_markdown(summary: EffectsSummary, decode: Decode) -> str:
    """Return the content of the page in Markdown: tables, and the answers as coloured pictures."""
    parts = parts_of(summary)
    numbers = markdown_table(
        ["category", "tokens", "preference tokens", "share", "mean effect", "mean log-probability gain (nats)"],
        [[_escaped(part.category), *_cells(part)] for part in parts],
    )
    bins = markdown_table(
        ["effect", *(_escaped(part.category) for part in parts)],
        [[label, *(f"{count:,}" for count in counts)] for label, counts in _coarse(summary, parts)],
    )
    tokens = markdown_table(
        ["token", "id", "mean effect", "count"],
        [[_escaped(text) or "(nothing)", *cells] for text, *cells in _top_tokens(summary, decode)],
    )
    answers = [_shown(answer, summary.delta, decode) for answer in summary.answers]
    sections = [
        ("", f"A preference token is one with an effect above δ = {summary.delta:g}.\n\n{numbers}"),
        ("How many tokens have which effect", bins if summary.overall.tokens else "There is no token."),
        (
            "Tokens with the highest mean effect",
            f"Of those scored {summary.min_count} times or more; ␣ is a blank.\n\n{tokens}"
            if summary.top_tokens
            else f"No token that was scored {summary.min_count} times or more is made likelier by a history.",
        ),
        (
            "Answers in which history carries most",
            "\n\n".join(
                ["Chosen for their effects, no fair sample. Green: likelier by the history; red: less likely."]
                + [f"#### {_escaped(shown.title)}\n\n{shown.facts}\n\n{_picture(shown.units)}" for shown in answers]
            )
            if answers
            else "No history makes any token likelier.",
        ),
    ]
    text = "\n\n".join(f"### {heading}\n\n{body}" if heading else body for heading, body in sections) + "\n"
    return printable(text)


def parts_of(summary: EffectsSummary) -> tuple[CategoryEffects, ...]:
    """Return all categories together, then each; a single one is not shown twice."""
    return summary.categories if len(summary.categories) == 1 else (summary.overall, *summary.categories)


def _shown(answer: ScoredAnswer, delta: float, decode: Decode) -> ShownAnswer:
    threshold = float(np.float32(delta))
    above = sum(effect > threshold for effect in answer.effect)
    return ShownAnswer(
        f"{answer.category} · {answer.example_id}",
        f"{above} of {len(answer.effect):,} tokens above δ, mean effect {np.mean(answer.effect):+.4f}",
        tuple(units_of(answer, delta, decode(answer.target_ids))),
    )


def _cells(part: CategoryEffects) -> list[str]:
    return [
        f"{part.tokens:,}",
        f"{part.preference_tokens:,}",
        f"{100 * part.preference_share:.1f} %",
        f"{part.mean_effect:+.4f}",
        f"{part.mean_logp_gain:+.4f}",
    ]


def _top_tokens(summary: EffectsSummary, decode: Decode) -> list[tuple[str, str, str, str]]:
    """Return text with visible white space, id, mean effect and count of each top token."""
    return [
        (visible("".join(decode([top.token_id]))), str(top.token_id), f"{top.mean_effect:+.4f}", f"{top.count:,}")
        for top in summary.top_tokens
    ]


def _coarse(summary: EffectsSummary, parts: Sequence[CategoryEffects]) -> list[tuple[str, list[int]]]:
    """Return the histograms in fewer bins, with δ as an edge: (bin, tokens of each part), lowest bin first."""
    kept = [row for row, edge in enumerate(summary.edges) if edge in UI_EDGES or edge == summary.delta]
    bins = [(summary.edges[low], summary.edges[high], low, high) for low, high in pairwise(kept)]
    return [
        (f"above {start:g} to {end:g}" if low else f"{start:g} to {end:g}", [sum(p.histogram[low:high]) for p in parts])
        for start, end, low, high in bins
    ]


def _picture(units: Sequence[Unit]) -> str:
    """Return the coloured answer as an image, because the UI removes styles from text."""
    lines = "".join(unit.text for unit in units).splitlines() or [""]
    height = PADDING + LINE * sum(1 + len(line) // LINE_CHARS for line in lines)
    spans = (f'<span style="{unit.style}">{html.escape(unit.text)}</span>' for unit in units)
    box = f"font: 14px/{LINE}px sans-serif; color: #222; background: #fff; padding: 8px 12px; white-space: pre-wrap"
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}">'
        f'<foreignObject width="{WIDTH}" height="{height}"><div xmlns="http://www.w3.org/1999/xhtml" style="{box}">'
        f"{''.join(spans)}</div></foreignObject></svg>"
    )
    packed = base64.b64encode(printable(svg).encode()).decode("ascii")
    return f'<img alt="the answer, its tokens coloured by effect" src="data:image/svg+xml;base64,{packed}">'


def _escaped(text: str) -> str:
    """Return a text as one line in which every character with a meaning in Markdown or HTML is escaped."""
    line = _LINE_BREAK.sub("↵ ", text).replace("\t", " ")
    return _MEANINGFUL.sub(r"\\\g<0>", line)


_LINE_BREAK = re.compile(r"\r\n?|[\n\v\f\x85\u2028\u2029]")
_MEANINGFUL = re.compile(r"[!-/:-@\[-`{-~]")  # ASCII punctuation, which Markdown allows to escape
