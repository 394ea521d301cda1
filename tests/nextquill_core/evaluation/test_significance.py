"""Tests for the bootstrap over users."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextquill_core.evaluation.metrics import bleu_of_sums
from nextquill_core.evaluation.significance import (
    Interval,
    Values,
    bootstrap_interval,
    compare_values,
    holm,
    interval_of,
    paired_bootstrap,
    ratio_of_sums,
    resample,
    user_sums,
)


def mean_stats(values: list[float] | np.ndarray) -> np.ndarray:
    return np.stack([np.asarray(values, dtype=float), np.ones(len(values))], axis=1)


def names(count: int) -> list[str]:
    return [f"u{index}" for index in range(count)]


def test_interval_by_hand() -> None:
    """Two users with 0 and 1: a resample's mean is 0, 1/2, 1 with chances 1/4, 1/2, 1/4; 2.5 and 97.5 % are 0, 1."""
    interval = bootstrap_interval(mean_stats([0, 1]), ["a", "b"])
    assert (interval.value, interval.low, interval.high) == (0.5, 0, 1)
    assert bootstrap_interval(mean_stats([3, 3, 3]), names(3)).low == 3


def test_a_user_brings_all_its_examples() -> None:
    """Three examples of a (0) and one of b (1): resamples are aa, ab, bb with means 0, 1/4, 1, never anything else."""
    sums = user_sums(mean_stats([0, 0, 1, 0]), ["a", "a", "b", "a"])
    assert sums.tolist() == [[0, 3], [1, 1]]
    means, counts = np.unique(ratio_of_sums(resample(sums, samples=4000, seed=0)), return_counts=True)
    assert means.tolist() == [0, 0.25, 1]
    assert counts / 4000 == pytest.approx([0.25, 0.5, 0.25], abs=0.03)


def test_standard_error_of_a_mean() -> None:
    """For a mean the bootstrap's standard error is σ/√U, with σ over all users."""
    values = np.random.default_rng(0).normal(size=400)
    resampled = ratio_of_sums(resample(user_sums(mean_stats(values), names(400)), samples=4000, seed=1))
    assert resampled.std() == pytest.approx(values.std() / 20, rel=0.05)


