"""Folds of users: the same everywhere, and level."""

from __future__ import annotations

from collections import Counter
from math import sqrt

import pytest

from nextquill_core.folds import fold_of


def test_folds_are_pinned() -> None:
    """By hand: `printf u0 | sha256sum` begins 9dc02223da426384: even, divisible by 3, and 3 modulo 5."""
    assert 0x9DC02223DA426384 % 2 == 0x9DC02223DA426384 % 3 == 0
    assert [fold_of("u0", folds) for folds in (1, 2, 3, 5)] == [0, 0, 0, 3]
    assert [fold_of(user, 2) for user in ("u1", "u2", "u3", "u4", "", "Ünal")] == [0, 1, 0, 1, 0, 0]


@pytest.mark.parametrize("folds", [2, 3, 5, 10])
def test_users_are_spread_evenly(folds: int) -> None:
    """Within four standard deviations of a binomial count, for ids that differ in one place only."""
    users = 20_000
    counts = Counter(fold_of(f"AHV6QCNBJNSGLATP56JAWJ3C4G2{number:05d}", folds) for number in range(users))
    assert set(counts) == set(range(folds))
    share = 1 / folds
    assert all(abs(count - users * share) < 4 * sqrt(users * share * (1 - share)) for count in counts.values())


def test_there_is_one_fold_at_least() -> None:
    with pytest.raises(ValueError, match="at least one fold"):
        fold_of("u0", 0)
