"""The comparison's tables and page: what they show, signs and verdicts, and texts that can do no harm."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from nextquill_core.analysis.comparison_page import (
    ComparedRun,
    Comparison,
    Overlap,
    ValueDifference,
    comparison_html,
    comparison_tables,
)
from nextquill_core.evaluation.between_runs import OTHER_TOKENS
from nextquill_core.evaluation.tables import ALL, NO_TEXTS
from tests.nextquill_core.analysis.test_report import Page

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>\x1b[31m"
RUN = ComparedRun("artifacts", "0123456789abcdef", "/store/evaluate/0123456789abcdef", "2026-11-29", "test", 40)


def row(**changes: Any) -> dict[str, Any]:
    values = {"method": "nextquill", "category": "Books", "decoding": "sane", "metric": "rouge1", "untested": ""}
    values |= {"value_a": 0.5, "value_b": 0.25, "difference": -0.25, "ci_low": -0.3, "ci_high": -0.00001}
    return values | {"win_rate": 0.125, "p_value": 0.001, "p_adjusted": 0.002, "n_a": 40, "n_b": 40} | changes


COMPARISON = Comparison(
    RUN, RUN, [ValueDifference("train.alpha", "0.1", "0.2")], [], [], Overlap(40, 20, 1, 2), [row()]
)


def test_a_line_shows_both_values_the_difference_and_the_test() -> None:
    (table,) = comparison_tables([row()])
    (line,) = table.lines
    assert table.title == "Books, sane decoding, n = 40"
    assert (line.a, line.b, line.difference) == ("0.5000", "0.2500", "−0.2500")
    assert (line.interval, line.test, line.wins) == ("[−0.3000, 0.0000]", "p = 0.002", "12 %")
    assert (line.verdict, table.tested, table.significant) == (-1, 1, 1)


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [({"difference": 0.1}, 1), ({"p_adjusted": 0.05}, 0), ({"p_adjusted": None, "untested": "no"}, 0)],
    ids=str,
)
def test_a_verdict_is_of_a_significant_difference_in_the_better_direction(
    changes: dict[str, Any], verdict: int
) -> None:
    assert comparison_tables([row(**changes)])[0].lines[0].verdict == verdict


def test_values_that_cannot_be_compared_have_a_dash() -> None:
    nothing = dict.fromkeys(("difference", "ci_low", "ci_high", "win_rate", "p_value", "p_adjusted"))
    (table,) = comparison_tables([row(**nothing, untested=OTHER_TOKENS, metric="log_likelihood", decoding=NO_TEXTS)])
    (line,) = table.lines
    assert (line.difference, line.interval, line.wins, line.test) == ("–", "", "", OTHER_TOKENS)
    assert (table.title, table.tested) == ("Books, likelihood of the true reviews, n = 40", 0)


def test_tables_are_by_category_preset_and_group_of_metrics_the_union_first() -> None:
    rows = [
        row(metric=metric, category=name) for name in ("Books", ALL) for metric in ("meteor", "rouge1_cut", "rouge1")
    ]
    rows += [row(decoding="paper"), row(category=ALL, decoding="paper")]
    rows += [row(metric=metric, decoding=NO_TEXTS, n_b=41) for metric in ("log_likelihood", "history_gain")]
    tables = comparison_tables(sorted(rows, key=lambda one: one["decoding"] == "sane"))  # given last, shown first
    cut = "answers cut to the length of the true review"
    assert [table.title for table in tables] == [
        "All categories, sane decoding, n = 40",
        "All categories, paper decoding, n = 40",
        f"All categories, sane decoding, {cut}, n = 40",
        "Books, gain by history in nats a token, n = 40 and 41",
        "Books, likelihood of the true reviews, n = 40 and 41",
        "Books, sane decoding, n = 40",
        "Books, paper decoding, n = 40",
        f"Books, sane decoding, {cut}, n = 40",
    ]
    assert [line.metric.key for line in tables[0].lines] == ["rouge1", "meteor"]


def test_the_page_escapes_every_text_and_fetches_nothing() -> None:
    run = replace(RUN, **dict.fromkeys(("name", "fingerprint", "place", "made", "split"), EVIL))
    evil = ValueDifference(EVIL, EVIL, EVIL)
    shown = row(method=EVIL, category=EVIL, decoding=EVIL, untested=EVIL, p_value=None, p_adjusted=None)
    page = comparison_html(Comparison(run, run, [evil], [evil], [evil], Overlap(1, 1, 1, 1, 1), [shown], [EVIL]))
    tags = Page(page).tags
    assert {"script", "img", "link"}.isdisjoint(tag for tag, _ in tags)
    assert not [name for _, names in tags for name in names if name.startswith("on") or name in ("src", "href")]
    assert "\x1b" not in page
    assert page.count("&lt;script&gt;") > 15
    assert "default-src 'none'" in page
    assert not re.search(r"https?://", page)


def test_the_page_shows_settings_results_and_colours_for_dark_screens() -> None:
    page = comparison_html(COMPARISON)
    for text in (
        "train.alpha",
        "ROUGE-1",
        "−0.2500",
        "p = 0.002",
        "1 of 1 differ significantly",
        "prefers-color-scheme",
    ):
        assert text in page
    assert "40 examples of 20 users match; 1 are only in A and 2 only in B." in page
    assert 'aria-label="B is significantly worse"' in page


def test_a_page_without_differences_says_so() -> None:
    page = comparison_html(replace(COMPARISON, settings=[], rows=[], overlap=Overlap(0, 0, 3, 4)))
    assert "<p>Nothing.</p>" in page
    assert "no method and metric in common" in page
    assert "there is no test" in page
