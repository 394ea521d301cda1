"""The gains by history and the scores of cut answers: values by hand, intervals, tests, and what was not measured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer

from nextquill_core.analysis.result_tables import likelihood_blocks, shown_tables
from nextquill_core.evaluation.metrics import (
    CUT_FORMS,
    GAIN,
    HISTORY_GAIN,
    LENGTH,
    LIKELIHOOD,
    PERSONAL_GAIN,
    ExampleScores,
    gain_sums,
    likelihood_sums,
    preference_key,
    score_examples,
)
from nextquill_core.evaluation.significance import difference_of_ratios, resample, user_sums
from nextquill_core.evaluation.slices import control_rows
from nextquill_core.evaluation.tables import comparison_rows, example_table, metric_rows

LOG2 = float(np.log(2))
USERS = ["a", "b"]
OWN, STRANGER, NONE = ([[-1, -2], [-3]], [[-2, -2], [-3]], [[-3, -3], [-3]])
"""log2 p of the tokens of two users' reviews, of two tokens and of one."""
PREFERRED = [[True, False], [False]]


def sums(logps: Sequence[Sequence[float]], chosen: Sequence[Sequence[bool]] | None = None) -> np.ndarray:
    return likelihood_sums([[LOG2 * logp for logp in tokens] for tokens in logps], chosen)


@pytest.fixture
def scores() -> ExampleScores:
    found = {LIKELIHOOD: sums(OWN)}
    for gain, other in ((PERSONAL_GAIN, STRANGER), (HISTORY_GAIN, NONE)):
        found[gain] = gain_sums(sums(OWN), sums(other))
        found[preference_key(gain, "initial")] = gain_sums(sums(OWN, PREFERRED), sums(other, PREFERRED))
    return score_examples(["x", "y"], ["x", "y"]).plus(found)


def test_two_users_by_hand(scores: ExampleScores) -> None:
    """Own: 6 log 2 lost over 3 tokens; stranger's: 7; none: 9. The mean of the users' own gains would be 1/4, not 1/3.

    On the only preference token, the first of a, the three are 1, 2 and 3.
    """
    assert scores.value(LIKELIHOOD) == pytest.approx(-2 * LOG2)
    assert scores.value(PERSONAL_GAIN) == pytest.approx(1 / 3 * LOG2)
    assert scores.value(HISTORY_GAIN) == pytest.approx(LOG2)
    assert scores.value("preference_personal_gain") == pytest.approx(LOG2)
    assert scores.value("preference_history_gain") == pytest.approx(2 * LOG2)


def test_intervals_are_over_users(scores: ExampleScores) -> None:
    """Resamples are aa, ab, bb with personal gains of 1/2, 1/3 and 0, and chances 1/4, 1/2, 1/4."""
    by_user = user_sums(scores.statistics[PERSONAL_GAIN], USERS)
    drawn = difference_of_ratios(resample(by_user, samples=4000, seed=0)) / LOG2
    values, counts = np.unique(drawn.round(6), return_counts=True)
    assert values == pytest.approx([0, 1 / 3, 1 / 2], abs=1e-6)
    assert counts / 4000 == pytest.approx([0.25, 0.5, 0.25], abs=0.03)
    rows = metric_rows({("m", "p"): scores}, USERS, ["C"] * 2, samples=500)
    gain = next(row for row in rows if row["metric"] == PERSONAL_GAIN)
    assert (gain["ci_low"], gain["ci_high"], gain["n"]) == (pytest.approx(0), pytest.approx(LOG2 / 2), 2)
    preferred = next(row for row in rows if row["metric"] == "preference_personal_gain")
    assert preferred["ci_low"] == preferred["ci_high"] == pytest.approx(LOG2), "b has no such token and is left out"


