"""Confidence intervals and paired tests by the bootstrap over users.

A user's examples are not independent of each other, so users are drawn, with replacement, each with all of its
examples. Every metric is a function of sums over examples (a mean of a sum and a count, BLEU of its n-gram counts), so
a resample is a weighted sum of the users' sums, and one matrix product gives all resamples of all metrics.

    B resamples, U users, K sums a metric needs, n examples
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]  # sums of shape (…, K) to values of shape (…)

LEVEL = 0.95
"""Share of the resamples inside an interval."""
SAMPLES = 1000
_DRAWS_AT_ONCE = 2_000_000


@dataclass(frozen=True, slots=True)
class Interval:
    """A value and its percentile bootstrap interval, in the metric's unit."""

    value: float
    low: float
    high: float

    @property
    def columns(self) -> dict[str, float]:
        """The interval as columns of a table: value, ci_low and ci_high."""
        return {"value": self.value, "ci_low": self.low, "ci_high": self.high}


@dataclass(frozen=True, slots=True)
class Comparison:
    """The comparison of two methods on the same examples.

    Attributes:
        difference: The first method's value minus the second's, in the metric's unit, with its interval.
        p_value: Two-sided, of the hypothesis that the difference is zero; at least 1 / (resamples + 1).
        win_rate: Share of the users for whom the first method's value is larger; a tie counts as one half.
    """

    difference: Interval
    p_value: float
    win_rate: float


@dataclass(frozen=True, slots=True)
class Values:
    """The values of one metric of one method.

    Attributes:
        whole: Value over all users.
        users: Value of each user alone, shape (U,), NaN for one with nothing to measure.
        resampled: Value of each resample, shape (B,), NaN for one with nothing to measure.
    """

    whole: float
    users: Floats
    resampled: Floats


