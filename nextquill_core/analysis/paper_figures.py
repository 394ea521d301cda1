"""The figures that the paper shows: sweeps, differences by history, clusters of hidden states, and words.

As in `report_figures`, each function returns a new figure of 331 points, and colours never carry a meaning alone.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from nextquill_core.analysis.figures import (
    BLUE,
    DASHES,
    GREEN,
    INK,
    ORANGE,
    PALE,
    PURPLE,
    QUIET,
    SKY,
    VERMILION,
    dress,
    new_figure,
)
from nextquill_core.analysis.preferred_words import WordCount
from nextquill_core.analysis.report_figures import ROW, WIDTH, plain
from nextquill_core.analysis.result_tables import signed
from nextquill_core.analysis.sweep_series import SweepSeries
from nextquill_core.evaluation.metrics import METRICS

MARKED = (("o", BLUE), ("s", VERMILION), ("^", GREEN), ("D", PURPLE), ("v", ORANGE), ("P", SKY))
"""Marker and colour of series and clusters."""
LONGEST_WORD = 24
CLOUD_HEIGHT = 2.9  # inches
FONT = Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
"""The font of the PNG. It is wider than the fonts of browsers, so that words that fit with it do not overlap in one."""


@dataclass(frozen=True)
class HistoryDifferences:
    """What history adds to the log-probability of each token, under one method, in B bins.

    Attributes:
        method: The method.
        share_B: Share of the tokens in each bin.
        mean: Mean difference in nats, with its 95 % interval over users, `low` to `high`.
        tokens: Number of tokens.
    """

    method: str
    share_B: NDArray[np.float64]
    mean: float
    low: float
    high: float
    tokens: int


def sweep_plot(found: SweepSeries) -> Figure:
    """Draw each metric by the values of a key, one panel a metric, with 95 % intervals.

    Args:
        found: What the key does; at most six series are drawn.
    """
    names = list(dict.fromkeys(row["series"] for row in found.rows))[: len(MARKED)]
    lines = -(-len(found.metrics) // 2)
    columns = min(2, len(found.metrics))
    figure = new_figure(WIDTH, 0.55 + 1.75 * lines + 0.2 * len(names))
    places = {value: place for place, value in enumerate(found.values)}
    for number, metric in enumerate(found.metrics):
        axes = figure.add_subplot(lines, columns, number + 1)
        for series, name in enumerate(names):
            marker, colour = MARKED[series]
            rows = [row for row in found.rows if (row["series"], row["metric"]) == (name, metric)]
            at = [places[row["at"]] + 0.09 * (series - (len(names) - 1) / 2) for row in rows]
            for place, row in zip(at, rows, strict=True):
                axes.plot([place] * 2, [row["ci_low"], row["ci_high"]], color=colour, linewidth=1.2)
            axes.plot(
                at, [row["value"] for row in rows], marker=marker, color=colour, markersize=5, linewidth=1.2,
                linestyle=DASHES[series % len(DASHES)], label=plain(name) if number == 0 else None,
            )  # fmt: skip
        axes.set_xticks(range(len(found.values)), [plain(_clipped(value)) for value in found.values])
        axes.set_xlim(-0.4, len(found.values) - 0.6)
        axes.yaxis.set_major_locator(MaxNLocator(4))
        dress(axes, METRICS[metric].name if metric in METRICS else metric, base="bottom")
        axes.title.set_fontsize(9)
        if number >= len(found.metrics) - columns:
            axes.set_xlabel(plain(found.symbol), fontsize=8.5, color=INK)
    figure.legend(loc="outside lower left", ncols=1, frameon=False, fontsize=8.5, labelcolor=INK, handlelength=2.8)
    return figure


def difference_plot(panels: Mapping[str, Sequence[HistoryDifferences]], edges: Sequence[float]) -> Figure:
    """Draw how many tokens have which difference, one panel for each set of tokens, one line for each method.

    Args:
        panels: By the panel's title.
        edges: Edges of the B bins, in nats; the outermost bins have everything beyond them too.
    """
    figure = new_figure(WIDTH, 0.2 + 2.5 * max(1, len(panels)))
    for number, (title, found) in enumerate(panels.items()):
        axes = figure.add_subplot(len(panels), 1, number + 1)
        axes.axvline(0, color=QUIET, linewidth=0.9)
        for series, one in enumerate(found):
            marker, colour = MARKED[series]
            axes.stairs(one.share_B, edges, color=colour, linewidth=1.5, linestyle=DASHES[series % len(DASHES)])
            interval = f"{signed(one.mean, 3)} [{signed(one.low, 3)}, {signed(one.high, 3)}]"
            axes.plot(
                [one.mean], [0.94 - 0.09 * series], marker, color=colour, markersize=5, clip_on=False,
                linestyle="none", transform=axes.get_xaxis_transform(), label=f"{plain(one.method)}: mean {interval}",
            )  # fmt: skip
        axes.set_yscale("log")
        axes.set_xlim(edges[0], edges[-1])
        axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda nats, _: f"{nats:g}".replace("-", "\N{MINUS SIGN}")))
        axes.minorticks_off()
        dress(axes, "", base="bottom")
        above = 12 + 12 * len(found)  # points, for the legend
        axes.set_title(title, fontsize=10, fontweight="bold", color=INK, loc="left", pad=above)
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1), frameon=False, fontsize=8, labelcolor=INK, borderpad=0)
        axes.set_ylabel("share of tokens", fontsize=8.5, color=INK)
        axes.set_xlabel("log p with history − log p without, nats", fontsize=8.5, color=INK)
    return figure


def cluster_map(
    labels_N: NDArray[np.int64], map_N2: NDArray[np.float64], words: Sequence[Sequence[WordCount]]
) -> Figure:
    """Draw states on a map, with the clusters' numbers, sizes and typical words below it.

    Args:
        labels_N: The cluster of each state.
        map_N2: Its place.
        words: Typical words of each cluster.
    """
    texts = [
        textwrap.wrap(", ".join(_clipped(word.word) for word in of) or "(no words, only stop words and signs)", 52)
        for of in words
    ]
    below = ROW * sum(map(len, texts)) + 0.1 * len(texts)
    height = 2.9 + below
    figure = new_figure(WIDTH, height)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0.04, (below + 0.1) / height, 0.92, 2.7 / height))
    for label in range(len(words)):
        marker, colour = MARKED[label % len(MARKED)]
        inside = map_N2[labels_N == label]
        axes.plot(inside[:, 0], inside[:, 1], marker, color=colour, markersize=3, alpha=0.6, markeredgewidth=0)
    for label in range(len(words)):
        centre = map_N2[labels_N == label].mean(axis=0)
        axes.annotate(
            str(label + 1), tuple(centre), ha="center", va="center", fontsize=9, fontweight="bold", color=INK,
            bbox={"facecolor": "#ffffff", "edgecolor": QUIET, "boxstyle": "circle,pad=0.25", "linewidth": 0.8},
        )  # fmt: skip
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(PALE)
    top = below
    for label, lines in enumerate(texts):
        marker, colour = MARKED[label % len(MARKED)]
        middle = (top - ROW / 2) / height
        figure.add_artist(Line2D([0.06], [middle], marker=marker, color=colour, markersize=5, linestyle="none"))
        figure.text(0.1, middle, str(label + 1), fontsize=8.5, va="center", color=INK, fontweight="bold")
        figure.text(0.15, middle, f"{int((labels_N == label).sum()):,}", fontsize=8.5, va="center", color=QUIET)
        for line in lines:
            figure.text(0.25, (top - ROW / 2) / height, plain(line), fontsize=8.5, va="center", color=INK)
            top -= ROW
        top -= 0.1
    return figure


def word_cloud(counts: Sequence[WordCount], *, seed: int) -> Figure:
    """Draw words whose size grows with their number.

    Args:
        counts: The words, the most frequent first; those that find no place are left out.
        seed: Seed of the layout.
    """
    from PIL import ImageFont
    from wordcloud import WordCloud

    width, height = round(72 * WIDTH), round(72 * CLOUD_HEIGHT)
    cloud = WordCloud(
        font_path=str(FONT), width=width, height=height, margin=3, prefer_horizontal=1, min_font_size=8,
        max_font_size=34, relative_scaling=0.35, random_state=seed, max_words=len(counts),
    )  # fmt: skip
    cloud.generate_from_frequencies({_clipped(one.word): one.preferred for one in counts})
    figure = new_figure(WIDTH, CLOUD_HEIGHT)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    for (word, _), size, (top, left), _, _ in cloud.layout_:
        above = -ImageFont.truetype(str(FONT), size).getbbox(word, anchor="ls")[1]  # of the base line
        axes.text(
            left, top + above, plain(word), fontsize=size, color=BLUE, ha="left", va="baseline", family="DejaVu Sans"
        )
    return figure


def word_bars(counts: Sequence[WordCount]) -> Figure:
    """Draw a bar for each word: at how many places it is preferred, of how many.

    Args:
        counts: The words in their order.
    """
    figure = new_figure(WIDTH, 0.35 + ROW * 1.1 * max(1, len(counts)))
    axes = figure.add_subplot()
    longest = max((one.preferred for one in counts), default=1)
    for place, one in enumerate(counts):
        axes.barh(place, one.preferred, height=0.66, color=BLUE)
        axes.annotate(
            f"{one.preferred:,} of {one.places:,} ({one.share:.0%})", (one.preferred, place), xytext=(4, 0),
            textcoords="offset points", va="center", fontsize=7.5, color=INK,
        )  # fmt: skip
    axes.set_yticks(range(len(counts)), [plain(_clipped(one.word)) for one in counts])
    axes.set_ylim(len(counts) - 0.4, -0.6)
    axes.set_xlim(0, 1.45 * longest)
    axes.set_xticks([])
    dress(axes, "", base="left")
    axes.tick_params(axis="y", labelsize=8.5, labelcolor=INK)
    return figure


def _clipped(text: str) -> str:
    return text if len(text) <= LONGEST_WORD else f"{text[: LONGEST_WORD - 1]}…"
