"""Figures inside the page follow its colours, are text, and cannot harm it."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from xml.etree import ElementTree

from nextquill_core.analysis.figures import BLUE, INK, new_figure
from nextquill_core.analysis.svg import VARIABLES, inline_svg
from tests.conftest import REPO


def drawn(label: str = "personal gain", name: str = "one") -> str:
    figure = new_figure(2, 1)
    axes = figure.add_subplot()
    axes.plot([0.123456, 1], [0, 1], color=BLUE, marker="o")
    axes.set_title(label, color=INK)
    return str(inline_svg(figure, name, f"a line: {label}"))


def parsed(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)  # noqa: S314 - drawn above


def test_colours_are_variables_and_labels_are_text() -> None:
    svg = drawn()
    root = parsed(svg)
    assert (root.get("role"), root.get("aria-label")) == ("img", "a line: personal gain")
    assert "personal gain" in [text.text for text in root.iter("text")]
    assert "stroke: var(--blue)" in svg
    assert "fill: var(--ink)" in svg
    assert BLUE.lower() not in svg
    assert not re.search(r"font-family|<style|xmlns|https?:", svg)


def test_a_hostile_label_stays_text() -> None:
    svg = drawn('</svg><script>alert(1)</script>"&')
    assert "<script" not in svg
    assert "</svg><script>alert(1)</script>" in [text.text[:31] for text in parsed(svg).iter("text") if text.text]


def test_ids_differ_between_figures_and_the_same_figure_is_the_same_text_in_any_thread() -> None:
    first, second = drawn(), drawn(name="two")
    ids = [set(re.findall(r'id="([^"]+)"', svg)) for svg in (first, second)]
    assert ids[0]
    assert not ids[0] & ids[1]
    assert set(re.findall(r'(?:url\(#|href="#)([^)"]+)', first)) <= ids[0]
    with ThreadPoolExecutor(2) as pool:
        assert set(pool.map(lambda _: drawn(), range(4))) == {first}


def luminance(colour: str) -> float:
    """Return the relative luminance of WCAG 2.1."""
    parts = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_has_enough_contrast_in_light_and_dark() -> None:
    """WCAG AA: 4.5 to 1 for text, and 3 to 1 for the lines and markers of figures."""
    style = (REPO / "nextquill_core" / "analysis" / "report_style.html.j2").read_text()
    light, dark = (dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", part)) for part in style.split("@media screen", 1))
    for scheme in (light, dark):
        assert set(VARIABLES.values()) <= set(scheme)
        for ground in ("page", "card", "wash"):
            for name, least in {
                "ink": 4.5,
                "quiet": 4.5,
                "accent": 4.5,
                "blue": 3,
                "vermilion": 3,
                "orange": 3,
            }.items():
                low, high = sorted((luminance(scheme[name]), luminance(scheme[ground])))
                assert (high + 0.05) / (low + 0.05) >= least, (name, ground)
