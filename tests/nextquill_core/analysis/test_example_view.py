"""One person explained: matches mean something, users are chosen by a rule, and texts of users are only text."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from nextquill_core.analysis import example_view
from nextquill_core.analysis.example_view import (
    PHRASE,
    PREFERRED,
    ExplainedExample,
    Segment,
    TargetToken,
    boilerplate,
    choose,
    example_html,
    example_terminal,
    marks,
    people_of,
    preference_words,
)
from nextquill_core.analysis.token_colours import Unit, terminal_safe
from nextquill_core.schemas import Example, Item, Review

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\x1b[31mred\x1b]0;title\x07\x9b2J\u202e[bold]"


def explained(user: str, gain: float, text: str = EVIL) -> ExplainedExample:
    review = Review(Item(text, text), 4.0, text, text)
    units = (Unit("A", 0.0, False, "effect 0"), Unit(text, 0.3, True, "effect +0.3000: 0.8000 with history"))
    tokens = (TargetToken("A", 0.5, 0.5, 0.0, 0.1, False), TargetToken(text, 0.8, 0.5, 0.3, 0.9, True))
    example = Example(f"C:{user}:0", user, "C", "test", review, (review,))
    return ExplainedExample(example, "B1", (review,), units, tokens, {"qwen": text}, {"qwen": -2.0}, gain)


def test_phrases_and_preference_words_are_marked_and_stop_words_are_not() -> None:
    truth = "I found the grim mystery in a harbour, and it is haunting."
    units = (Unit(truth[:-10], 0.0, False, ""), Unit(" haunt", 0.4, True, ""), Unit("ing.", 0.0, False, ""))
    words = preference_words(units)
    assert words == {"haunting"}
    found = marks("It is the grim mystery: Haunting and in a house. Harbour.", truth, words)
    assert [segment for segment in found if segment.kind] == [
        Segment("grim mystery", PHRASE),
        Segment("Haunting", PREFERRED),
    ]
    assert "".join(segment.text for segment in found) == "It is the grim mystery: Haunting and in a house. Harbour."
    assert not [one for one in marks("grim mystery", truth, words, frozenset({"grim", "mystery"})) if one.kind]


def test_boilerplate_is_what_many_reviews_say() -> None:
    texts = [f"a solid book number{index}" for index in range(20)]
    assert boilerplate(texts) == {"a", "solid", "book"}
    assert boilerplate(texts[:19]) == frozenset()


@pytest.mark.parametrize(
    ("gains", "chosen"),
    [
        ([0.1, 0.5, -0.2, 0.3], {"best": 1, "median": 0, "worst": 2}),
        ([0.1, 0.1, 0.1], {"best": 2, "median": 1, "worst": 0}),
        ([0.2, 0.1], {"best": 0, "worst": 1}),
        ([0.2], {"best": 0}),
        ([], {}),
    ],
)
def test_users_are_chosen_by_their_gain(gains: list[float], chosen: dict[str, int]) -> None:
    found = choose({("C", f"u{index}"): gain for index, gain in enumerate(gains)})
    assert found == {name: ("C", f"u{index}") for name, index in chosen.items()}


def test_texts_of_users_are_text_in_the_page() -> None:
    written = example_html([explained(EVIL, 0.1)])
    assert "<img" not in written
    assert "\x1b" not in written
    assert len(re.findall("<script", written)) == 1  # our own
    script = re.search("<script>(.*?)</script>", written, re.DOTALL)
    assert script
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in html.unescape(written)
    assert "effect +0.3000: 0.8000 with history" in written


def test_texts_of_users_are_text_in_the_terminal() -> None:
    output = io.StringIO()
    Console(file=output, force_terminal=True, color_system="truecolor", width=200).print(
        example_terminal([explained(EVIL, 0.1)])
    )
    shown = output.getvalue()
    assert not {"\x07", "\x9b", "\u202e"} & set(shown)
    assert set(re.findall("\x1b(.)", shown)) == {"["}
    assert "\x1b[31m" not in shown
    assert "[bold]" in shown
    assert "48;2;" in shown  # the token's colour
    assert terminal_safe("a\rb") == "a\nb"


def test_one_person_says_the_preset_of_the_texts() -> None:
    one = explained("u", 0.1)
    assert "decoding" not in one.facts
    assert replace(one, decoding="sane").facts.endswith("texts by sane decoding")


def opened(blocks: Sequence[str]) -> list[Any]:
    return [json.loads(zlib.decompress(base64.b64decode(block))) for block in blocks]


def test_the_picker_has_every_user() -> None:
    people = people_of([explained(f"u{index:03}", index / 10) for index in range(103)])
    assert people
    blocks = opened(people.blocks)
    assert [len(block) for block in blocks] == [100, 3]
    assert blocks[1][2][0]["k"][1:] == [[500, 800], [500, 500], [0.1, 0.9], [0, 1]]
    assert len(blocks[0][0][0]["p"]) == 1
    assert [(name, examples[0].example.user_id) for name, _, examples in people.chosen] == [
        ("best", "u102"),
        ("median", "u051"),
        ("worst", "u000"),
    ]


def test_a_picker_that_is_too_large_leaves_out_past_reviews_then_methods_and_says_so(monkeypatch: Any) -> None:
    def shown(largest: int) -> tuple[int | None, list[str], str]:
        monkeypatch.setattr(example_view, "LARGEST_PICKER", largest)
        people = people_of([replace(one, texts=dict.fromkeys("abc", EVIL))], ("c", "a", "b"))
        assert people
        ((found,),) = opened(people.blocks)[0]
        past = None if found["p"] is None else len(found["p"])
        return past, [method for method, _ in found["m"]], people.left_out

    def opened_size(methods: list[str] | None) -> int:
        return len(example_view._block([[replace(one, texts=dict.fromkeys("abc", EVIL))]], 0, methods))

    one = explained("u", 0.1)
    assert shown(10**6) == (1, ["a", "b", "c"], "")
    whole = people_of([replace(one, texts=dict.fromkeys("abc", EVIL))])
    assert whole
    less = "To keep this page small, the list leaves out past reviews"
    assert shown(len(whole.blocks[0]) - 1) == (None, ["a", "b", "c"], f"{less}.")
    without_past = opened_size(None)
    assert shown(without_past - 1) == (None, ["a", "c"], f"{less}, the texts of all methods but c and a.")
    assert shown(opened_size(["c", "a"]) - 1) == (None, ["c"], f"{less}, the texts of all methods but c.")
    assert shown(0) == (None, [], f"{less}, the texts of all methods.")


def test_a_picker_that_is_still_too_large_has_the_first_users_and_says_so(monkeypatch: Any) -> None:
    monkeypatch.setattr(example_view, "LARGEST_PICKER", 0)
    people = people_of([explained(f"u{index:03}", index / 10) for index in range(103)], ("qwen", "b"))
    assert people
    assert [len(block) for block in opened(people.blocks)] == [100]
    assert people.users == [f"u{index:03}" for index in range(100)]
    assert people.left_out.endswith("the texts of all methods, and 3 of 103 users.")
    assert [examples[0].example.user_id for _, _, examples in people.chosen] == ["u102", "u051", "u000"]
