"""The rule by which val chooses, on numbers that are easily checked by hand."""

from __future__ import annotations

import pytest

from nextquill_core.studies.study.choice import choose, mean_differences
from nextquill_core.studies.study.spec import Choice
from storage import UserError

RULE = Choice(by="personal_gain", not_below=("log_likelihood",))


def measured(**values: tuple[float, float]) -> dict[str, dict[str, float]]:
    """Candidates with (personal gain, log-likelihood), both minus the reference's."""
    return {name: {"personal_gain": gain, "log_likelihood": nats} for name, (gain, nats) in values.items()}


def test_the_highest_gain_among_those_that_do_not_pay_for_it() -> None:
    found = choose(measured(base=(0.05, -0.10), soft=(0.02, 0.01), mild=(0.03, 0.00)), RULE, "contextsft")
    assert found.candidate == "mild"
    assert found.why == (
        "highest personal_gain over contextsft among the 2 of 3 candidates that are not below contextsft in "
        "log_likelihood"
    )


def test_where_all_pay_the_one_that_pays_least() -> None:
    found = choose(measured(base=(0.05, -0.10), soft=(0.01, -0.02)), RULE, "contextsft")
    assert found.candidate == "soft"
    assert found.why == "every candidate is below contextsft in log_likelihood, and this one least"


def test_without_a_limit_the_highest_and_of_equal_ones_the_first() -> None:
    rule = Choice(by="personal_gain", not_below=())
    found = choose(measured(base=(0.05, -9.0), same=(0.05, 9.0), lower=(0.04, 9.0)), rule, "contextsft")
    assert (found.candidate, found.why) == ("base", "highest personal_gain over contextsft")


def test_a_metric_that_was_not_measured_cannot_choose() -> None:
    with pytest.raises(UserError, match="`personal_gain` was not measured for the candidate base"):
        choose({"base": {"log_likelihood": 1.0}}, RULE, "contextsft")


def test_differences_are_means_over_seeds_of_what_all_measured() -> None:
    mine = [{"log_likelihood": -1.0, "rouge1": 0.5}, {"log_likelihood": -2.0}]
    theirs = [{"log_likelihood": -1.5, "rouge1": 0.1}, {"log_likelihood": -2.25}]
    assert mean_differences(mine, theirs) == {"log_likelihood": pytest.approx((0.5 + 0.25) / 2)}
