"""A review of a synthetic world in a terminal: readable in a pipe and in 80 columns, and harmless whatever it says."""

from __future__ import annotations

import io

from rich.console import Console

from nextquill_core.analysis.taste_view import estimated_view, exact_units, exact_view
from nextquill_core.analysis.token_colours import Unit
from nextquill_core.schemas import Example, Item, Review
from nextquill_core.synthetic.truth import TrueWord

TEXT = "To me this made the plot daring. I found the \x1b[31mcast tender. " + "My copy came on time. " * 6
DARING, TENDER = (TEXT.index(word) for word in ("daring", "tender"))
WORDS = (TrueWord(DARING, DARING + 6, "daring", 0.0808, "bold"), TrueWord(TENDER, TENDER + 6, "tender", -0.04, "bold"))
EXAMPLE = Example("e1", "u\x1b]0;title\x07", "C", "test", Review(Item("The \u202eLast Crown", ""), 4.0, "t", TEXT), ())
FIT = {"words": 600, "pearson": 0.534, "auc": 0.861}


def shown(view: object, *, colours: bool = False) -> str:
    console = Console(
        file=io.StringIO(), width=80, force_terminal=colours, color_system="truecolor" if colours else None
    )
    console.print(view)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_units_are_the_review_with_its_words_apart() -> None:
    units = list(exact_units(TEXT, WORDS, 0.025))
    assert "".join(unit.text for unit in units) == TEXT
    assert [(unit.text, unit.effect, unit.preferred) for unit in units if unit.effect] == [
        ("daring", 0.0808, True), ("tender", -0.04, False),
    ]  # fmt: skip


def test_in_a_pipe_numbers_say_what_colours_say_elsewhere() -> None:
    text = shown(exact_view(EXAMPLE, WORDS, 0.025))
    assert max(map(len, text.splitlines())) <= 80
    assert [line.split() for line in text.splitlines() if line.startswith("  ")][-2:] == [
        ["daring", "+0.081"], ["tender", "−0.040"],
    ]  # fmt: skip
    units = [
        Unit(TEXT[:DARING], 0.0, False, ""),
        Unit("daring", 0.05, True, ""),
        Unit(TEXT[DARING + 6 :], 0, False, ""),
    ]
    units.append(Unit("<|endoftext|>", 0.0, False, ""))
    text = shown(estimated_view(EXAMPLE, WORDS, units, [0.05, 0.0], FIT, 0.025))
    assert max(map(len, text.splitlines())) <= 80
    assert ["daring", "+0.081", "+0.050"] in [line.split() for line in text.splitlines()]
    assert "Over all 600 such words" in text
    assert "My copy came on time." in text
    assert "endoftext" not in text
    assert "r = 0.53" in text
    assert " ".join(text.split()).endswith("AUC for an exact effect above 0.025: 0.86.")


def test_a_terminal_shows_colours_and_obeys_nothing_that_a_user_wrote() -> None:
    plain, coloured = (shown(exact_view(EXAMPLE, WORDS, 0.025), colours=colours) for colours in (False, True))
    assert "\x1b" not in plain
    assert "\x07" not in plain
    assert "\u202e" not in plain
    assert "\x1b[1;4;30;48;2;" in coloured, "a preference word is bold and underlined on its colour"
    assert "\x1b[31m" not in coloured
    assert "\x1b]0;" not in coloured
