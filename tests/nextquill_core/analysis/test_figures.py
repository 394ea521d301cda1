"""Tests for the figures: what they show, and that they can be drawn again to the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from matplotlib.figure import Figure

from nextquill_core.analysis.figures import effect_panels, metric_bars, png, training_curves

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


def test_log_likelihoods_have_no_bars() -> None:
    """Below 0 there is nothing for a bar to stand on."""
    rows = [*ROWS, {**ROWS[0], "metric": "log_likelihood", "value": -3.0, "ci_low": -3.1, "ci_high": -2.9}]
    titles = [axes.get_title(loc="left") for axes in metric_bars(rows, "paper", "Books").axes]
    assert titles == ["ROUGE-1", "BLEU", "Length ratio"]


def test_panels_hold_every_bin_and_part_them_at_delta() -> None:
    counts = {"Books": (0, 5, 2, 1), "a$b": (0,) * 4, "d": (1,) * 4}
    axes, empty, _ = effect_panels(counts, (-1, 0, 0.05, 0.5, 1), 0.05).axes
    bars = [(bar.get_x(), bar.get_height(), bar.get_facecolor()) for bar in axes.patches]
    assert [bar[:2] for bar in bars] == [(-1, 0), (0, 5), (0.05, 2), (0.5, 1)]
    assert bars[0][2] == bars[1][2] != bars[2][2] == bars[3][2]
    assert bars[2][2][2] > bars[2][2][0] + 0.5, "blue"
    assert (axes.get_yscale(), empty.get_yscale()) == ("log", "linear")
    assert axes.lines[0].get_xdata()[0] == 0.05
    assert axes.texts[0].get_text() == "δ = 0.05"


@pytest.mark.parametrize("delta", [-1.0, 0.0, 1.0])
def test_any_delta_can_be_drawn(delta: float) -> None:
    assert png(effect_panels({"a": (1, 2)}, (-1.0, 0.0, 1.0), delta))


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
    assert png(effect_panels({}, (-1, 0.05, 1), 0.05))
    assert png(effect_panels({"Books": (0, 0)}, (-1, 0.05, 1), 0.05))
    assert png(metric_bars([], "paper", "Books"))


@pytest.mark.parametrize(
    "draw",
    [
        lambda: metric_bars(ROWS, "paper", "all"),
        lambda: effect_panels({"Books": (3, 1)}, (-1, 0.05, 1), 0.05),
        lambda: training_curves(CURVES),
    ],
)
def test_same_figure_same_bytes_in_any_thread(draw: Callable[[], Figure]) -> None:
    first = png(draw())
    with ThreadPoolExecutor(2) as pool:
        assert set(pool.map(lambda _: png(draw()), range(2))) == {first}
    assert first.startswith(b"\x89PNG")
    assert b"Software" not in first
