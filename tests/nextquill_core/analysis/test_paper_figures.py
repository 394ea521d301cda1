"""The paper's figures hold what they are given; words are text, whatever they say."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.text import Text
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from nextquill_core.analysis.figures import png
from nextquill_core.analysis.paper_figures import (
    FONT,
    HistoryDifferences,
    cluster_map,
    difference_plot,
    sweep_plot,
    word_bars,
    word_cloud,
)
from nextquill_core.analysis.preferred_words import WordCount
from nextquill_core.analysis.svg import inline_svg
from nextquill_core.analysis.sweep_series import SweepSeries
from tests.nextquill_core.analysis.rows import row

EVIL = "</svg><script>alert(1)"
WORDS = [WordCount(f"word{number}", 40 - number, 41) for number in range(40)]


def texts(svg: str) -> set[str]:
    """Return the texts of an SVG element, which must be well formed and without scripts."""
    root = ElementTree.fromstring(svg)  # noqa: S314 - drawn here
    assert not list(root.iter("script"))
    return {one.text or "" for one in root.iter("text")}


def ink(text: Text, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return which pixels of a page of this width and height the letters of a text of a cloud cover."""
    page = Image.new("L", size)
    font = ImageFont.truetype(str(FONT), int(text.get_fontsize()))
    ImageDraw.Draw(page).text(text.get_position(), text.get_text(), fill=255, font=font, anchor="ls")
    return np.asarray(page) > 127


def test_a_sweep_has_a_panel_for_each_metric_with_a_marker_for_each_value() -> None:
    series = (("a", "rouge1", (0.1, 0.2)), ("b", "rouge1", (0.3, 0.4)), ("a", "bleu", (1.0, 2.0)))
    rows = [
        {"series": name, "at": at, **row("nextquill", metric, value)}
        for name, metric, values in series
        for at, value in zip(("0.01", "0.1"), values, strict=True)
    ]
    found = SweepSeries("train.alpha", ("0.01", "0.1"), "sane", "Books", ("rouge1", "bleu"), tuple(rows))
    first, second = sweep_plot(found).axes
    assert [label.get_text() for label in first.get_xticklabels()] == ["0.01", "0.1"]
    drawn = [(line.get_marker(), list(line.get_ydata())) for line in first.lines if line.get_marker() != "None"]
    assert drawn == [("o", [0.1, 0.2]), ("s", [0.3, 0.4])]
    assert first.lines[0].get_ydata() == pytest.approx([0.09, 0.11]), "the interval"
    assert second.get_title(loc="left") == "BLEU"


def test_differences_have_a_line_and_a_mean_for_each_method() -> None:
    share = np.array([0.25, 0.75])
    found = [
        HistoryDifferences("nextquill", share, 0.5, 0.4, 0.6, 100),
        HistoryDifferences("contextsft", share[::-1], -0.25, -0.3, -0.2, 100),
    ]
    (axes,) = difference_plot({"All tokens": found}, [-1.0, 0.0, 1.0]).axes
    assert [patch.get_data().values.tolist() for patch in axes.patches] == [[0.25, 0.75], [0.75, 0.25]]
    assert [label.get_text() for label in axes.get_legend().get_texts()] == [
        "nextquill: mean +0.500 [+0.400, +0.600]",
        "contextsft: mean −0.250 [−0.300, −0.200]",
    ]
    assert len({str(patch.get_linestyle()) for patch in axes.patches}) == 2, "not by colour alone"


def test_a_map_names_each_cluster_with_its_size_and_words() -> None:
    words = [[WordCount("warm", 2, 2), WordCount(EVIL, 1, 1)], []]
    figure = cluster_map(np.array([0, 0, 1]), np.array([[0.0, 1.0], [2.0, 3.0], [5.0, 5.0]]), words)
    points = [(line.get_marker(), line.get_xydata().tolist()) for line in figure.axes[0].lines]
    assert points == [("o", [[0, 1], [2, 3]]), ("s", [[5, 5]])]
    assert {"1", "2", "warm, </svg><script>alert(1)"} <= texts(str(inline_svg(figure, "map", "a map")))


def test_bars_say_how_often_a_word_is_preferred() -> None:
    (axes,) = word_bars([WordCount("warm", 3, 4), WordCount("$slow$" * 9, 1, 1)]).axes
    assert [bar.get_width() for bar in axes.patches] == [3, 1]
    assert [text.get_text() for text in axes.texts] == ["3 of 4 (75%)", "1 of 1 (100%)"]
    assert [label.get_text() for label in axes.get_yticklabels()][1].replace("\\", "") == "$slow$$slow$$slow$$slow…"


def test_words_of_a_cloud_are_text_do_not_overlap_and_grow_with_their_number() -> None:
    figure = word_cloud([*WORDS, WordCount(EVIL, 1, 1)], seed=1)
    drawn = figure.axes[0].texts
    sizes = [text.get_fontsize() for text in drawn]
    assert len(drawn) > 20
    assert drawn[0].get_text() == "word0"
    assert sorted(sizes, reverse=True) == sizes
    size = round(figure.axes[0].get_xlim()[1]), round(figure.axes[0].get_ylim()[0])
    covered = sum(ink(text, size).astype(int) for text in drawn)
    assert np.max(covered) == 1
    assert {"word0", "word1"} <= texts(str(inline_svg(figure, "cloud", "a cloud")))
    assert png(word_cloud(WORDS, seed=1)) == png(word_cloud(WORDS, seed=1))


def test_hostile_and_foreign_words_stay_text() -> None:
    for word in (EVIL, "&amp;", "$x$", "日本語", "ספר"):
        drawn = texts(str(inline_svg(word_cloud([WordCount(word, 1, 1)], seed=0), "one", "one")))
        assert drawn == {word}
        assert word in texts(str(inline_svg(word_bars([WordCount(word, 1, 1)]), "bars", "bars")))
