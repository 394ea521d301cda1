"""The figures of the report's first sections: differences, gains by history, and estimated against exact effects.

They are narrow (331 points), so that their labels can be read on a screen of 400 pixels. As in `figures`, each function
returns a new figure and touches no global state. A colour never carries a meaning alone: markers differ too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from nextquill_core.analysis.figures import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    QUIET,
    VERMILION,
    dress,
    new_figure,
)
from nextquill_core.analysis.html import printable
from nextquill_core.analysis.result_tables import signed
from nextquill_core.analysis.verdict import (
    BETTER,
    GAINS,
    LIKELIHOODS,
    PREFERRED,
    TEXTS,
    UNCLEAR,
    WORSE,
    Difference,
    metric_order,
)
from nextquill_core.evaluation.metrics import BLEU, LENGTH

WIDTH = 4.6
"""Width of a figure in inches."""
ROW = 0.2
"""Height of a line of a figure in inches."""
MARKS = {BETTER: ("o", BLUE), WORSE: ("s", VERMILION), UNCLEAR: ("D", QUIET)}
"""Marker and colour by outcome; an unclear difference has an open marker."""
SERIES = (("o", BLUE), ("s", VERMILION), ("^", GREEN), ("D", PURPLE))
MOST_REFERENCES = 6
"""References in a forest plot; the tables have all."""
_TITLES = {
    GAINS: "Gains by history, nats a token",
    LIKELIHOODS: "Likelihood of the true reviews, nats a token",
    PREFERRED: "The same on preference tokens alone",
    TEXTS: "Generated texts",
}


def forest_panels(found: Sequence[Difference]) -> list[tuple[str, list[Difference]]]:
    """Return the differences that the forest plot of one preset shows, by the title of their panel.

    Metrics of cut answers are left out, and so are references after the first six.

    Args:
        found: Differences of one method under one preset, in the order of `verdict.differences`.
    """
    references = list(dict.fromkeys(one.reference for one in found))[:MOST_REFERENCES]
    shown = [one for one in found if one.reference in references and one.metric.table != LENGTH]
    panels = [
        (title, [one for one in shown if metric_order(one.metric)[0] == group]) for group, title in _TITLES.items()
    ]
    return [(title, members) for title, members in panels if members]


def forest_plot(found: Sequence[Difference]) -> Figure:
    """Draw the differences of a method to its references: one line for each metric and reference, with its numbers.

    Each panel has its axis, because a difference of log-likelihoods to a model that knows nothing of the user is
    far larger than all others. BLEU, which runs to 100, is divided by 100.

    Args:
        found: As for `forest_panels`.
    """
    panels = forest_panels(found)
    heights = [len(members) + len({one.metric.key for one in members}) for _, members in panels]
    figure = new_figure(WIDTH, 0.4 + ROW * sum(heights) + 0.62 * len(panels))
    grid = figure.add_gridspec(max(1, len(panels)), 1, height_ratios=heights or None)
    for place, (title, members) in enumerate(panels):
        _forest_panel(figure.add_subplot(grid[place, 0]), title, members)
    return figure


def _forest_panel(axes: Axes, title: str, members: Sequence[Difference]) -> None:
    line, labels = 0, []
    drawn: dict[str, list[tuple[int, float, float, float]]] = {}  # line, value, low and high by outcome
    axes.axvline(0, color=QUIET, linewidth=0.9)
    for key in dict.fromkeys(one.metric.key for one in members):
        of_metric = [one for one in members if one.metric.key == key]
        scale = 100 if key == BLEU else 1
        name = of_metric[0].metric.name + (" ÷ 100" if key == BLEU else "")
        axes.annotate(
            plain(name), (0, line), xycoords=("axes fraction", "data"), xytext=(-72, 0), textcoords="offset points",
            va="center", fontsize=8.5, fontweight="bold", color=INK,
            bbox={"facecolor": "#ffffff", "edgecolor": "none", "pad": 0.8},
        )  # fmt: skip
        line += 1
        for one in of_metric:
            value, low, high = (number / scale for number in (one.value, one.low, one.high))
            drawn.setdefault(one.outcome, []).append((line, value, low, high))
            axes.annotate(
                f"{signed(value, 3)} [{signed(low, 3)}, {signed(high, 3)}]", (1, line),
                xycoords=("axes fraction", "data"), xytext=(4, 0), textcoords="offset points", va="center",
                fontsize=7.5, color=INK,
            )  # fmt: skip
            labels.append((line, f"− {plain(one.reference)}"))
            line += 1
    for outcome, points in drawn.items():  # one artist for all lines and one for all points: each artist takes its time
        marker, colour = MARKS[outcome]
        places, values, lows, highs = zip(*points, strict=True)
        axes.hlines(places, lows, highs, color=colour, linewidth=1.4, capstyle="butt", zorder=2)
        face = "#ffffff" if outcome == UNCLEAR else colour
        axes.plot(values, places, marker, color=colour, markerfacecolor=face, markersize=5)
    axes.set_yticks([place for place, _ in labels], [label for _, label in labels])
    axes.set_ylim(line - 0.4, -0.6)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}".replace("-", "\N{MINUS SIGN}")))
    dress(axes, "", base="bottom")
    axes.grid(axis="y", visible=False)
    axes.annotate(
        title, (0, 1), xycoords="axes fraction", xytext=(-72, 6), textcoords="offset points", fontsize=9, color=QUIET
    )
    axes.tick_params(axis="y", labelsize=8.5, labelcolor=INK)


def gain_plot(rows: Sequence[Mapping[str, Any]], metrics: Mapping[str, str]) -> Figure:
    """Draw how much likelier each method finds the true review with the own history than with another one, or none.

    Args:
        rows: Rows of the schema `METRICS`, of one preset and category.
        metrics: By metric, what the own history is compared with.
    """
    methods = list(dict.fromkeys(row["method"] for row in rows if row["metric"] in metrics))
    figure = new_figure(WIDTH, 0.85 + 0.36 * max(1, len(methods)))
    axes = figure.add_subplot()
    axes.axvline(0, color=QUIET, linewidth=0.9)
    offset = 0.26 / max(1, len(metrics) - 1)
    series = {label: [row for row in rows if row["metric"] == key] for key, label in metrics.items()}
    _method_lines(axes, methods, series, [offset * number - 0.13 for number in range(len(series))])
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel("nats a token of the true review", fontsize=8.5, color=INK)
    figure.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=8.5, labelcolor=INK)
    return figure


def _method_lines(
    axes: Axes, methods: Sequence[str], series: Mapping[str, Sequence[Mapping[str, Any]]], shifts: Sequence[float]
) -> None:
    """Draw a line of a panel for each method: the values of each series with their 95 % intervals.

    Args:
        axes: The panel.
        methods: The methods, the highest line first.
        series: Mappings with method, value, ci_low and ci_high, by the label of their series.
        shifts: How far below the middle of its line each series stands, in lines.
    """
    for number, (label, rows) in enumerate(series.items()):
        marker, colour = (("o", BLUE), ("D", ORANGE))[number % 2]
        for row in rows:
            height = methods.index(row["method"]) + shifts[number]
            axes.plot([row["ci_low"], row["ci_high"]], [height] * 2, color=colour, linewidth=1.4)
            axes.plot([row["value"]], [height], marker, color=colour, markersize=5, clip_on=False)
        axes.plot([], [], marker, color=colour, markersize=5, label=label)
    axes.set_yticks(range(len(methods)), [plain(method) for method in methods])
    axes.set_ylim(len(methods) - 0.45, -0.55)
    dress(axes, "", base="bottom")
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", labelsize=8.5, labelcolor=INK)


def bucket_plot(
    panels: Sequence[tuple[str, Sequence[str], Mapping[str, Mapping[str, Mapping[str, Any]]]]], unit: str
) -> Figure:
    """Draw a metric by groups of examples, one panel for each way to group them, one series for each method.

    Args:
        panels: (title, names of the groups, rows by method and then by group).
        unit: Label of the vertical axes.
    """
    figure = new_figure(WIDTH, 0.35 + 2.1 * max(1, len(panels)))
    methods = list(dict.fromkeys(method for _, _, found in panels for method in found))[: len(SERIES)]
    for number, (title, groups, found) in enumerate(panels):
        axes = figure.add_subplot(len(panels), 1, number + 1)
        axes.axhline(0, color=QUIET, linewidth=0.9)
        for place, method in enumerate(methods):
            marker, colour = SERIES[place]
            known = [(at, found[method][group]) for at, group in enumerate(groups) if group in found.get(method, {})]
            shift = 0.14 * (place - (len(methods) - 1) / 2)
            for at, row in known:
                axes.plot([at + shift] * 2, [row["ci_low"], row["ci_high"]], color=colour, linewidth=1.4)
            axes.plot(
                [at + shift for at, _ in known], [row["value"] for _, row in known], marker, color=colour, markersize=5,
                label=plain(method) if number == 0 else None, linestyle="none",
            )  # fmt: skip
        sizes = {group: row["n"] for rows in found.values() for group, row in rows.items()}
        labels = [f"{group.replace('under ', '< ').replace('or more', '+')}\nn = {sizes[group]:,}" for group in groups]
        axes.set_xticks(range(len(groups)), labels)
        axes.set_xlim(-0.5, len(groups) - 0.5)
        axes.yaxis.set_major_locator(MaxNLocator(4))
        dress(axes, title, base="bottom")
        axes.set_ylabel(unit, fontsize=8, color=INK)
    figure.legend(loc="outside lower left", ncols=4, frameon=False, fontsize=8.5, labelcolor=INK)
    return figure


def calibration_plot(bins: Sequence[tuple[float, float, int]]) -> Figure:
    """Draw exact against estimated effects of words: their means in groups of words of about equal number.

    Args:
        bins: (mean estimated effect, mean exact effect, number of words), as of `exact_effects.calibration`.
    """
    figure = new_figure(WIDTH, 3.2)
    axes = figure.add_subplot()
    values = [value for estimated, exact, _ in bins for value in (estimated, exact)] or [0.0, 1.0]
    margin = 0.08 * (max(values) - min(values) or 1.0)
    ends = [min(values) - margin, max(values) + margin]
    axes.plot(ends, ends, color=QUIET, linewidth=0.9, linestyle=(0, (3, 2)))
    axes.annotate(
        "estimate = exact", (ends[1], ends[1]), xytext=(-26, -2), textcoords="offset points", ha="right", va="top",
        fontsize=8, color=QUIET,
    )  # fmt: skip
    axes.plot([one[0] for one in bins], [one[1] for one in bins], "o-", color=BLUE, markersize=5, linewidth=1.2)
    axes.set_xlim(*ends)
    axes.set_ylim(*ends)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    dress(axes, "", base="bottom")
    axes.set_xlabel("estimated effect, mean of a group of words", fontsize=8.5, color=INK)
    axes.set_ylabel("exact effect, mean", fontsize=8.5, color=INK)
    return figure


def share_plot(rows: Sequence[Mapping[str, Any]], ceiling: float, chance: float) -> Figure:
    """Draw the share of taste words in the person's own style for each method, between chance and the users' own share.

    Args:
        rows: Mappings with method, history, value, ci_low and ci_high.
        ceiling: The share in the reviews that the users wrote.
        chance: The share of a writer who does not know the person.
    """
    names = list(dict.fromkeys(row["method"] for row in rows))
    kinds = list(dict.fromkeys(row["history"] for row in rows))
    figure = new_figure(WIDTH, 1.0 + 0.34 * max(1, len(names)))
    axes = figure.add_subplot()
    for value, label, where in (
        (chance, f"chance {chance:.0%}", "left"),
        (ceiling, f"the users {ceiling:.0%}", "right"),
    ):
        axes.axvline(value, color=QUIET, linewidth=0.9, linestyle=(0, (3, 2)))
        axes.annotate(
            label, (value, 1), xycoords=("data", "axes fraction"), xytext=(0, 2), textcoords="offset points",
            ha="center" if where == "left" else "right", va="bottom", fontsize=8, color=QUIET,
        )  # fmt: skip
    series = {kind: [row for row in rows if row["history"] == kind] for kind in kinds}
    _method_lines(axes, names, series, [0.24 * number - 0.12 * (len(kinds) - 1) for number in range(len(kinds))])
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    figure.legend(loc="outside lower left", ncols=2, frameon=False, fontsize=8.5, labelcolor=INK)
    return figure


def plain(name: str) -> str:
    """Return a name that matplotlib can draw, and whose dollar signs it does not take for a formula."""
    return printable(name).replace("$", r"\$")
