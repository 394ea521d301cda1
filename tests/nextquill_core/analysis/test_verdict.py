"""The verdict says what the numbers show, and no more."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from nextquill_core.analysis.result_tables import preset_order
from nextquill_core.analysis.verdict import (
    BETTER,
    UNCLEAR,
    WORSE,
    Difference,
    differences,
    reference_order,
    verdict,
)
from nextquill_core.evaluation.metrics import METRICS
from tests.nextquill_core.analysis.rows import compared as compared_row

METHODS = ("qwen", "contextsft", "nextquill")
compared = partial(compared_row, decoding="sane")


def sentences(*rows: dict[str, Any], users: int = 60, evaluated: tuple[str, ...] = METHODS) -> tuple[str, ...]:
    return verdict(differences(rows, "nextquill", users), "nextquill", users, evaluated)


def one(
    value: float, low: float, high: float, *, p: float = 0.001, users: int = 60, metric: str = "rouge1"
) -> Difference:
    return Difference("nextquill", "contextsft", METRICS[metric], "sane", value, low, high, p, users)


@pytest.mark.parametrize(
    ("difference", "outcome"),
    [
        (one(0.02, 0.01, 0.03), BETTER),
        (one(-0.02, -0.03, -0.01), WORSE),
        (one(0.02, -0.01, 0.05), UNCLEAR),
        (one(0.02, 0.0, 0.04), UNCLEAR),
        (one(0.02, 0.01, 0.03, p=0.05), UNCLEAR),
        (one(0.02, 0.01, 0.03, users=19), UNCLEAR),
        (one(0.02, 0.01, 0.03, users=20), BETTER),
        (one(0.0, 0.0, 0.0), UNCLEAR),
    ],
)
def test_an_outcome_needs_the_interval_the_test_and_users(difference: Difference, outcome: str) -> None:
    assert difference.outcome == outcome


def test_better_in_every_measure() -> None:
    found = sentences(
        compared("personal_gain", 0.012, 0.009),
        compared("log_likelihood", 1.25, 0.2, "qwen"),
        compared("rouge1", 0.15, 0.02, "qwen"),
    )
    assert found == (
        "For these 60 users, nextquill is better than contextsft in personal gain (+0.012 nats a token, 95 % interval "
        "+0.003 to +0.021) and than qwen in log-likelihood (+1.250 nats a token, +1.050 to +1.450) and ROUGE-1 "
        "(+0.150, +0.130 to +0.170, sane decoding).",
        "Nothing that was measured is shown to be worse.",
    )


def test_what_is_not_shown_is_said_with_its_numbers() -> None:
    better, unclear, _ = sentences(
        compared("log_likelihood", 0.1), compared("personal_gain", 0.004, 0.006), compared("rouge1", -0.001, 0.002)
    )
    assert better.startswith("For these 60 users, nextquill is better than contextsft in log-likelihood (+0.100")
    assert "ROUGE-1" not in better
    assert unclear == (
        "Not shown is a difference in personal gain against contextsft (+0.004, −0.002 to +0.010) and in ROUGE-1 "
        "against contextsft (−0.001, −0.003 to +0.001), because the interval includes zero."
    )


def test_thousands_are_separated() -> None:
    first, *_ = sentences(compared("personal_gain", 0.0, 0.1), users=4000)
    assert first.startswith("For these 4,000 users, no advantage")


def test_a_test_that_fails_after_correction_is_not_shown() -> None:
    none, unclear, _ = sentences(compared("personal_gain", 0.02, p_adjusted=0.2))
    assert none == "For these 60 users, no advantage of nextquill over contextsft is shown."
    assert unclear.endswith("because the interval includes zero or the test does not hold after correction.")


def test_worse_in_any_metric_is_said() -> None:
    found = sentences(compared("personal_gain", 0.02), compared("bleu", -2.0, 0.5), compared("meteor_cut", -0.02))
    assert found[-1] == (
        "It is worse than contextsft in BLEU (−2.000, −2.500 to −1.500, sane decoding) and METEOR (cut) "
        "(−0.020, −0.030 to −0.010, sane decoding)."
    )
    worst = sentences(
        *(compared(key, -0.1) for key in ("rouge1", "rougeL", "meteor", "bleu", "meteor_cut", "rouge1_cut"))
    )
    assert worst[0] == "For these 60 users, no advantage of nextquill over contextsft is shown."
    assert worst[-1].count("sane decoding") == 4
    assert worst[-1].endswith("and in 2 more comparisons.")
    assert len(worst) == 2


def test_a_missing_reference_is_said() -> None:
    found = sentences(compared("log_likelihood", 1.0, 0.1, "qwen"), evaluated=("qwen", "nextquill"))
    assert "The reference contextsft was not evaluated, so what nextquill adds to it is unknown." in found
    assert sentences(evaluated=("nextquill",)) == (
        "There is nothing to compare nextquill with: no other method was evaluated on the same reviews.",
    )


@pytest.mark.parametrize("users", [1, 2, 19])
def test_few_users_show_nothing(users: int) -> None:
    found = sentences(compared("personal_gain", 0.5), compared("rouge1", -0.5), users=users)
    assert "too few to show anything about other users" in found[0]
    assert ("one user is" in found[0]) == (users == 1)
    assert "neither an advantage nor a harm" in found[1]
    assert "better" not in " ".join(found)


def test_a_comparison_is_read_from_either_side() -> None:
    (turned,) = differences([compared("rouge1", 0.02, method="contextsft", reference="nextquill")], "nextquill", 60)
    assert (turned.reference, turned.value) == ("contextsft", -0.02)
    assert (turned.low, turned.high) == (-0.03, -0.01)
    assert turned.outcome == WORSE


def test_the_order_of_differences() -> None:
    rows = [
        compared(metric, 0.1, reference=reference, decoding=decoding)
        for decoding in ("paper", "sane")
        for metric in ("rouge1_cut", "rouge1", "log_likelihood", "preference_personal_gain", "personal_gain")
        for reference in ("qwen", "bm25", "contextsft")
    ]
    found = differences([*rows, compared("rouge1", 1.0, category="Movies")], "nextquill", 60)
    assert list(dict.fromkeys(one.decoding for one in found)) == ["sane", "paper"]
    assert list(dict.fromkeys(one.metric.key for one in found)) == [
        "personal_gain", "log_likelihood", "preference_personal_gain", "rouge1", "rouge1_cut",
    ]  # fmt: skip
    assert list(dict.fromkeys(one.reference for one in found)) == ["contextsft", "qwen", "bm25"]
    assert preset_order(["paper", "no", "sane", "paper"]) == ["sane", "paper", "no"]
    assert reference_order([]) == []


def test_other_references_stand_in_where_none_of_the_usual_was_evaluated() -> None:
    found = sentences(compared("rouge1", 0.1, reference="bm25"), evaluated=("bm25", "nextquill"))
    assert "better than bm25 in ROUGE-1" in found[0]


def test_the_first_preset_is_judged_and_a_harm_in_any_preset_is_said() -> None:
    rows = [
        compared("rouge1", 0.3),
        compared("log_likelihood", -0.2),
        compared("log_likelihood", -0.2, decoding="paper"),
    ]
    better, worse = sentences(*rows, compared("rouge1", -0.3, decoding="paper"))
    assert "better than contextsft in ROUGE-1" in better
    assert worse.count("log-likelihood") == 1, "it is the same under every preset"
    assert worse.endswith("and ROUGE-1 (−0.300, −0.310 to −0.290, paper decoding).")
