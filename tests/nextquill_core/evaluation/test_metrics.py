"""Tests for the metrics: values derived by hand, and the field's own packages as reference."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nltk.translate.meteor_score import single_meteor_score
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU

from nextquill_core.errors import ModelError, UserError
from nextquill_core.evaluation.metrics import (
    METRICS,
    ExampleScores,
    Metric,
    letters_note,
    likelihood_sums,
    metric_settings,
    score_examples,
    sentence_bleu,
)
from nextquill_core.evaluation.text_metrics import Letters, bleu_of_sums, load_wordnet, rouge, word_tokenize
from tests.effort import trials

WORDS = ["the", "a", "cat", "sat", "on", "book", "was", "wonderful", "marvelous,", "it's", "Great.", "😀", "ספר", "3.5"]
VALUES = ("rouge1", "rougeL", "meteor", "bleu", "length_ratio")  # what texts alone give
SETS = ("", "_crossfit", "_exact")
LIKELIHOODS = ("log_likelihood", *(f"preference_log_likelihood{tokens}" for tokens in SETS))
GAINS = (
    *("personal_gain", "history_gain"),
    *(f"preference_{gain}_gain{tokens}" for tokens in SETS for gain in ("personal", "history")),
)
CUT = ("rouge1_cut", "rougeL_cut", "meteor_cut")


def values(prediction: str, reference: str) -> dict[str, float]:
    scores = score_examples([prediction], [reference])
    return {key: scores.value(key) for key in VALUES}


def texts(seed: int, count: int, longest: int = 30) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(0, longest))) for _ in range(count)]


def test_metrics_table() -> None:
    assert tuple(METRICS) == (
        *(*VALUES[:2], "rouge1_unicode", "rougeL_unicode", *VALUES[2:4], "bertscore", "author", "judge"),
        *(*LIKELIHOODS, *GAINS, *CUT, "length_ratio"),
    )
    assert [key for key, metric in METRICS.items() if not metric.higher_is_better] == ["length_ratio"]
    assert [key for key, metric in METRICS.items() if not metric.judges_text] == [*LIKELIHOODS, *GAINS]
    assert [key for key, metric in METRICS.items() if metric.table == "gain"] == list(GAINS)
    assert [key for key, metric in METRICS.items() if metric.table == "length"] == list(CUT)
    assert METRICS["preference_personal_gain_exact"].name == "Preference personal gain (exact)"
    assert METRICS["rouge1"].text(0.23184) == "0.2318"


def test_rouge_by_hand() -> None:
    """All 4 words are shared, but only "the gunman" (2 of 4) in the same order: F = 1 and F = 1/2.

    Then 2 of 4 words predicted against 2 of 3 expected: F = 2 · (1/2 · 2/3) / (1/2 + 2/3) = 4/7.
    """
    assert rouge("police kill the gunman", "the gunman kill police") == (1.0, 0.5)
    assert rouge("the cat was here", "The cat slept!") == pytest.approx((4 / 7, 4 / 7))


@pytest.mark.parametrize(
    ("metric", "prediction", "reference", "expected"),
    [
        # Two of three words match, next to each other: P = R = F = 2/3, penalty 0.5 · (1/2)³, so 2/3 · 15/16 = 0.625.
        # "a" is exact. NLTK looks for synonyms among stems: "wonder" has "marvel", but no word has "volum".
        ("meteor", "a wonderful book", "a marvelous volume", 0.625),
        # All four words match, in two chunks: (1 - 0.5 · (2/4)³) · 1 = 0.9375. In one chunk: 1 - 0.5 / 4³.
        ("meteor", "green tea red wine", "red wine green tea", 0.9375),
        ("meteor", "red wine green tea", "red wine green tea", 1 - 0.5 / 64),
        # One word of one predicted, of two expected: P = 1, R = 1/2, F = P·R / (0.9 P + 0.1 R) = 10/19, penalty 1/2.
        ("meteor", "wine", "red wine", 5 / 19),
        # 5 of 6 words, 3 of 5 pairs, 1 of 4 triples, and 0 of 3 fours, smoothed to half a match: 1/6.
        ("bleu", "the cat sat on the mat", "the cat is on the mat", 100 * (5 / 6 * 3 / 5 * 1 / 4 * 1 / 6) ** (1 / 4)),
        # Every n-gram of the 4 words matches, and the reference has 8: exp(1 - 8/4).
        ("bleu", "one two three four", "one two three four five six seven eight", 100 * np.exp(-1)),
    ],
)
def test_meteor_and_bleu_by_hand(metric: str, prediction: str, reference: str, expected: float) -> None:
    assert values(prediction, reference)[metric] == pytest.approx(expected)


def test_identity() -> None:
    text = "It was the best of times, it was the worst of times."
    found = values(text, text)
    assert found["bleu"] == pytest.approx(100)
    assert (found["rouge1"], found["rougeL"], found["length_ratio"]) == (1, 1, 1)


def test_length_ratio_is_over_all_words() -> None:
    scores = score_examples(["one two three", "one"], ["one", "one two three"])
    assert scores.value("length_ratio") == 1


@pytest.mark.parametrize("prediction", ["", "   \n"])
@pytest.mark.parametrize("reference", ["A fine book.", "x", "", "😀"])
def test_empty_prediction_scores_zero(prediction: str, reference: str) -> None:
    assert set(values(prediction, reference).values()) == {0.0}
    assert {score_examples([prediction], [reference]).value(key) for key in CUT} == {0.0}


def test_one_character_reference() -> None:
    found = values("I like it", "I")
    assert found["rouge1"] == pytest.approx(0.5)  # 1 of 3 and 1 of 1
    assert found["length_ratio"] == 3
    assert all(np.isfinite(list(values("?", "!").values())))


def test_emoji_and_right_to_left_text() -> None:
    """ROUGE as published sees a to z and digits only; the other metrics see every script."""
    emoji = values("😀 😀 👍🏽", "😀 😀 👍🏽")
    hebrew = values("ספר נפלא מאוד ומרגש", "ספר נפלא מאוד ומרגש")
    assert emoji["rouge1"] == hebrew["rouge1"] == 0
    assert emoji["meteor"] == pytest.approx(1 - 0.5 / 27)
    assert hebrew["meteor"] == pytest.approx(1 - 0.5 / 64)
    assert hebrew["bleu"] == pytest.approx(100)


def test_a_model_that_never_stops() -> None:
    """One of n = 100,000 words is right, of three expected: F = 2 · 1 / (n + 3).

    METEOR: P = 1/n, R = 1/3, F = P·R / (0.9 P + 0.1 R), one chunk of one word, so half of it.
    """
    words = trials(100_000)
    found = values("good " * words, "a good book")
    precision, recall = 1 / words, 1 / 3
    assert found["rouge1"] == found["rougeL"] == pytest.approx(2 / (words + 3))
    assert found["meteor"] == pytest.approx(0.5 * precision * recall / (0.9 * precision + 0.1 * recall))
    assert found["length_ratio"] == pytest.approx(words / 3)
    assert 0 < found["bleu"] < 200 / words


def test_many_different_words() -> None:
    """The worst case of a text without a repetition: half of the reference's words, in order, among 100,000."""
    prediction = " ".join(f"w{number}" for number in range(100_000))
    reference = " ".join(f"w{number}" if number % 2 else "other" for number in range(200))
    assert rouge(prediction, reference) == pytest.approx((2 * 100 / 100_200,) * 2)


