"""Tests for the figures: what they show, and that they can be drawn again to the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from matplotlib.figure import Figure

from nextquill_core.analysis.figures import effect_histogram, metric_bars, png, training_curves

ROWS = [
    {
        "method": method,
        "category": category,
        "decoding": "paper",
        "metric": metric,
        "value": value,
        "ci_low": 0.9 * value,
        "ci_high": 1.2 * value,
        "n": 317,
    }
    for category in ("Books", "all")
    for method, value in (("qwen", 0.05), ("nextquill", 0.25))
    for metric in ("rouge1", "bleu", "length_ratio")
    if (method, metric) != ("qwen", "bleu")
]
EFFECTS = np.array([-0.9, -0.2, 0.0, 0.01, 0.04, 0.06, 0.3, 0.8], dtype=np.float32)
CURVES = {
    "contextsft": [{"step": step, "loss": 3 / step, "normal": 3 / step} for step in range(1, 60)],
    "nextquill": [{"step": step, "loss": 4 / step, "normal": 3 / step, "causal": 9 / step} for step in range(1, 60)],
}


def test_bars_stand_for_the_values() -> None:
    figure = metric_bars(ROWS, "paper", "Books", highlight="nextquill")
    panels = {axes.get_title(loc="left"): axes for axes in figure.axes}
    assert list(panels) == ["ROUGE-1", "BLEU", "Length ratio"]
    assert [bar.get_width() for bar in panels["ROUGE-1"].patches] == [0.05, 0.25]
    assert [bar.get_width() for bar in panels["BLEU"].patches] == [0.25]
    whisker = panels["ROUGE-1"].lines[1].get_xdata()
    assert list(whisker) == pytest.approx([0.225, 0.3])
    assert [label.get_text() for label in panels["ROUGE-1"].get_yticklabels()] == ["qwen", "nextquill"]


def test_histogram_counts_every_token_and_parts_them_at_delta() -> None:
    (axes,) = effect_histogram(EFFECTS, 0.05).axes
    bars = [(bar.get_x(), bar.get_height()) for bar in axes.patches if bar.get_height()]
    assert sum(height for _, height in bars) == 8
    assert sum(height for left, height in bars if left > 0.049) == 3
    assert axes.get_yscale() == "log"
    assert axes.lines[0].get_xdata()[0] == 0.05
    assert axes.texts[0].get_text() == "δ = 0.05: 37.5 % of 8 tokens lie above"


@pytest.mark.parametrize("delta", [-1, 0.951, 1])
def test_any_delta(delta: float) -> None:
    assert png(effect_histogram(EFFECTS, delta))


def test_curves_leave_out_what_was_not_logged() -> None:
    figure = training_curves(CURVES)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["L, all", "Lₙ, normal", "Lₚ, causal"]
    labelled = [[line.get_label() for line in axes.lines if line.get_label()[0] != "_"] for axes in figure.axes]
    assert labelled == [["contextsft", "nextquill"], ["contextsft", "nextquill"], ["nextquill"]]
    only_loss = training_curves({"sft": [{"step": 1, "loss": 2.0, "causal": None}]})
    assert len(only_loss.axes) == 1


def test_a_smoothed_constant_is_constant_to_its_ends() -> None:
    figure = training_curves({"sft": [{"step": step, "loss": 2.0} for step in range(200)]})
    assert figure.axes[0].lines[-1].get_ydata() == pytest.approx(2.0)


def test_nothing_logged_yet() -> None:
    assert png(training_curves({"nextquill": []}))
    assert png(effect_histogram([], 0.05))
    assert png(metric_bars([], "paper", "Books"))


@pytest.mark.parametrize(
    "draw",
    [
        lambda: metric_bars(ROWS, "paper", "all"),
        lambda: effect_histogram(EFFECTS, 0.05),
        lambda: training_curves(CURVES),
    ],
)
def test_same_figure_same_bytes_in_any_thread(draw: Callable[[], Figure]) -> None:
    first = png(draw())
    with ThreadPoolExecutor(2) as pool:
        assert set(pool.map(lambda _: png(draw()), range(2))) == {first}
    assert first.startswith(b"\x89PNG")
    assert b"Software" not in first
