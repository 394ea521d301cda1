"""The figures of a report: scores with their intervals, the distribution of causal effects, training curves.

Each function returns a new figure and touches no global state, so that figures can be drawn in any thread. Colours are
from Okabe and Ito's palette, which readers with any colour vision can tell apart, and never carry a meaning alone.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from nextquill_core.evaluation.metrics import MAIN, METRICS, known_metrics

BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, YELLOW = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#B8A800",  # Okabe and Ito's yellow, darkened: theirs is too pale for a line on white
)
SERIES = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, YELLOW)
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.5)), (0, (6, 1.5, 1.5, 1.5)))
INK, QUIET, RULE, PALE = "#1F2328", "#59636E", "#D1D9E0", "#AEB9C4"
DPI = 150
# Words of users can be of any script. The page shows them in the reader's fonts, and only the PNG has boxes for them.
warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)


def metric_bars(
    rows: Sequence[Mapping[str, Any]], decoding: str, category: str, *, highlight: str | None = None
) -> Figure:
    """Draw one panel per metric, one bar per method, and a whisker for the 95 % interval.

    Args:
        rows: Rows of the schema `METRICS`. Those of the main table that judge texts are drawn; the zero of a
            log-likelihood is no base for a bar.
        decoding: The preset to show.
        category: The category to show.
        highlight: A method to emphasise.
    """
    chosen = [row for row in rows if row["decoding"] == decoding and row["category"] == category]
    methods = list(dict.fromkeys(row["method"] for row in chosen))
    measured = {row["metric"] for row in chosen}
    metrics = [
        metric
        for metric in known_metrics(key for key in METRICS if key in measured)
        if metric.judges_text and metric.table == MAIN
    ]
    columns = min(3, max(1, len(metrics)))
    lines = max(1, math.ceil(len(metrics) / columns))
    figure = new_figure(3.3 * columns, lines * (0.75 + 0.3 * max(1, len(methods))))
    for position, metric in enumerate(metrics):
        axes = figure.add_subplot(lines, columns, position + 1)
        found = {row["method"]: row for row in chosen if row["metric"] == metric.key}
        for place, method in enumerate(methods):
            if method not in found:
                continue
            value, low, high = (float(found[method][column]) for column in ("value", "ci_low", "ci_high"))
            colour = BLUE if highlight in (None, method) else PALE
            axes.barh(place, value, height=0.62, color=colour)
            axes.plot([low, high], [place, place], color=INK, linewidth=1.3, solid_capstyle="butt")
            axes.annotate(
                metric.text(value),
                (max(value, high), place),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                color=INK,
                fontweight="bold" if method == highlight else "normal",
            )
        longest = max([1e-9, *(float(row["ci_high"]) for row in found.values())])
        if metric.higher_is_better is None:
            axes.axvline(1, color=QUIET, linewidth=0.9, linestyle=(0, (3, 2)))
            longest = max(longest, 1.0)
        axes.set_yticks(range(len(methods)), methods if position % columns == 0 else [""] * len(methods))
        axes.set_ylim(len(methods) - 0.45, -0.55)
        axes.set_xlim(0, 1.28 * longest)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        dress(axes, metric.name, base="left")
        axes.tick_params(axis="y", length=0, labelsize=9, labelcolor=INK)
    return figure


def difference_panels(rows: Sequence[Mapping[str, Any]], metrics: Sequence[str], reference: str) -> Figure:
    """Draw one panel per metric, one point per row with its 95 % interval, and a line at no difference.

    A filled point is a significant difference after correction, an open one is none.

    Args:
        rows: Mappings with `label`, `metric`, `difference`, `ci_low`, `ci_high` and `significant`.
        metrics: The metrics to show.
        reference: What the rows are compared with.
    """
    labels = list(dict.fromkeys(row["label"] for row in rows))
    figure = new_figure(3.6 * max(1, len(metrics)) + 1.2, 0.9 + 0.28 * max(1, len(labels)))
    for position, key in enumerate(metrics):
        axes = figure.add_subplot(1, len(metrics), position + 1)
        axes.axvline(0, color=QUIET, linewidth=0.9, linestyle=(0, (3, 2)))
        for row in rows:
            if row["metric"] != key:
                continue
            place = labels.index(row["label"])
            colour = BLUE if row["difference"] > 0 else VERMILION
            axes.plot([row["ci_low"], row["ci_high"]], [place, place], color=colour, linewidth=1.4)
            face = colour if row["significant"] else "white"
            axes.plot([row["difference"]], [place], "o", color=colour, markerfacecolor=face, markersize=5)
        axes.set_yticks(range(len(labels)), labels if position == 0 else [""] * len(labels))
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        dress(axes, METRICS[key].name if key in METRICS else key, base="left")
        axes.tick_params(axis="y", length=0, labelsize=9, labelcolor=INK)
        axes.set_xlabel(f"difference to {reference}", fontsize=9, color=INK)
    return figure


def effect_panels(counts: Mapping[str, Sequence[int]], edges: Sequence[float], delta: float) -> Figure:
    """Draw a histogram of effects per category; both axes are logarithmic, the horizontal one on both sides of 0.

    Args:
        counts: By category, the number of tokens in each bin.
        edges: Edges of the bins, ascending, one more than there are bins.
        delta: δ of Eq. 3, one of the edges; the bins above it are coloured.
    """
    columns = min(2, max(1, len(counts)))
    lines = max(1, math.ceil(len(counts) / columns))
    figure = new_figure(7.2 if columns == 1 else 9.0, 2.9 if lines == 1 else 2.5 * lines)
    left, width = np.array(edges[:-1]), np.diff(edges)
    colours = np.where(left >= delta, BLUE, PALE)
    for position, (category, tokens) in enumerate(counts.items()):
        axes = figure.add_subplot(lines, columns, position + 1)
        axes.set_xscale("symlog", linthresh=0.001, linscale=0.5)
        axes.bar(left, tokens, width=width, align="edge", color=colours, edgecolor="white", linewidth=0.3)
        if any(tokens):
            axes.set_yscale("log")
            axes.set_ylim(bottom=0.7)
        axes.minorticks_off()
        axes.set_xlim(-1, 1)
        ticks = (0.001, 0.01, 0.1, 1)
        axes.set_xticks([*(-tick for tick in reversed(ticks)), *ticks])
        axes.xaxis.set_major_formatter(FuncFormatter(lambda effect, _: f"{effect:g}".replace("-", "\N{MINUS SIGN}")))
        axes.axvline(delta, color=VERMILION, linewidth=1.4)
        axes.annotate(
            f"δ = {delta:g}",
            (delta, 1.02),
            xycoords=axes.get_xaxis_transform(),
            ha="center" if abs(delta) < 0.4 else "right" if delta > 0 else "left",
            va="bottom",
            fontsize=9,
            color=INK,
        )
        axes.yaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:,.0f}" if count >= 1 else ""))
        dress(axes, category.replace("$", r"\$"), base="bottom")  # a category's name is no formula
        axes.set_xlabel("causal effect", fontsize=9, color=INK)
        axes.set_ylabel("tokens" if position % columns == 0 else "", fontsize=9, color=INK)
    return figure


def training_curves(curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Draw the loss by optimizer step: the whole (Eq. 7), its normal part (Eq. 5) and its causal part (Eq. 6).

    The values are faint, their moving average strong. A method without a causal part is left out of that panel.

    Args:
        curves: By method, its log: mappings with `step` and some of `loss`, `normal`, `causal`; None is no value.
    """
    panels = {"loss": "L, all", "normal": "Lₙ, normal", "causal": "Lₚ, causal"}
    lines = {
        name: {
            method: points
            for method, log in curves.items()
            if (points := [(row["step"], row[name]) for row in log if row.get(name) is not None])
        }
        for name in panels
    }
    shown = [name for name in panels if lines[name]] or ["loss"]
    figure = new_figure(3.3 * max(2, len(shown)), 3.1)
    for position, name in enumerate(shown):
        axes = figure.add_subplot(1, len(shown), position + 1)
        for index, method in enumerate(curves):
            if method not in lines[name]:
                continue
            steps, values = (np.array(column, dtype=np.float64) for column in zip(*lines[name][method], strict=True))
            style: dict[str, Any] = {"color": SERIES[index % len(SERIES)]}
            if len(values) > 40:
                axes.plot(steps, values, linewidth=0.8, alpha=0.25, **style)
            axes.plot(
                steps, _smooth(values), linewidth=1.7, label=method, linestyle=DASHES[index % len(DASHES)], **style
            )
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        dress(axes, panels[name], base="bottom")
        axes.set_xlabel("optimizer step", fontsize=9, color=INK)
        if position == 0:
            axes.set_ylabel("nats", fontsize=9, color=INK)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if handles:
        figure.legend(
            handles,
            labels,
            loc="outside lower center",
            ncols=4,
            frameon=False,
            fontsize=9,
            labelcolor=INK,
            handlelength=2.8,
        )
    return figure


