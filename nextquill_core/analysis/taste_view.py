"""One review of a synthetic world in a terminal: its words of taste by exact effect, and later by estimated effect.

The review is coloured as everywhere (`token_colours`). A table below it says the same in numbers, for a terminal
without colours and for a pipe.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from nextquill_core.analysis.result_tables import signed
from nextquill_core.analysis.token_colours import Unit, terminal_safe, terminal_text
from nextquill_core.schemas import Example
from nextquill_core.synthetic.truth import TrueWord

DECIMALS = 3


def exact_view(example: Example, words: Sequence[TrueWord], delta: float) -> Group:
    """Return a review with the words that its writer's taste drew and their exact effects.

    Args:
        example: The example; its true review is shown.
        words: The words.
        delta: Words with an exact effect above it are marked as preference tokens are.
    """
    return Group(
        Text(
            "A review that will be measured, and the words that its writer's taste drew. The exact effect says how "
            "much likelier the rules of this world make a word for this writer than for anybody.",
            "bold",
        ),
        _about(example, words),
        _indented(terminal_text(exact_units(example.target.text, words, delta))),
        _indented(_table(("word", "exact effect"), ((one.word, one.effect) for one in words))),
    )


def estimated_view(
    example: Example,
    words: Sequence[TrueWord],
    units: Sequence[Unit],
    estimates: Sequence[float],
    agreement: Mapping[str, Any],
    delta: float,
) -> Group:
    """Return the same review by the effects that the base model estimates from the writer's past reviews.

    Args:
        example: The example; its true review is shown.
        words: The words that taste drew; only those whose tokens were all scored.
        units: The review, coloured by estimated effect.
        estimates: The estimated effect of each of `words`.
        agreement: How well all estimates of the measured reviews agree with the exact effects, as of `agreement`.
        delta: The effect above which a token is a preference token.
    """
    rows = ((one.word, one.effect, estimate) for one, estimate in zip(words, estimates, strict=True))
    return Group(
        Text("The same review by the effect that the base model estimates from the writer's past reviews.", "bold"),
        _about(example, words),
        _indented(terminal_text(_of_text(units, example.target.text))),
        _indented(_table(("word", "exact effect", "estimated"), rows)),
        Text(
            f"Over all {agreement['words']:,} such words of the measured reviews, the correlation of estimated and "
            f"exact effects is r = {agreement['pearson']:.2f}; AUC for an exact effect above {delta:g}: "
            f"{agreement['auc']:.2f}."
        ),
    )


def exact_units(text: str, words: Sequence[TrueWord], delta: float) -> Iterator[Unit]:
    """Yield a review in pieces, with the exact effect of each word that taste drew and 0 for what lies between.

    Args:
        text: The review.
        words: The words, in the order of the text.
        delta: Words with a larger effect are preferred.
    """
    done = 0
    for one in words:
        if one.start > done:
            yield Unit(text[done : one.start], 0.0, False, "")
        yield Unit(text[one.start : one.end], one.effect, one.effect > delta, "")
        done = one.end
    if done < len(text):
        yield Unit(text[done:], 0.0, False, "")


def _of_text(units: Sequence[Unit], text: str) -> Iterator[Unit]:
    """Yield the units that spell a text, and not the stop token behind it."""
    ends = itertools.accumulate(len(unit.text) for unit in units)
    yield from (unit for unit, end in zip(units, ends, strict=True) if end <= len(text))


def _about(example: Example, words: Sequence[TrueWord]) -> Text:
    target, style = example.target, next((one.style for one in words if one.style), "")
    facts = [example.user_id, target.item.title, f"{target.rating:g} of 5" if target.rating is not None else ""]
    facts += [f"mostly {style}" if style else ""]
    return Text(terminal_safe(" · ".join(filter(None, facts))), "dim")


def _table(headings: Sequence[str], rows: Iterator[tuple[Any, ...]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "word" else "right")
    for word, *effects in rows:
        table.add_row(Text(terminal_safe(word)), *(signed(effect, DECIMALS) for effect in effects))
    return table


def _indented(shown: Text | Table) -> Padding:
    return Padding(shown, (0, 0, 0, 2), expand=False)