def ratio_of_sums(sums: Floats) -> Floats:
    """Return the first sum over the second: a mean, where the second counts examples; NaN where it counts none."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio: Floats = np.where(sums[..., 1] == 0, np.nan, sums[..., 0] / sums[..., 1])
    return ratio


def difference_of_ratios(sums: Floats) -> Floats:
    """Return the difference of two means over the same count; NaN where the count is 0.

    Both means are computed before they are subtracted, so the result is exactly the difference of the two metrics that
    `ratio_of_sums` gives.

    Args:
        sums: Shape (…, 3): the first sum, the second sum, the count of both.
    """
    return ratio_of_sums(sums[..., [0, 2]]) - ratio_of_sums(sums[..., [1, 2]])


def bootstrap_interval(
    stats: ArrayLike,
    users: Sequence[str],
    statistic: Statistic = ratio_of_sums,
    *,
    samples: int = SAMPLES,
    seed: int = 42,
) -> Interval:
    """Return the percentile bootstrap interval over users (Efron and Tibshirani 1993, chapter 13).

    Args:
        stats: Statistics of each example, shape (n, K); for a mean, (value, 1).
        users: The user of each example.
        statistic: From sums to the metric.
        samples: Number of resamples.
        seed: Seed of the draws; the order of the examples does not matter.

    Raises:
        ValueError: There is no example, or `users` and `stats` differ in length.
    """
    sums = user_sums(stats, users)
    return interval_of(statistic(sums.sum(axis=0)), statistic(resample(sums, samples=samples, seed=seed)))


def paired_bootstrap(
    stats: ArrayLike,
    other: ArrayLike,
    users: Sequence[str],
    statistic: Statistic = ratio_of_sums,
    *,
    samples: int = SAMPLES,
    seed: int = 42,
) -> Comparison:
    """Compare two methods on the same examples, both resampled with the same users; see `compare_values`.

    Args:
        stats: Statistics of each example under the first method, shape (n, K).
        other: The same under the second method.
        users: The user of each example.
        statistic: From sums to the metric.
        samples: Number of resamples.
        seed: Seed of the draws.
    """
    sides = [user_sums(rows, users) for rows in (stats, other)]
    return compare_values(*(values_of(sums, resample(sums, samples=samples, seed=seed), statistic) for sums in sides))


def user_sums(stats: ArrayLike, users: Sequence[str]) -> Floats:
    """Return the sum of each user's rows, shape (U, K), users in sorted order; the order of the rows changes no bit.

    Raises:
        ValueError: There are no rows, or the numbers of rows and users differ.
    """
    rows = np.asarray(stats, dtype=np.float64)
    if len(rows) != len(users) or len(rows) == 0:
        raise ValueError(f"{len(rows)} rows of statistics for {len(users)} users")
    codes = np.unique(np.asarray(users, dtype=np.str_), return_inverse=True)[1]
    order = np.lexsort((*rows.T, codes))  # floating-point sums depend on the order, so rows are sorted by value
    starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
    sums: Floats = np.add.reduceat(rows[order], starts, axis=0)
    return sums


def resample(sums: Floats, *, samples: int, seed: int) -> Floats:
    """Return sums over resampled users, shape (B, K).

    Args:
        sums: Sums of each user, shape (U, K).
        samples: Number of resamples, B.
        seed: Seed of the draws, which otherwise depend on U and B only.
    """
    rng = np.random.default_rng(seed)
    n_users = len(sums)
    chunk = max(1, _DRAWS_AT_ONCE // n_users)
    resampled = np.empty((samples, sums.shape[1]))
    for start in range(0, samples, chunk):
        rows = min(chunk, samples - start)
        draws = rng.integers(n_users, size=(rows, n_users)) + n_users * np.arange(rows)[:, None]
        times_drawn = np.bincount(draws.ravel(), minlength=rows * n_users).reshape(rows, n_users)
        resampled[start : start + rows] = times_drawn.astype(np.float64) @ sums
    return resampled


def values_of(sums: Floats, resampled: Floats, statistic: Statistic = ratio_of_sums) -> Values:
    """Return the metric of all users, of each user, and of each resample.

    Args:
        sums: Sums of each user, shape (U, K).
        resampled: Sums of each resample, shape (B, K).
        statistic: From sums to the metric.
    """
    return Values(float(statistic(sums.sum(axis=0))), statistic(sums), statistic(resampled))


def mean_over_seeds(by_seed: Sequence[Values], *, seed: int = 42) -> Values:
    """Return the mean of a metric over training seeds, resampled over users and seeds together.

    A resample draws users (the same for each training seed, as they come with `by_seed`) and, independently, as many
    training seeds as there are, with replacement. The bootstrap over S seeds gives (S − 1)/S of their variance, so with
    few seeds the intervals are a little narrow; with one seed they are over users alone.

    Args:
        by_seed: The metric under each training seed, resampled with the same draws of users.
        seed: Seed of the draws of training seeds, which otherwise depend on S and B only.
    """
    count, samples = len(by_seed), len(by_seed[0].resampled)
    drawn = np.random.default_rng((seed, count)).integers(count, size=(samples, count))
    resampled = np.stack([values.resampled for values in by_seed])[drawn.T, np.arange(samples)].mean(axis=0)
    users: Floats = np.stack([values.users for values in by_seed]).mean(axis=0)
    return Values(float(np.mean([values.whole for values in by_seed])), users, resampled)


def interval_of(value: float | np.floating | Floats, resampled: Floats) -> Interval:
    """Return the interval between the quantiles of resampled values; NaN, nothing to measure, is left out.

    Args:
        value: The value over all users.
        resampled: The value of each resample, shape (B,).
    """
    drawn = resampled[~np.isnan(resampled)]
    if not len(drawn):
        return Interval(float(value), float(value), float(value))
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(value), _settled(low), _settled(high))


def compare_values(mine: Values, theirs: Values) -> Comparison:
    """Compare two methods whose resamples are of the same draws of users.

    The p-value is the share of resampled differences that lie at least as far from their mean as the observed
    difference lies from zero (Riezler and Maxwell 2005, the paired bootstrap of sacreBLEU); the observed difference
    counts as one of them. Users and resamples with nothing to measure are left out.
    """
    observed = mine.whole - theirs.whole
    differences = mine.resampled - theirs.resampled
    differences = differences[~np.isnan(differences)]
    measured = ~np.isnan(mine.users - theirs.users)
    first, second = mine.users[measured], theirs.users[measured]
    if len(first) < 2 or not len(differences):  # one user is no sample
        p_value = 1.0
    else:
        as_far = np.abs(differences - differences.mean()) >= abs(observed)
        p_value = (1 + int(as_far.sum())) / (1 + len(differences))
    return Comparison(
        difference=interval_of(observed, differences),
        p_value=p_value,
        win_rate=float(np.mean((first > second) + 0.5 * (first == second))) if len(first) else 0.5,
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's step-down correction of p-values (Holm 1979), which bounds the family-wise error rate."""
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable").tolist()):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def _settled(value: float) -> float:
    """Round off the last digits, in which a matrix product differs from machine to machine."""
    return round(float(value), 10)
