"""The truth of a synthetic category is found for its reviews and for the tokens of any tokenizer, or is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nextquill_core.errors import DataError
from nextquill_core.synthetic.truth import TOKEN_TRUTH, TrueWord, Truth, exact_effects, truth_file
from nextquill_core.tokens import token_texts

TEXT = "The plot was slow. I liked it."
WORDS = (TrueWord(4, 8, "plot", 0.3), TrueWord(13, 17, "slow", -0.1))


def test_the_effect_of_a_word_is_that_of_each_of_its_tokens() -> None:
    """A token may hold the blank before a word or the full stop behind it; a word may take several tokens."""
    tokens = ["The", " pl", "ot", " was", " ", "sl", "ow.", " I liked it.", "<end>"]
    assert exact_effects(WORDS, TEXT, tokens) == [0, 0.3, 0.3, 0, 0, -0.1, -0.1, 0, 0]


def test_a_review_that_was_cut_has_the_effects_of_what_is_left() -> None:
    assert exact_effects(WORDS, TEXT, ["The", " pl"]) == [0, 0.3]


def test_a_tokenizer_that_spells_otherwise_is_refused() -> None:
    with pytest.raises(DataError, match=r"evaluate\.preference_tokens: the tokenizer spells .* leave exact out"):
        exact_effects(WORDS, TEXT, ["the", " plot"])


def test_every_review_of_a_world_is_found_and_its_tokens_cover_its_words(
    small_world: Path, tiny_tokenizer: Any
) -> None:
    rows = [json.loads(line) for line in (small_world / TOKEN_TRUTH).read_text().splitlines()]
    texts: dict[tuple[str, str, int], str] = {}
    for line in (small_world / "reviews.jsonl").read_text().splitlines():
        if line.startswith("{"):
            try:
                raw = json.loads(line)
            except ValueError:
                continue
            texts[raw["user_id"], raw["parent_asin"], raw["timestamp"]] = " ".join((raw["text"] or "").split())
    truth = Truth(truth_file("Small", (small_world / "reviews.jsonl",)))
    for row in rows[::25]:
        text = texts[row["user_id"], row["parent_asin"], row["timestamp"]]
        words = truth.words(text, row["timestamp"])
        assert [(one.start, one.word, one.effect) for one in words] == [
            (span["start"], span["word"], span["effect"]) for span in row["spans"]
        ]
        ids = tiny_tokenizer(text)["input_ids"]
        tokens = token_texts(tiny_tokenizer, ids)
        effects = exact_effects(words, text, tokens)
        spelled = {
            one.word: "".join(token for token, effect in zip(tokens, effects, strict=True) if effect == one.effect)
            for one in words
        }
        assert all(word in letters for word, letters in spelled.items())
        assert sum(map(len, spelled.values())) < len(text) / 2


def test_a_review_of_another_world_is_refused(small_world: Path) -> None:
    truth = Truth(small_world / TOKEN_TRUTH)
    timestamp = json.loads((small_world / TOKEN_TRUTH).read_text().splitlines()[0])["timestamp"]
    with pytest.raises(DataError, match="the ground truth has no review like 'The plot was slow"):
        truth.words(TEXT, timestamp)
    with pytest.raises(DataError, match="at 5; write the category again"):
        truth.words(TEXT, 5)


@pytest.mark.parametrize("content", ["{", "[]", '{"timestamp": 1}', '{"timestamp": 1, "spans": [{"start": 1}]}'])
def test_a_damaged_truth_is_one_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tokens.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match="the ground truth cannot be read"):
        Truth(path)
