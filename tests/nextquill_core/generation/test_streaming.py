"""The parts of a streamed answer are the finished text, whatever tokens or pieces it arrives in."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from nextquill_core.generation.engines import finished_text
from nextquill_core.generation.streaming import TextParts, TokenParts

LETTERS = st.text(st.sampled_from(" \n\tab\ufffd😀"), max_size=12)


@given(st.lists(LETTERS, max_size=8))
def test_parts_add_up_to_the_finished_text(pieces: list[str]) -> None:
    sent: list[str] = []
    parts = TextParts(sent.append)
    for number, piece in enumerate(pieces):
        parts.grow(piece)
        text = finished_text("".join(pieces))
        assert text.startswith("".join(sent)), f"after piece {number}"
    parts.finish(text := finished_text("".join(pieces)))
    assert "".join(sent) == text
    assert "" not in sent


def test_blanks_wait_for_what_follows() -> None:
    sent: list[str] = []
    parts = TextParts(sent.append)
    for piece in ("  The", " plot ", "", "was \n", "slow \n"):
        parts.grow(piece)
    assert sent == ["The", " plot", " was", " \nslow"]
    parts.finish("The plot was \nslow")
    assert "".join(sent) == "The plot was \nslow"


def test_a_second_attempt_is_not_sent_twice() -> None:
    sent: list[str] = []
    parts = TextParts(sent.append)
    parts.grow("The plot")
    parts.restart()
    for piece in ("The", " plot was", " slow"):
        parts.grow(piece)
    assert sent == ["The plot", " was", " slow"]


@given(st.text(st.characters(codec="utf-8"), max_size=30))
def test_tokens_become_the_decoded_text(tiny_tokenizer: Any, text: str) -> None:
    ids = tiny_tokenizer(text, add_special_tokens=False)["input_ids"]
    sent: list[str] = []
    parts = TokenParts(sent.append, tiny_tokenizer)
    for end in range(1, len(ids) + 1):
        parts.extend(ids[:end])
    decoded = tiny_tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert finished_text(decoded).startswith("".join(sent))
    parts.finish(finished_text(decoded))
    assert "".join(sent) == finished_text(decoded)