@pytest.mark.parametrize(
    ("prediction", "reference"),
    [
        ("", "!"),
        ("!", "x"),
        ("😀", "A"),
        ("👩‍👩‍👧‍👦" * 40, "שלום"),
        ("مرحبا بالعالم", "م"),
        ("\u202etxet\u202c", "text"),
    ],
)
def test_odd_texts_have_finite_scores(prediction: str, reference: str) -> None:
    scores = score_examples([prediction], [reference])
    found = [scores.value(key) for key in scores.keys] + sentence_bleu(scores).tolist()
    assert np.isfinite(found).all()
    assert min(found) >= 0


def test_sentence_bleu_is_sacrebleus_own() -> None:
    predictions, references = texts(9, 40, longest=12), texts(10, 40, longest=12)
    expected = [
        BLEU(effective_order=True).sentence_score(prediction, [reference]).score
        for prediction, reference in zip(predictions, references, strict=True)
    ]
    assert sentence_bleu(score_examples(predictions, references)) == pytest.approx(expected)


def test_likelihood_by_hand() -> None:
    """Tokens of probability 1/2 and 1/4, then one of 1/8: log 2 + 2 log 2 + 3 log 2 over three tokens is 2 log 2.

    The mean of both examples' means would be (1.5 + 3) / 2 = 2.25 log 2: it is a micro average. Of the preference
    tokens alone, 1/4 and 1/8, it is 2.5 log 2.
    """
    logps = [np.log([1 / 2, 1 / 4]).tolist(), np.log([1 / 8]).tolist()]
    scores = score_examples(["a", "b"], ["a", "b"]).plus(
        {
            "log_likelihood": likelihood_sums(logps),
            "preference_log_likelihood": likelihood_sums(logps, [[False, True], [True]]),
        }
    )
    assert scores.value("log_likelihood") == pytest.approx(-2 * np.log(2))
    assert scores.value("preference_log_likelihood") == pytest.approx(-2.5 * np.log(2))
    assert scores.keys == (*VALUES[:4], *LIKELIHOODS[:2], *CUT, "length_ratio")
    first = scores.take(np.array([0]))
    assert first.value("log_likelihood") == pytest.approx(-1.5 * np.log(2))


