"""The effects page: it shows what was summed up, and no text it shows can do harm."""

from __future__ import annotations

import base64
import html
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from nextquill_core.analysis.effects_page import effects_html, effects_markdown
from nextquill_core.analysis.html import printable
from nextquill_core.analysis.token_colours import Unit, units_of
from nextquill_core.causal.summary import CategoryEffects, EffectsSummary, ScoredAnswer, TopToken
from nextquill_core.tokens import token_texts

EVIL = "<script>alert(1)</script> | [x](javascript:go) ![i](http://e.example/i) `c` <b>*_~ www.e.example"
TEXTS = ["I", " love", " ", EVIL, "\n# it", "'s", " dull", ""]
EFFECTS = (0.0, 0.2, 0.0, 0.1, 0.04, 0.3, -0.4, 0.0)  # their mean is 0.03
EDGES = (-1.0, -0.1, -0.001, 0.001, 0.05, 0.1, 1.0)


def decode(ids: Sequence[int]) -> list[str]:
    return [TEXTS[token] for token in ids]


def part(name: str, histogram: tuple[int, ...] = (1, 0, 3, 1, 1, 2)) -> CategoryEffects:
    return CategoryEffects(name, sum(histogram), sum(histogram[4:]), 0.03, 0.5, histogram)


def answer(effect: tuple[float, ...] = EFFECTS) -> ScoredAnswer:
    without = tuple(math.log(0.5) for _ in effect)
    factual = tuple(math.log(0.5 + value) for value in effect)
    return ScoredAnswer("Books:u<1>:0", "Books", tuple(range(len(effect))), factual, without, effect)


SUMMARY = EffectsSummary(
    delta=0.05,
    edges=EDGES,
    overall=part("all"),
    categories=(part("B<oo>ks|$x$"), part("Films")),
    min_count=2,
    top_tokens=(TopToken(5, 20, 0.3), TopToken(3, 4, 0.1)),
    answers=(answer(),),
)
EMPTY = replace(SUMMARY, overall=part("all", (0,) * 6), categories=(), top_tokens=(), answers=())


def rendered(markdown: str) -> str:
    """As a viewer makes HTML of it, raw HTML allowed as in the worst one."""
    return str(MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown))


def test_the_page_shows_each_token_with_its_effect() -> None:
    page = effects_html(SUMMARY, decode)
    assert re.search(
        r'<span class="preferred" style="background: rgba\(0, 158, 115, 0.40\)" title="([^"]*)"> love<', page
    )
    assert "effect +0.2000: 0.7000 with history, 0.5000 without" in page
    assert re.search(r'<span style="background: rgba\(213, 94, 0, 0.57\)" title="[^"]*"> dull</span>', page)
    assert re.search(r'<span title="effect \+0.0000: [^"]*">I</span>', page)  # no effect, no colour
    assert "3 of 8 tokens above δ, mean effect +0.0300" in page
    for cell in ("<td>8</td><td>3</td><td>37.5 %</td><td>+0.0300</td><td>+0.5000</td>", "<td>+0.3000</td><td>20</td>"):
        assert cell in page
    assert len(re.findall(r'src="data:image/png;base64,', page)) == 1


def test_the_text_in_the_page_is_the_answer_and_does_no_harm() -> None:
    page = effects_html(SUMMARY, decode)
    for forbidden in ("<script", "<b>", "<a ", "javascript:go)<"):
        assert forbidden not in page
    assert "B&lt;oo&gt;ks|$x$" in page
    said = re.search(r'<div class="said"[^>]*>(.*?)</div>', page, re.DOTALL)
    assert said
    assert html.unescape(re.sub(r"<[^>]*>", "", said.group(1))) == "".join(TEXTS)


@given(st.floats(0, 1), st.floats(0, 1))
def test_colours_tell_the_sign_and_grow_with_the_effect(one: float, other: float) -> None:
    small, large = sorted((one, other))

    def opacity(effect: float, colour: str) -> float:
        style = Unit("x", effect, False, "").style
        assert not style or colour in style
        return float(style.rsplit(",", 1)[1].rstrip(")")) if style else 0.0

    assert opacity(small, "0, 158, 115") <= opacity(large, "0, 158, 115") <= 0.7
    assert opacity(-small, "213, 94, 0") <= opacity(-large, "213, 94, 0") <= 0.7


