"""What the report's first figures show."""

from __future__ import annotations

from typing import Any

import pytest

from nextquill_core.analysis.report_figures import (
    bucket_plot,
    calibration_plot,
    forest_panels,
    forest_plot,
    gain_plot,
    plain,
    share_plot,
)
from nextquill_core.analysis.verdict import Difference
from nextquill_core.evaluation.metrics import METRICS
from tests.nextquill_core.analysis.rows import row


def difference(metric: str, value: float, reference: str = "contextsft") -> Difference:
    return Difference("nextquill", reference, METRICS[metric], "sane", value, value - 0.01, value + 0.01, 0.001, 60)


def test_a_forest_has_a_line_for_each_metric_and_reference_with_its_numbers() -> None:
    found = [
        difference("personal_gain", 0.02),
        difference("log_likelihood", -0.03),
        difference("rouge1", 0.005),
        difference("rouge1", 0.02, "qwen"),
        difference("bleu", 2.0),
        difference("meteor_cut", 0.5),
    ]
    gains, likelihoods, texts = forest_plot(found).axes
    assert [label.get_text() for label in texts.get_yticklabels()] == ["− contextsft", "− qwen", "− contextsft"]
    drawn: Any = texts
    points = {line.get_marker(): line.get_xydata().tolist() for line in drawn.lines if line.get_marker() != "None"}
    assert points == {"D": [[0.005, 1]], "o": [[0.02, 2], [0.02, 4]]}, "by outcome; the names of metrics take a line"
    assert [segment.tolist() for group in drawn.collections for segment in group.get_segments()] == [
        [[pytest.approx(value - 0.01 * scale), line], [pytest.approx(value + 0.01 * scale), line]]
        for value, scale, line in ((0.005, 1, 1), (0.02, 1, 2), (0.02, 0.01, 4))
    ]
    assert "+0.020 [+0.010, +0.030]" in [text.get_text() for text in gains.texts]
    assert [line.get_marker() for line in likelihoods.lines][-1] == "s"
    assert "BLEU ÷ 100" in [text.get_text() for text in texts.texts]


def test_a_forest_of_many_references_shows_six() -> None:
    ((_, members),) = forest_panels([difference("rouge1", 0.1, f"m{number}") for number in range(9)])
    assert len(members) == 6
    assert forest_panels([]) == []
    assert forest_plot([]).axes == []


def test_gains_stand_beside_their_method() -> None:
    rows = [row("a", "personal_gain", 0.1), row("b", "personal_gain", 0.2), row("b", "history_gain", 0.3)]
    (axes,) = gain_plot(rows, {"personal_gain": "own minus a stranger's", "history_gain": "own minus none"}).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    values = {(line.get_marker(), float(line.get_xdata()[0])) for line in axes.lines if len(line.get_xdata()) == 1}
    assert values == {("o", 0.1), ("o", 0.2), ("D", 0.3)}


def test_groups_say_how_many_examples_they_have() -> None:
    found = {"a": {"8–15": row("a", "personal_gain", 0.1, n=7), "16–31": row("a", "personal_gain", 0.2, n=9)}}
    (axes,) = bucket_plot([("By length", ["8–15", "16–31"], found)], "nats").axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["8–15\nn = 7", "16–31\nn = 9"]


def test_calibration_and_shares_hold_what_they_are_given() -> None:
    (axes,) = calibration_plot([(0.0, 0.1, 5), (0.2, 0.15, 5)]).axes
    assert [tuple(point) for point in axes.lines[-1].get_xydata()] == [(0.0, 0.1), (0.2, 0.15)]
    rows = [{"method": "a", "history": "own", "value": 1.0, "ci_low": 0.9, "ci_high": 1.0}]
    (axes,) = share_plot(rows, 0.91, 0.25).axes
    assert [text.get_text() for text in axes.texts] == ["chance 25%", "the users 91%"]
    assert calibration_plot([]).axes
    assert plain("a$b\ud800") == "a\\$b\N{REPLACEMENT CHARACTER}"