def test_likelihoods_take_tensors() -> None:
    found = likelihood_sums([torch.tensor([-1.0, -2.0]), torch.tensor([])], [torch.tensor([True, False]), []])
    assert found.tolist() == [[-1, 1], [0, 0]]


def test_no_preference_token_no_metric() -> None:
    scores = score_examples(["a", "b"], ["a", "b"])
    alone = scores.plus({"preference_log_likelihood": likelihood_sums([[-1.0], [-2.0]], [[False], [True]])})
    assert "preference_log_likelihood" in alone.keys
    assert "preference_log_likelihood" not in alone.take(np.array([0])).keys
    assert alone.statistics["preference_log_likelihood"].tolist() == [[0, 0], [-2, 1]]
    with pytest.raises(ValueError, match="nothing to measure"):
        alone.take(np.array([0])).value("preference_log_likelihood")
    assert scores.keys == (*VALUES[:4], *CUT, "length_ratio")


def test_likelihoods_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="1 choices for 2 tokens of example 0"):
        likelihood_sums([[-1.0, -2.0]], [[True]])
    with pytest.raises(ValueError, match="2 of 1 examples"):
        likelihood_sums([[-1.0]], [[True], [True]])
    with pytest.raises(ModelError, match="example 1: the log-probability of a token is not finite"):
        likelihood_sums([[-1.0], [float("nan")]])


def test_further_scores_fit_the_examples() -> None:
    scores = score_examples(["a", "b"], ["a", "b"])
    assert scores.plus({"bertscore": [0.5, 1.0]}).value("bertscore") == 0.75
    with pytest.raises(ValueError, match=r"bertscore: values of shape \(1,\)"):
        scores.plus({"bertscore": [0.5]})
    with pytest.raises(ValueError, match="bleurt"):
        scores.plus({"bleurt": [0.5, 0.5]})


def test_corpus_bleu_is_sacrebleus_own() -> None:
    predictions, references = texts(1, 60), texts(2, 60)
    scores = score_examples(predictions, references)
    assert scores.value("bleu") == BLEU().corpus_score(predictions, [references]).score
    some = np.arange(7, 23)
    assert scores.take(some).value("bleu") == BLEU().corpus_score(predictions[7:23], [references[7:23]]).score


def test_vectorised_bleu_agrees_for_every_example() -> None:
    """Among them empty ones, ones without a match, and ones too short for a fourth order."""
    scores = score_examples(texts(3, 80, longest=8), texts(4, 80, longest=8))
    single = [scores.take(np.array([row])).value("bleu") for row in range(80)]
    assert bleu_of_sums(scores.statistics["bleu"]) == pytest.approx(single, rel=1e-12)
    assert 0 in single
    assert max(single) > 0


@given(st.lists(st.sampled_from(WORDS), max_size=25).map(" ".join), st.lists(st.sampled_from(WORDS)).map(" ".join))
def test_rouge_agrees_with_rouge_score(prediction: str, reference: str) -> None:
    expected = RougeScorer(["rouge1", "rougeL"], use_stemmer=False).score(reference, prediction)
    assert rouge(prediction, reference) == (expected["rouge1"].fmeasure, expected["rougeL"].fmeasure)