def png(figure: Figure) -> bytes:
    """Return the figure as a PNG file; the same figure gives the same bytes (no date, no version inside)."""
    buffer = io.BytesIO()
    figure.set_dpi(DPI)
    # Not `savefig`, which would draw it twice.
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})  # type: ignore[no-untyped-call]
    return buffer.getvalue()


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure; width and height are in inches."""
    layout = ConstrainedLayoutEngine(h_pad=0.09, w_pad=0.06)
    figure = Figure(figsize=(width, height), layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def dress(axes: Axes, title: str, *, base: str) -> None:
    """Style a panel: only the spine at the base, and horizontal grid lines where the base is the bottom.

    Args:
        axes: The panel.
        title: Its title.
        base: The side with a spine, `bottom` or `left`.
    """
    axes.set_title(title, fontsize=10, fontweight="bold", color=INK, loc="left")
    if base == "bottom":
        axes.grid(axis="y", color=RULE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=8, labelcolor=QUIET)
    for side, spine in axes.spines.items():
        spine.set_visible(side == base)
        spine.set_color(QUIET)


def _smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the centred moving average over a twentieth of the curve, over fewer values at the ends."""
    width = max(1, len(values) // 20)
    window = np.ones(width)
    averaged: NDArray[np.float64] = np.convolve(values, window, "same") / np.convolve(
        np.ones_like(values), window, "same"
    )
    return averaged
