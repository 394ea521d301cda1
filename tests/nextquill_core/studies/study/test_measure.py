"""Tables over users and seeds, on two users and two seeds whose resamples can be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from nextquill_core.evaluation.metrics import LIKELIHOOD, ExampleScores, preference_key
from nextquill_core.studies.study.measure import Line, table

USERS = ("C/u", "C/v")
PREFERENCE_LIKELIHOOD = preference_key(LIKELIHOOD, "initial")


def line(method: str, *seeds: tuple[float, float], preferred: int = 1) -> Line:
    """One example of one token for each of two users, under each seed."""
    by_seed = tuple(
        ExampleScores(
            {
                LIKELIHOOD: np.array([[u, 1.0], [v, 1.0]]),
                PREFERENCE_LIKELIHOOD: np.array([[u, preferred], [v, preferred]]),
            }
        )
        for u, v in seeds
    )
    return Line(method, "base", by_seed)


def test_values_are_means_over_seeds_and_draws_cross_users_with_seeds() -> None:
    mine, theirs = line("nextquill", (-1, -3), (-2, -4)), line("contextsft", (-2, -3), (-3, -5))
    rows, comparisons = table([mine, theirs], USERS, [(0, 1)], [LIKELIHOOD], samples=4000, seed=1)
    found = {row["method"]: row for row in rows}
    assert found["nextquill"]["value"] == pytest.approx(-2.5)  # of −2 and −3
    assert found["contextsft"]["value"] == pytest.approx(-3.25)  # of −2.5 and −4
    assert (found["nextquill"]["n"], found["nextquill"]["seeds"]) == (2, 2)
    # Least and largest: both draws are v under the second seed, or u under the first; each has 1 in 16 resamples.
    assert (found["nextquill"]["ci_low"], found["nextquill"]["ci_high"]) == (-4.0, -1.0)
    [pair] = comparisons
    assert pair["difference"] == pytest.approx(0.75)
    # By seed, u and v differ by (1, 0) and (1, 1): 1 resample in 16, v and v under the first seed twice, gives 0.
    assert (pair["ci_low"], pair["ci_high"]) == (0.0, 1.0)
    assert pair["p_value"] == pytest.approx(1 / 16, abs=0.012)
    assert pair["p_adjusted"] == pair["p_value"]
    assert pair["win_rate"] == 1.0


def test_with_one_seed_the_draws_are_over_users_alone() -> None:
    rows, _ = table([line("nextquill", (-1, -3))], USERS, [], [LIKELIHOOD], samples=1000, seed=1)
    assert [(row["value"], row["ci_low"], row["ci_high"]) for row in rows] == [(-2.0, -3.0, -1.0)]


def test_p_values_are_corrected_over_all_comparisons_of_the_table() -> None:
    lines = [
        line("nextquill", (-1, -3), (-2, -4)),
        line("contextsft", (-2, -3), (-3, -5)),
        line("sft", (-1, -3), (-2, -4)),
    ]
    _, comparisons = table(lines, USERS, [(0, 1), (0, 2)], [LIKELIHOOD], samples=4000, seed=1)
    least, other = sorted(comparisons, key=lambda row: row["p_value"])
    assert least["p_adjusted"] == pytest.approx(2 * least["p_value"])
    assert other["p_adjusted"] == 1.0, "equal lines"


def test_lines_that_measured_other_tokens_are_not_compared() -> None:
    lines = [line("nextquill", (-1, -3)), line("contextsft", (-2, -3), preferred=2)]
    _, comparisons = table(lines, USERS, [(0, 1)], [LIKELIHOOD, PREFERENCE_LIKELIHOOD], samples=200, seed=1)
    assert [row["metric"] for row in comparisons] == [LIKELIHOOD]


def test_the_order_of_lines_changes_no_number() -> None:
    lines = [line("nextquill", (-1, -3), (-2, -4)), line("contextsft", (-2, -3), (-3, -5))]
    first, _ = table(lines, USERS, [], [LIKELIHOOD], samples=500, seed=7)
    second, _ = table(lines[::-1], USERS, [], [LIKELIHOOD], samples=500, seed=7)
    assert first == second[::-1]


def test_a_line_with_fewer_seeds_is_compared_under_the_first_seeds_of_the_other() -> None:
    lines = [line("sft", (-1, -3)), line("contextsft", (-2, -3), (-30, -50))]
    rows, [pair] = table(lines, USERS, [(0, 1)], [LIKELIHOOD], samples=500, seed=1)
    assert {row["method"]: row["seeds"] for row in rows} == {"sft": 1, "contextsft": 2}
    assert (pair["difference"], pair["seeds"]) == (0.5, 1)
    assert (pair["ci_low"], pair["ci_high"]) == (0.0, 1.0)