def test_caches_do_not_change_meteor() -> None:
    load_wordnet()
    predictions, references = texts(5, 30), texts(6, 30)
    scores = score_examples(predictions, references)
    expected = [
        single_meteor_score(word_tokenize(reference), word_tokenize(prediction))
        for prediction, reference in zip(predictions, references, strict=True)
    ]
    assert scores.statistics["meteor"][:, 0].tolist() == expected


def test_value_does_not_depend_on_the_order() -> None:
    scores = score_examples(texts(7, 50), texts(8, 50))
    turned = scores.take(np.random.default_rng(0).permutation(50))
    assert [scores.value(key) for key in VALUES] == [turned.value(key) for key in VALUES]


def test_progress_counts_examples() -> None:
    seen: list[tuple[float, float]] = []
    score_examples(["a", "b"], ["a", "b"], lambda done, total, note="": seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]


def test_wrong_numbers() -> None:
    with pytest.raises(ValueError, match="2 predictions for 1 references"):
        score_examples(["a", "b"], ["a"])
    nothing: ExampleScores = score_examples([], [])
    with pytest.raises(ValueError, match="no examples"):
        nothing.value("bleu")


@pytest.mark.parametrize(
    ("returned", "found"),
    [
        (["a", "b"], "no table of numbers"),
        ([[1.0], [2.0, 3.0]], "no table of numbers"),
        (None, "shape ()"),
        ([[1.0], [2.0]], "shape (2, 1)"),
        ([1.0, None], "shape (2,)"),
        ([1.0], "shape (1,)"),
    ],
)
def test_what_a_package_s_metric_may_not_return(returned: Any, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = Metric("wrong", "Wrong", 2, True, score=lambda predictions, references: returned)
    monkeypatch.setitem(METRICS.built_in, "wrong", wrong)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=f"metric `wrong` returned values .*{re.escape(found)} .*2\\) are expected"):
        score_examples(["a", "b"], ["a", "b"])


def test_settings_are_plain_and_complete() -> None:
    found = metric_settings()
    assert json.loads(json.dumps(found)) == found
    assert found["bleu"]["signature"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.")
    assert found["meteor"]["wordnet"] == "3.0"
    assert found["rouge"]["use_stemmer"] is False
    assert set(found) == {"rouge", "rouge_unicode", "meteor", "bleu", "length_ratio"}
    assert "Banerjee and Lavie 2005" in found["meteor"]["implementation"]
    more = metric_settings(delta=0.05, bertscore={"encoder": "roberta-large", "layer": 17})
    assert more["bertscore"]["layer"] == 17
    preference = more["preference_log_likelihood"]
    assert preference["preference tokens"] == "effect of the newest reviews under the initial model above 0.05"
    assert set(more) - set(found) == {"bertscore", *LIKELIHOODS[:2], *GAINS[:2]}
    other = metric_settings(delta=0.05, effects="another model")["preference_log_likelihood"]
    assert other["preference tokens"] == "effect of the newest reviews under another model above 0.05"
    assert "under another model" in other["caution"]
    assert "no independent evidence" in other["caution"]
    every = metric_settings(delta=0.05, preferences={"initial": "the initial model", "crossfit": "A", "exact": ""})
    assert "effects of history under A chose, which weighted no training" in every[LIKELIHOODS[2]]["caution"]
    assert "no model chose them" in every[LIKELIHOODS[3]]["caution"]
    assert "exact effect of the user's taste above 0.05" in every[LIKELIHOODS[3]]["preference tokens"]
    same = metric_settings(delta=0.05, effects="A", preferences={"crossfit": "A"})[LIKELIHOODS[2]]["caution"]
    assert "no independent evidence" in same, "the cross-fitted effects weighted the training themselves"
    counted = metric_settings(letters={"Books": Letters(1, 0, 4)})
    assert counted["rouge"]["ignored_letters"] == {"Books": 0.25}
    assert counted["rouge_unicode"]["unspaced_letters"] == {"Books": 0.0}


def test_the_note_names_the_share_and_what_to_read() -> None:
    assert letters_note({"Books": 0.001}, {"Books": 0.0}) == ""
    note = letters_note({"Books": 0.001, "Книги": 0.973}, {"Books": 0.0, "Книги": 0.0})
    assert "97.3% in Книги" in note
    assert "Books" not in note
    assert "BLEU" not in note
    assert "BLEU's tokenizer (13a)" in letters_note({"all": 1.0}, {"all": 1.0})
