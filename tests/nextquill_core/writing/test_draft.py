"""The words that a history made likelier, from effects made by hand."""

from __future__ import annotations

import json

from nextquill_core.records import Item, Review
from nextquill_core.writing.draft import Draft, ScoredToken, likelier_words

TEXTS = ("Qui", "et", " riv", "ers", ", dull", " quiet", "")
EFFECTS = (0.1, 0.4, 0.06, -0.3, 0.05, 0.9, 0.8)
TOKENS = tuple(
    ScoredToken(text, place, -1.0, -2.0, effect)
    for place, (text, effect) in enumerate(zip(TEXTS, EFFECTS, strict=True))
)


def test_each_word_is_named_once_with_its_largest_effect_the_largest_first() -> None:
    assert likelier_words(TOKENS, 0.05) == [("quiet", 0.9), ("Quiet", 0.4), ("rivers", 0.06)]
    assert likelier_words(TOKENS, 0.5) == [("quiet", 0.9)]
    assert likelier_words(TOKENS, 1.0) == likelier_words((), 0.0) == []


def test_a_draft_is_json_and_prints_as_its_text() -> None:
    past = Review(Item("A pan", ""), None, "", "It burns.", 7)
    draft = Draft("Quiet", 2, "stop", (past,), "", "nextquill", "sane", "greedy", None, TOKENS[:2], "42")
    plain = json.loads(json.dumps(draft.to_dict()))
    assert plain["history_shown"][0]["item"] == {"title": "A pan", "description": ""}
    assert plain["tokens"][1]["effect"] == 0.4
    assert str(draft) == "Quiet"
    assert draft.likelier_words() == [("Quiet", 0.4)]