def long_scores(seed: int, gain: float, users: int = 40) -> tuple[ExampleScores, np.ndarray, np.ndarray]:
    """A method whose own history makes every token of every user about `gain` nats likelier than a stranger's."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 30, size=users)
    own = [rng.normal(-3, 1, size=length) for length in lengths]
    other = [tokens - rng.normal(gain, 0.1, size=len(tokens)) for tokens in own]
    mine, theirs = likelihood_sums(own), likelihood_sums(other)
    texts = ["x"] * users
    scored = score_examples(texts, texts).plus({LIKELIHOOD: mine, PERSONAL_GAIN: gain_sums(mine, theirs)})
    return scored, mine, theirs


def test_a_gain_is_exactly_the_difference_of_two_log_likelihoods() -> None:
    scores, _, theirs = long_scores(0, 0.3)
    stranger = scores.plus({LIKELIHOOD: theirs})
    for chosen in (np.arange(40), np.arange(3, 17)):
        taken, other = scores.take(chosen), stranger.take(chosen)
        assert taken.value(PERSONAL_GAIN) == taken.value(LIKELIHOOD) - other.value(LIKELIHOOD)


def test_a_gain_has_the_interval_of_the_control() -> None:
    """The control compares log-likelihoods of the same method with both histories, from the same draws of users."""
    scores, _, theirs = long_scores(0, 0.3)
    users = [f"u{number}" for number in range(40)]
    own = {("m", "p"): scores}
    stranger = {("m", "p"): scores.without(GAIN).plus({LIKELIHOOD: theirs})}
    gain = next(row for row in metric_rows(own, users, ["C"] * 40, samples=999) if row["metric"] == PERSONAL_GAIN)
    rows = control_rows(own, stranger, users, ["C"] * 40, samples=999)
    assert not {PERSONAL_GAIN, *CUT_FORMS.values()} & {row["metric"] for row in rows}, "a gain is a control itself"
    difference = next(row for row in rows if (row["bucket"], row["metric"]) == ("difference", LIKELIHOOD))
    assert [gain[key] for key in ("value", "ci_low", "ci_high")] == pytest.approx(
        [difference[key] for key in ("value", "ci_low", "ci_high")]
    )


def test_which_method_listens_more_to_the_user_is_tested() -> None:
    users = [f"u{number}" for number in range(40)]
    little, much, same = (long_scores(*how)[0] for how in ((0, 0.1), (1, 0.4), (2, 0.1)))
    methods = {("little", "p"): little, ("much", "p"): much, ("same", "p"): same}
    rows = comparison_rows(methods, users, ["C"] * 40, samples=999)
    found = {(row["method"], row["reference"]): row for row in rows if row["metric"] == PERSONAL_GAIN}
    better = found["much", "little"]
    assert better["difference"] == pytest.approx(0.3, abs=0.02)
    assert 0 < better["ci_low"] < better["ci_high"]
    assert (better["p_value"], better["win_rate"]) == (0.001, 1)
    assert better["p_adjusted"] == pytest.approx(0.003), "of the three pairs in the only gain"
    assert found["same", "much"]["difference"] < 0
    assert found["same", "much"]["win_rate"] == 0
    assert found["same", "little"]["p_adjusted"] > 0.05


def test_gains_make_no_other_test_harsher() -> None:
    users = [f"u{number}" for number in range(40)]
    methods = {("a", "p"): long_scores(0, 0.1)[0], ("b", "p"): long_scores(1, 0.4)[0]}
    without = {key: result.without(GAIN, LENGTH) for key, result in methods.items()}
    rows, before = (comparison_rows(one, users, ["C"] * 40, samples=500) for one in (methods, without))
    kept = {row["metric"] for row in before}
    assert LIKELIHOOD in kept
    assert [row for row in rows if row["metric"] in kept] == before


def test_a_method_without_history_has_a_dash(scores: ExampleScores) -> None:
    plain = {("sft", "p"): scores.only({LIKELIHOOD}), ("ours", "p"): scores}
    rows = metric_rows(plain, USERS, ["C"] * 2, samples=100)
    comparisons = comparison_rows(plain, USERS, ["C"] * 2, samples=100)
    assert {row["metric"] for row in comparisons} == {LIKELIHOOD}
    (block,) = likelihood_blocks(rows, comparisons, GAIN)
    (first, dashes), (second, values) = block.table.lines
    assert (first, second) == ("sft", "ours")
    assert {cell.value for cell in dashes} == {"–"}
    assert "–" not in {cell.value for cell in values}
    half = scores.only({*scores.keys} - {PERSONAL_GAIN, "preference_personal_gain"})  # without the control
    both = metric_rows({("half", "p"): half, ("ours", "p"): scores}, USERS, ["C"] * 2, samples=100)
    (block,) = likelihood_blocks(both, [], GAIN)
    names = [metric.key for metric in block.table.metrics]
    shown = {method: dict(zip(names, cells, strict=True)) for method, cells in block.table.lines}
    assert shown["half"][PERSONAL_GAIN].value == "–"
    assert shown["half"][HISTORY_GAIN].value == shown["ours"][HISTORY_GAIN].value == "0.6931"
    assert shown["ours"]["preference_history_gain"].value == "1.3863"


def test_gains_come_first_and_cut_answers_last(scores: ExampleScores) -> None:
    rows = metric_rows({("m", "paper"): scores, ("m", "sane"): scores}, USERS, ["C"] * 2, samples=100)
    titles = [title for title, _ in shown_tables(rows)]
    assert titles == [
        "C, gain by history in nats a token, n = 2",
        "C, sane decoding, n = 2",
        "C, paper decoding, n = 2",
        "C, sane decoding, answers cut to the length of the true review, n = 2",
        "C, paper decoding, answers cut to the length of the true review, n = 2",
    ]
    first = next(table for _, table in shown_tables(rows))
    assert first.metrics[0].key == PERSONAL_GAIN
    assert "Personal gain" in first.markdown
    assert not {*first.metrics} & {metric for _, table in list(shown_tables(rows))[1:] for metric in table.metrics}


def test_gains_of_single_examples(scores: ExampleScores) -> None:
    rows = example_table({("m", "p"): scores}, ["e0", "e1"]).to_pylist()
    assert [row[PERSONAL_GAIN] / LOG2 for row in rows] == pytest.approx([1, 0])
    assert [row[HISTORY_GAIN] / LOG2 for row in rows] == pytest.approx([3, 0])
    assert [row["tokens"] for row in rows] == [2, 1]
    assert [row["preference_tokens"] for row in rows] == [1, 0]
    assert {row["preference_personal_gain_exact"] for row in rows} == {None}


def test_a_gain_of_other_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="of the same tokens"):
        gain_sums(sums(OWN), sums([[-1], [-1]]))


def test_no_token_no_gain(scores: ExampleScores) -> None:
    alone = scores.take(np.array([1]))
    assert "preference_personal_gain" not in alone.keys
    with pytest.raises(ValueError, match="nothing to measure preference_personal_gain"):
        alone.value("preference_personal_gain")


def test_cut_answers_by_hand() -> None:
    """The first 4 of 6 words against 4: three shared, two of them in order. Whole: four shared of 6 and of 4.

    An answer of 2 words stays as it is.
    """
    found = score_examples(["red wine and tea with wine", "red tea"], ["tea red wine with", "tea red wine with"])
    first, second = found.take(np.array([0])), found.take(np.array([1]))
    assert first.value("rouge1") == pytest.approx(2 * 4 / (6 + 4))
    assert first.value("rouge1_cut") == pytest.approx(3 / 4)
    assert first.value("rougeL_cut") == pytest.approx(2 / 4)
    assert first.value("meteor_cut") == pytest.approx(score_examples(["red wine and tea"], ["tea red wine with"])
                                                      .value("meteor"))  # fmt: skip
    assert [second.value(cut) for cut in CUT_FORMS.values()] == [second.value(whole) for whole in CUT_FORMS]


def test_an_answer_that_goes_on_gains_and_loses_nothing() -> None:
    """Whatever follows the first words changes no cut score, and changes the others."""
    references = ["a quiet book about rivers and rain", "it was dull"]
    starts = ["a warm book about rivers and snow", "it was bright"]
    short = score_examples(starts, references)
    long = score_examples([f"{start} it was dull and never quiet" * 2 for start in starts], references)
    for whole, cut in CUT_FORMS.items():
        assert long.value(cut) == short.value(cut) == short.value(whole)
        assert long.value(whole) != short.value(whole)


def test_a_cut_rouge_is_rouge_score_s_own_of_the_cut_text() -> None:
    scorer = RougeScorer(["rouge1", "rougeL"], use_stemmer=False)
    rng = np.random.default_rng(0)
    words = ["the", "plot", "was", "slow", "and", "warm", "but", "i", "loved", "this", "book"]
    for _ in range(50):
        answer, reference = (" ".join(rng.choice(words, size=rng.integers(1, 25))) for _ in range(2))
        found = score_examples([answer], [reference])
        cut = " ".join(answer.split()[: len(reference.split())])
        expected = scorer.score(reference, cut)
        assert found.value("rouge1_cut") == expected["rouge1"].fmeasure
        assert found.value("rougeL_cut") == expected["rougeL"].fmeasure