@pytest.mark.parametrize("at_once", [30, 2_000_000])
def test_resampling_agrees_with_drawing_users_one_by_one(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    """The same draws, applied to a list of users instead of a matrix product; in several chunks and in one."""
    monkeypatch.setattr("nextquill_core.evaluation.significance._DRAWS_AT_ONCE", at_once)
    sums = np.random.default_rng(0).integers(0, 9, size=(5, 10)).astype(float)
    draws = np.random.default_rng(7).integers(5, size=(50, 5))
    assert resample(sums, samples=50, seed=7).tolist() == [sums[draw].sum(axis=0).tolist() for draw in draws]


@given(st.permutations(range(12)), st.integers(0, 3))
def test_order_of_examples_changes_no_bit(order: list[int], seed: int) -> None:
    values = np.random.default_rng(9).normal(size=12)
    users = [f"u{index % 5}" for index in range(12)]
    straight = bootstrap_interval(mean_stats(values), users, samples=100, seed=seed)
    turned = bootstrap_interval(mean_stats(values[order]), [users[index] for index in order], samples=100, seed=seed)
    assert straight == turned


def test_coverage() -> None:
    """Of 300 intervals, each from 60 users with two examples each, about 95 % hold the true mean, 1."""
    rng = np.random.default_rng(0)
    held = 0
    for seed in range(300):
        values = np.repeat(rng.exponential(size=60), 2) + rng.normal(0, 0.1, size=120)
        interval = bootstrap_interval(mean_stats(values), np.repeat(names(60), 2).tolist(), samples=300, seed=seed)
        held += interval.low <= 1 <= interval.high
    assert 0.88 <= held / 300 <= 0.98


def test_taking_examples_for_users_would_be_too_sure() -> None:
    values = np.repeat(np.random.default_rng(0).normal(size=40), 8)
    by_user = bootstrap_interval(mean_stats(values), np.repeat(names(40), 8).tolist())
    by_example = bootstrap_interval(mean_stats(values), names(320))
    assert by_user.high - by_user.low > 2 * (by_example.high - by_example.low)


def test_interval_of_bleu() -> None:
    """Two users, one perfect and one without a match: resamples score 100, 0, or what lies between."""
    perfect = [9, 8, 7, 6, 9, 8, 7, 6, 9, 9]
    nothing = [0, 0, 0, 0, 9, 8, 7, 6, 9, 9]
    interval = bootstrap_interval([perfect, nothing], ["a", "b"], bleu_of_sums)
    assert interval.value == pytest.approx(50)  # half of every order's n-grams
    assert (interval.low, interval.high) == (0, pytest.approx(100))


def test_a_clear_difference() -> None:
    values = np.random.default_rng(0).normal(size=80)
    result = paired_bootstrap(mean_stats(values + 0.5), mean_stats(values), names(80), samples=999)
    assert result.difference.value == pytest.approx(0.5)
    assert result.difference.low == pytest.approx(0.5)
    assert (result.p_value, result.win_rate) == (0.001, 1)


def test_no_difference() -> None:
    stats = mean_stats(np.random.default_rng(0).normal(size=80))
    result = paired_bootstrap(stats, stats, names(80))
    assert (result.difference.value, result.p_value, result.win_rate) == (0, 1, 0.5)


def test_pairing_sees_what_separate_intervals_hide() -> None:
    """Users differ far more than methods do: the intervals overlap, the paired test is sure."""
    rng = np.random.default_rng(0)
    base = rng.normal(0, 5, size=100)
    better = base + rng.normal(0.1, 0.1, size=100)
    first = bootstrap_interval(mean_stats(better), names(100))
    second = bootstrap_interval(mean_stats(base), names(100))
    assert first.low < second.high
    assert paired_bootstrap(mean_stats(better), mean_stats(base), names(100)).p_value < 0.01


def test_false_alarms_are_as_rare_as_promised() -> None:
    """Under no true difference p < 0.05 in about one of twenty."""
    rng = np.random.default_rng(1)
    alarms = 0
    for seed in range(300):
        first, second = mean_stats(rng.normal(size=50)), mean_stats(rng.normal(size=50))
        alarms += paired_bootstrap(first, second, names(50), samples=300, seed=seed).p_value < 0.05
    assert 0.02 <= alarms / 300 <= 0.09


def test_swapping_the_methods_mirrors_the_result() -> None:
    rng = np.random.default_rng(4)
    first, second = mean_stats(rng.normal(size=30)), mean_stats(rng.normal(0.2, 1, size=30))
    there, back = (paired_bootstrap(*pair, names(30)) for pair in ((first, second), (second, first)))
    assert there.p_value == back.p_value
    assert there.win_rate == pytest.approx(1 - back.win_rate)
    assert there.difference.low == pytest.approx(-back.difference.high)


def test_one_user_proves_nothing() -> None:
    assert paired_bootstrap(mean_stats([1, 1]), mean_stats([0, 0]), ["a", "a"]).p_value == 1


def test_holm_by_hand() -> None:
    """Sorted .005 .01 .03 .04, times 4 3 2 1: .02 .03 .06 .04; never below the one before: .02 .03 .06 .06."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.7, 0.9]) == [1, 1]
    assert holm([]) == []


@pytest.mark.parametrize(("rows", "users"), [([1, 2], ["a"]), ([1], ["a", "b"]), ([], [])])
def test_wrong_numbers(rows: list[float], users: list[str]) -> None:
    with pytest.raises(ValueError, match=f"{len(rows)} rows of statistics for {len(users)} users"):
        bootstrap_interval(mean_stats(rows), users)


def test_what_counts_nothing_has_no_ratio() -> None:
    assert np.isnan(ratio_of_sums(np.array([[0.0, 0.0], [3.0, 0.0]]))).all()
    assert ratio_of_sums(np.array([3.0, 2.0])) == 1.5


def test_what_measures_nothing_takes_no_part() -> None:
    """Of three users one has nothing to measure: one win and one tie of two are 3/4. Of four resamples the NaN is left
    out; the others differ by 1, 2, 3, mean 2: one of them lies as far from it as the observed 1 from 0, or two, as
    both ends do. (1 + 2) / (1 + 3) = 3/4.
    """
    nan = np.nan
    mine = Values(1.0, np.array([2.0, nan, 0.0]), np.array([1.0, 2.0, nan, 3.0]))
    theirs = Values(0.0, np.array([1.0, nan, 0.0]), np.array([0.0, 0.0, nan, 0.0]))
    found = compare_values(mine, theirs)
    assert found.win_rate == 0.75
    assert found.p_value == 0.75
    assert (found.difference.low, found.difference.high) == (1.05, 2.95)
    nothing = compare_values(Values(1.0, np.full(3, nan), np.full(4, nan)), theirs)
    assert (nothing.p_value, nothing.win_rate, nothing.difference.low) == (1.0, 0.5, 1.0)


@pytest.mark.parametrize(
    ("resampled", "bound"), [([np.nan] * 2, 2.0), ([0.12345678914] * 3, 0.1234567891)], ids=["nothing", "ten digits"]
)
def test_bounds_have_ten_digits_and_of_nothing_are_the_value(resampled: list[float], bound: float) -> None:
    assert interval_of(2.0, np.array(resampled)) == Interval(2.0, bound, bound)


def test_the_seed_decides_and_without_other_settings_there_are_1000_resamples_of_seed_42() -> None:
    first, second = (mean_stats(np.random.default_rng(seed).normal(size=30)) for seed in (0, 1))
    assert bootstrap_interval(first, names(30)) == bootstrap_interval(first, names(30), samples=1000, seed=42)
    assert bootstrap_interval(first, names(30)) != bootstrap_interval(first, names(30), seed=2)
    assert paired_bootstrap(first, second, names(30)) == paired_bootstrap(
        first, second, names(30), samples=1000, seed=42
    )


@pytest.mark.parametrize(("at_once", "rows"), [(30, [4, 4, 2]), (28, [4, 4, 2]), (27, [3, 3, 3, 1]), (6, [1] * 10)])
def test_as_many_resamples_are_drawn_at_once_as_fit(
    monkeypatch: pytest.MonkeyPatch, at_once: int, rows: list[int]
) -> None:
    """Ten resamples of seven users: 30 or 28 draws at once are four resamples, 27 three, and one is the least."""
    monkeypatch.setattr("nextquill_core.evaluation.significance._DRAWS_AT_ONCE", at_once)
    drawn: list[int] = []
    count = np.bincount

    def watched(draws: np.ndarray, minlength: int) -> np.ndarray:
        drawn.append(minlength // 7)
        return count(draws, minlength=minlength)

    monkeypatch.setattr(np, "bincount", watched)
    resample(np.ones((7, 2)), samples=10, seed=0)
    assert drawn == rows


def test_a_user_whom_one_method_alone_can_measure_takes_no_part() -> None:
    """Of three users the first is a win and the second a loss; the third has no value of the other method."""
    resampled = np.zeros(4)
    mine, theirs = (
        Values(1.0, np.array([2.0, 0.0, 5.0]), resampled),
        Values(0.0, np.array([1.0, 1.0, np.nan]), resampled),
    )
    assert compare_values(mine, theirs).win_rate == 0.5
    assert compare_values(theirs, mine).win_rate == 0.5