def test_tokens_of_one_character_are_one_unit() -> None:
    units = list(units_of(answer((0.1, 0.0, -0.2, 0.01)), 0.05, ["", "😀", "a", ""]))
    assert [(unit.text, unit.effect, unit.preferred) for unit in units] == [
        ("😀", 0.1, True),
        ("a", -0.2, False),
        ("", 0.01, False),
    ]
    assert units[0].title.count("\n") == 1


def test_markdown_shows_tables() -> None:
    page = rendered(effects_markdown(SUMMARY, decode))
    assert page.count("<table>") == 3
    assert re.search(r"<td>above 0.1 to 0.5</td>|<td>above 0.1 to 1</td>", page)
    assert "<td>above 0.05 to 0.1</td>" in page  # δ stays an edge


def test_markdown_does_no_harm() -> None:
    page = rendered(effects_markdown(SUMMARY, decode))
    for forbidden in ("<script", "<a ", "<em>", "<code", "<b>", "<h1"):
        assert forbidden not in page
    assert page.count("<img") == len(SUMMARY.answers)
    assert page.count("<h4>") == 1
    assert "B&lt;oo&gt;ks|$x$" in page


def pictures(markdown: str) -> list[ElementTree.Element]:
    packed = re.findall(r'<img alt="[^"]*" src="data:image/svg\+xml;base64,([^"]*)">', markdown)
    return [ElementTree.fromstring(base64.b64decode(picture)) for picture in packed]  # noqa: S314 - made here


def test_the_picture_in_markdown_is_the_coloured_answer_and_nothing_else() -> None:
    (picture,) = pictures(effects_markdown(SUMMARY, decode))
    assert {element.tag.rpartition("}")[2] for element in picture.iter()} == {"svg", "foreignObject", "div", "span"}
    assert "".join(picture.itertext()) == "".join(TEXTS)
    colours = [element.get("style") for element in picture.iter() if element.tag.endswith("span")]
    assert any("0, 158, 115" in (style or "") for style in colours)
    assert any("213, 94, 0" in (style or "") for style in colours)


@settings(deadline=None)
@given(st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=6))
def test_any_text_is_in_the_picture_as_it_was(texts: list[str]) -> None:
    effects = tuple(0.2 * (n % 2) for n in range(len(texts)))
    shown = replace(SUMMARY, answers=(answer(effects),), top_tokens=())
    (picture,) = pictures(effects_markdown(shown, lambda ids: [texts[i] for i in ids]))
    said = "".join(texts).replace("\r\n", "\n").replace("\r", "\n")  # as XML reads line ends
    assert "".join(picture.itertext()) == printable(said)


def test_nothing_to_show_is_said() -> None:
    for summary in (EMPTY, replace(SUMMARY, top_tokens=(), answers=())):
        page, text = effects_html(summary, decode), effects_markdown(summary, decode)
        for shown in (page, text):
            assert "No history makes any token likelier." in shown
            assert "No token that was scored 2 times or more" in shown
    assert "There is no token." in effects_markdown(EMPTY, decode)


def test_a_single_category_is_not_shown_twice() -> None:
    one = replace(SUMMARY, categories=(part("Books"),))
    assert effects_markdown(one, decode).count("37.5 %") == 1


def test_texts_of_tokens_joined_are_the_answer(tiny_tokenizer: Any) -> None:
    for text in ("the plot was slow", " 😀 naïve\n\n— 👩‍👩‍👧 \ufffd ok\ufffd", "", "日本"):
        ids = tiny_tokenizer(text)["input_ids"]
        texts = token_texts(tiny_tokenizer, ids)
        assert (len(texts), "".join(texts)) == (len(ids), text)
        closed = token_texts(tiny_tokenizer, [*ids, tiny_tokenizer.eos_token_id])
        assert "".join(closed) == f"{text}<|endoftext|>"
    ids = tiny_tokenizer("a😀")["input_ids"]
    assert token_texts(tiny_tokenizer, ids) == ["a", "", "", "", "😀"]
    assert "".join(token_texts(tiny_tokenizer, ids[:3])) == tiny_tokenizer.decode(ids[:3])


def test_texts_of_plain_tokens_keep_their_blanks() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<unk>": 0, "▁the": 1, "▁plot": 2, "s": 3}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Metaspace()
    words.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    assert token_texts(tokenizer, [1, 2, 3, 1]) == ["the", " plot", "s", " the"]
