"""Rows that compare two evaluations: what both share, pairs of examples, and the numbers of the paired bootstrap."""

from __future__ import annotations

import numpy as np
import pytest

from nextquill_core.evaluation.between_runs import matched, paired_rows, shared_scores
from nextquill_core.evaluation.metrics import LIKELIHOOD, ExampleScores
from nextquill_core.evaluation.significance import paired_bootstrap
from nextquill_core.evaluation.tables import NO_TEXTS, SAMPLES_A_COMPARISON

USERS = [f"C:u{number // 2}" for number in range(10)]


def scores(seed: int, *metrics: str) -> ExampleScores:
    draw = np.random.default_rng(seed)
    return ExampleScores({}).plus({metric: draw.random(10) for metric in metrics})


def test_shared_are_methods_under_a_preset_and_likelihoods_under_any() -> None:
    mine = {
        ("qwen", "sane"): scores(1, "rouge1", "meteor", LIKELIHOOD),
        ("qwen", "paper"): scores(2, "rouge1", LIKELIHOOD),
        ("cos", "sane"): scores(3, "rouge1"),
    }
    theirs = {
        ("qwen", "paper"): scores(4, "rouge1", LIKELIHOOD),
        ("cos", "paper"): scores(5, "rouge1"),
    }
    for side in shared_scores(mine, theirs, {"rouge1", "meteor", LIKELIHOOD}):
        assert {key: set(found.keys) for key, found in side.items()} == {
            ("qwen", NO_TEXTS): {LIKELIHOOD},
            ("qwen", "paper"): {"rouge1"},
        }
    assert shared_scores(mine, theirs, {"meteor"}) == ({}, {})


def test_a_row_has_the_numbers_of_the_paired_bootstrap() -> None:
    a, b = scores(1, "rouge1"), scores(2, "rouge1")
    (row,) = paired_rows({("qwen", "sane"): a}, {("qwen", "sane"): b}, USERS, ["C"] * 10, samples=300)
    expected = paired_bootstrap(b.statistics["rouge1"], a.statistics["rouge1"], USERS, samples=300)
    assert row["difference"] == pytest.approx(expected.difference.value)
    assert (row["ci_low"], row["ci_high"]) == (expected.difference.low, expected.difference.high)
    assert (row["p_value"], row["win_rate"]) == (expected.p_value, expected.win_rate)
    assert row["p_adjusted"] == row["p_value"]


def test_more_is_drawn_where_a_table_has_many_comparisons() -> None:
    """With 10 samples no corrected p-value of 4 comparisons could lie below 4 / 11."""
    zeros, ones = (ExampleScores({}).plus({"rouge1": np.full(10, value)}) for value in (0.0, 1.0))
    methods = [(f"m{number}", "sane") for number in range(4)]
    sides = dict.fromkeys(methods, zeros), dict.fromkeys(methods, ones)
    rows = paired_rows(*sides, USERS, ["C"] * 10, samples=10)
    assert {row["p_adjusted"] for row in rows} == {4 / (4 * SAMPLES_A_COMPARISON + 1)}


def test_examples_are_matched_by_id() -> None:
    first, second = matched(["c", "a", "b"], ["b", "d", "c"])
    assert (first.tolist(), second.tolist()) == ([2, 0], [0, 2])
    assert [len(side) for side in matched(["a"], [])] == [0, 0]


def test_sides_of_different_lengths_are_refused() -> None:
    one = {("qwen", "sane"): scores(1, "rouge1")}
    shorter = {("qwen", "sane"): scores(1, "rouge1").take(np.arange(9))}
    with pytest.raises(ValueError, match="examples"):
        paired_rows(one, shorter, USERS, ["C"] * 10)
