"""Words of any script: by hand, against the standard tokenizer on ASCII, and against a slow reading of characters."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer

from nextquill_core.evaluation.metrics import choosing_metric, score_examples
from nextquill_core.evaluation.rouge import UNICODE, rouge
from nextquill_core.evaluation.unicode_words import Letters, UnicodeTokenizer, count_letters, spaced_words

STANDARD = DefaultTokenizer(use_stemmer=False)
ALPHABET = "abZ09_ .,'-éßñÅλЖдябشלअनกำไ漢字かカー한국ſﬁ①½😀\u0301\u200d\u00ad\u093f"
UNSPACED_NAMES = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")


def slow_tokens(text: str) -> list[str]:
    """The same, character by character: a mark joins what it follows, an unspaced letter stands alone."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    tokens: list[str] = []
    joins = alone = False  # whether the token before goes on, and whether it is a character of its own
    for character in folded:
        kind, name = unicodedata.category(character), unicodedata.name(character, "")
        unspaced = name.startswith(UNSPACED_NAMES)
        if kind in ("Cf", "Me"):
            continue
        if kind[0] in "LN":
            if joins and not alone and not unspaced:
                tokens[-1] += character
            else:
                tokens.append(character)
            joins, alone = True, unspaced
        elif kind[0] == "M" and joins and (alone or not unspaced):
            tokens[-1] += character
        else:
            joins = alone = False
    return tokens


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Прекрасная книга!", ["прекрасная", "книга"]),
        ("Υπέροχο ΒΙΒΛΊΟΣ", ["υπέροχο", "βιβλίοσ"]),  # final sigma and sigma are one letter
        ("كِتَاب رائع", ["كِتَاب", "رائع"]),
        ("ספר נפלא", ["ספר", "נפלא"]),
        ("अच्छी किताब", ["अच्छी", "किताब"]),
        ("좋은 책", ["좋은", "책"]),
        ("好书 very good", ["好", "书", "very", "good"]),
        ("すごい本だ", list("すごい本だ")),
        ("iPhone手机2024年", ["iphone", "手", "机", "2024", "年"]),
        ("ดีมาก", ["ดี", "ม", "า", "ก"]),
        ("Un café, s'il vous plaît", ["un", "café", "s", "il", "vous", "plaît"]),
        ("cafe\u0301", ["café"]),  # decomposed
        ("Straße ＡＢＣ１", ["strasse", "abc1"]),
        ("می\u200cخواهم co\u00adoperate", ["میخواهم", "cooperate"]),
        ("5\ufe0f\u20e3 stars ❤️", ["5", "stars"]),
        ("snake_case", ["snake", "case"]),
        ("", []),
        ("😀 …", []),
    ],
)
def test_tokens_by_hand(text: str, tokens: list[str]) -> None:
    assert UNICODE.tokenize(text) == tokens


@given(st.text(alphabet=st.characters(max_codepoint=127)))
def test_ascii_text_has_the_standard_tokens(text: str) -> None:
    assert UNICODE.tokenize(text) == STANDARD.tokenize(text)


@given(st.text(alphabet=ALPHABET, max_size=30))
def test_tokens_as_a_slow_reading_gives_them(text: str) -> None:
    assert UNICODE.tokenize(text) == slow_tokens(text)


@given(*[st.text(alphabet=st.characters(max_codepoint=127), max_size=40)] * 2)
def test_on_ascii_text_both_rouges_are_equal(prediction: str, reference: str) -> None:
    assert rouge(prediction, reference, UNICODE) == rouge(prediction, reference)


@given(*[st.lists(st.sampled_from(["книга", "очень", "好书", "café", "ดี", "a", "1"]), min_size=1).map(" ".join)] * 2)
def test_rouge_is_what_rouge_score_makes_of_these_tokens(prediction: str, reference: str) -> None:
    scorer = RougeScorer(["rouge1", "rougeL"], tokenizer=UnicodeTokenizer())
    expected = scorer.score(reference, prediction)
    assert rouge(prediction, reference, UNICODE) == pytest.approx([score.fmeasure for score in expected.values()])


def test_scores_by_hand() -> None:
    """Two of three words are right, the standard pair sees none; three of four characters, in order."""
    russian = score_examples(["очень хорошая книга"], ["хорошая новая книга"])
    assert (russian.value("rouge1"), russian.value("rougeL")) == (0, 0)
    assert russian.value("rouge1_unicode") == russian.value("rougeL_unicode") == pytest.approx(2 / 3)
    assert "rouge1_unicode" not in russian.keys
    assert "rouge1_unicode" in russian.with_unicode().keys
    chinese = score_examples(["这本书好"], ["这本书坏"])
    assert chinese.value("rouge1_unicode") == chinese.value("rougeL_unicode") == pytest.approx(3 / 4)
    assert chinese.lengths.tolist() == [[4, 4]]
    # METEOR: P = R = 3/4 in one chunk of three: 3/4 · (1 − 0.5 / 27).
    assert chinese.value("meteor") == pytest.approx(0.75 * (1 - 0.5 / 27))


@pytest.mark.parametrize(
    ("text", "letters"),
    [
        ("Plain ASCII, 12!", Letters(0, 0, 12)),
        ("café", Letters(1, 0, 4)),
        ("книга 5", Letters(5, 0, 6)),
        ("书 ok", Letters(1, 1, 3)),
        ("“quotes” – ❤️ ☆", Letters(0, 0, 6)),
        ("", Letters()),
    ],
)
def test_letters_by_hand(text: str, letters: Letters) -> None:
    assert count_letters([text]) == letters
    assert letters.ignored_share == (letters.ignored / letters.total if letters.total else 0)


def test_words_are_cut_in_scripts_without_spaces_alone() -> None:
    assert spaced_words(["it", "'s", "Ёлка", "好书", ",", "！", "ok好"]) == [
        "it", "'s", "Ёлка", "好", "书", ",", "！", "ok", "好",
    ]  # fmt: skip


def test_choices_use_the_metric_that_sees_the_letters() -> None:
    russian, accents = count_letters(["хорошая книга"]), count_letters(["a good café where one can sit and read"])
    assert choosing_metric("rouge1", russian) == "rouge1_unicode"
    assert choosing_metric("rougeL", russian) == "rougeL_unicode"
    assert choosing_metric("meteor", russian) == "meteor"
    assert choosing_metric("rouge1", accents) == "rouge1", "1 of 31 letters"
