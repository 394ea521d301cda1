"""Tests for the report page: it is whole, holds what it was given, and nothing it was given can do harm."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from matplotlib.figure import Figure

from nextquill_core.analysis.example_view import people_of
from nextquill_core.analysis.published import beside_published
from nextquill_core.analysis.report import (
    Cohort,
    Download,
    Picture,
    PictureGroup,
    Report,
    RowCount,
    Stage,
    TokenEffect,
    Training,
    draw,
    render,
)
from nextquill_core.analysis.result_tables import Histories
from nextquill_core.evaluation.slices import DIFFERENCE, OWN, STRANGER
from tests.nextquill_core.analysis.rows import compared, row
from tests.nextquill_core.analysis.test_example_view import explained

SLICE = {"slice": "history_length", "bucket": "8–15", "p_value": None, "p_adjusted": None}
COST = {
    "method": "llm-trsr",
    "decoding": "paper",
    "answers": 317,
    "training_seconds": None,
    "preparation": {"summaries": 412.0},
    "prompt_tokens": 1234.4,
    "new_tokens": 88.0,
    "tokens_per_second": 36.04,
    "first_token_ms": None,
    "peak_gb": 2.4,
    "retries": 0,
}
ANSWER = {
    "method": "qwen",
    "decoding": "paper",
    "answers": 317,
    "empty": 3,
    "cut": 12,
    "other": 0,
    "stopped_share": 305 / 317,
    "mean_tokens": 101.25,
    "longest_tokens": 2048,
}
EVIL = '</div><script>alert(1)</script><img src=http://evil.example/x onerror=go()> "it\'s" {{ 7*7 }} & \x00\x1b\ud800'
VOID = {"meta", "img", "input"}


class Page(HTMLParser):
    """Reads a page and fails where its tags are not properly nested."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += "" if {"style", "script"} & set(self.open) else data

    def attributes(self, tag: str, name: str) -> list[str]:
        return [value for found, attributes in self.tags if found == tag and (value := attributes.get(name))]


def picture(title: str = "Scores", label: str = "a label") -> Picture:
    figure = Figure(figsize=(1.0, 0.5))
    figure.text(0, 0, label, parse_math=False)
    return draw(f"figure-{title}", figure, title, f"bars of {title}; the table has the numbers", "Over users.")


@pytest.fixture(scope="module", name="report")
def _report() -> Report:
    return small_report()


def small_report() -> Report:
    """Return a report with numbers made by hand in every section."""
    return Report(
        title="NextQuill on Books",
        verdict=["It helps.", "Nothing is worse."],
        about=[("base model", "tiny, 4 layers")],
        facts=[("users", "317")],
        forests=[picture("Forest, sane"), picture("Forest, paper")],
        downloads=[Download("scores.csv", "All scores", "method,value\nnextquill,0.2318\n")],
        histories=[Histories("nextquill", -2.5, -3.25, None)],
        history_figures=[picture("Gains"), picture("Groups")],
        truth_figures=[picture("Calibration")],
        truth_facts=[("AUC", "0.93")],
        config=[("model", "tiny")],
        stages=[Stage("ingest", "a1b2c3", "store/ingest/a1b2c3", 1234, 4_500_000, 75.0)],
        counts=[RowCount("reviews", 1000, 900, {"no item kept": 60, "not valid JSON": 40})],
        cohorts=[Cohort("Books", 317, 5012, 12034, {"train": 2536, "test": 317})],
        rows=[
            row("contextsft", "rouge1", 0.1661),
            row("nextquill", "rouge1", 0.2318),
            row("contextsft", "length_ratio", 1.2),
            row("nextquill", "rouge1", 0.3, decoding="sane"),
            row("nextquill", "log_likelihood", -3.1415),
            row("nextquill", "log_likelihood", -3.1415, decoding="sane"),
        ],
        comparisons=[compared("rouge1", 0.0657, p_adjusted=0.0004)],
        slices=[
            {**row("nextquill", "rouge1", 0.21), **SLICE},
            {**row("nextquill", "rouge1", 0.5), **SLICE, "slice": "control", "bucket": OWN},
            {**row("nextquill", "rouge1", 0.25), **SLICE, "slice": "control", "bucket": STRANGER},
            {
                **row("nextquill", "rouge1", 0.1234),
                "slice": "control",
                "bucket": DIFFERENCE,
                "p_value": 0.01,
                "p_adjusted": 0.02,
            },
        ],
        published=beside_published([row("nextquill", "rouge1", 0.25)]),
        differences=["The base model is another."],
        costs=[COST],
        answers=[ANSWER],
        settings={
            "bleu": {"signature": "nrefs:1", "smooth": True},
            "preference_log_likelihood": {"preference tokens": "those under θ′", "caution": "measured with care"},
        },
        scores_figures=[picture()],
        effect_figures=[picture("Effects")],
        tokens=[TokenEffect(" chapters\n", 0.31, 1200)],
        training=[Training("nextquill", 600, 1_204_332, 3800.0, 2.8, 2.4, None)],
        training_figures=[picture("Curves")],
        person=people_of([explained("U1", 0.25, "I could not put it down.")]),
        paper=[
            PictureGroup("words", "Words of history", {"words-1": picture("Cloud")}),
            PictureGroup("clusters", "Clusters of states", absent="Run `nextquill evaluate` & wait."),
        ],
        notes=["Read with care."],
        commands=["make run", "nextquill report --config demo.yaml"],
    )


def test_page_is_whole_and_self_contained(report: Report) -> None:
    html = render(report)
    page = Page(html)
    drawn = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(drawn) == 9
    assert all(attributes["role"] == "img" and attributes["aria-label"] for attributes in drawn)
    assert not {"link", "iframe", "object", "img"} & {tag for tag, _ in page.tags}
    assert not re.search(r"""https?://|url\((?!#)|@import""", html)
    links = page.attributes("a", "href")
    assert {link[1:] for link in links if link[0] == "#"} == set(page.attributes("section", "id"))
    assert all(link.startswith("data:text/csv;charset=utf-8;base64,") for link in links if link[0] != "#")
    ids = [value for _, attributes in page.tags if (value := attributes.get("id"))]
    assert len(ids) == len(set(ids))


def test_the_content_policy_names_the_one_script_by_its_hash(report: Report) -> None:
    html = render(report)
    (policy,) = [
        attributes["content"] or ""
        for tag, attributes in Page(html).tags
        if attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)  # those with a type are data
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.split("; ") == [
        "default-src 'none'", "img-src data:", "style-src 'unsafe-inline'", f"script-src 'sha256-{digest}'",
    ]  # fmt: skip


def test_the_verdict_comes_first_and_the_tables_are_folded(report: Report) -> None:
    html = render(report)
    text = Page(html).text
    order = ("It helps.", "Forest, sane", "Gains", "Calibration", "I could not put it down.", "0.2318", "Glossary")
    places = [text.index(words, text.index("It helps.")) for words in order]
    assert places == sorted(places)
    assert html.index('<details class="part" id="results">') < html.index("0.2318")
    assert html.index("<h3>Decoding: sane</h3>") < html.index("<h3>Decoding: paper</h3>")


def test_a_table_is_offered_as_csv(report: Report) -> None:
    (link,) = [link for link in Page(render(report)).attributes("a", "href") if link.startswith("data:")]
    assert base64.b64decode(link.split(",")[1]).decode() == "method,value\nnextquill,0.2318\n"


def test_a_picture_that_is_missing_says_how_to_get_it(report: Report) -> None:
    html = render(report)
    assert "<p>Run <code>nextquill evaluate</code> &amp; wait.</p>" in html
    assert "Clusters of states" in html
    assert html.count("(not here yet)") == 1


def test_one_person_is_left_out_where_no_example_was_measured(report: Report) -> None:
    assert people_of([]) is None
    assert "person" not in Page(render(replace(report, person=None))).attributes("section", "id")


def test_everything_given_is_shown(report: Report) -> None:
    text = Page(render(report)).text
    for words in (
        "It helps.",
        "tiny, 4 layers",
        "−3.2500",
        "0.93",
        "a label",
        "Read with care.",
        "a1b2c3",
        "4.5 MB",
        "1 min 15 s",
        "1,000 rows read",
        "90.0 %",
        "not valid JSON",
        "12,034",
        "0.2318",
        "[0.2218, 0.2418]",
        "+0.0657",
        "p < 0.001, wins 71 %",
        "Decoding: sane",
        "bleu.signature",
        "␣chapters↵",
        "+0.310",
        "1,204,332",
        "1 h 03 min",
        "nothing",
        "−3.1415",
        "8–15n = 317",
        "+0.1234",
        "p = 0.020",
        "0.5000 against 0.2500",
        "published 0.2318",
        "v2 0.2318°",
        "+0.0182",
        "DEP-7B",
        "arXiv 2506.02368",
        "The base model is another.",
        "summaries 6 min 52 s",
        "36.0",
        "2.40 GB",
        "96.2 %",
        "2,048",
        "nextquill report --config demo.yaml",
    ):
        assert words in text


def test_best_and_significant_are_bold(report: Report) -> None:
    html = render(report)
    assert '<td class="num best">0.2318' in html
    assert '<td class="num">0.1661' in html
    assert '<td class="num best">+0.0657' in html
    weaker = render(replace(report, comparisons=[compared("rouge1", -0.02, p_adjusted=0.2)]))
    assert '<td class="num">−0.0200<small>[−0.0300, −0.0100]</small><small>p = 0.200' in weaker


def test_likelihoods_are_told_once(report: Report) -> None:
    """They are the same under every preset, so they are no column of the presets' tables."""
    assert render(report).count("−3.1415") == 1
    assert "there are none among these" in render(report)
    more = render(
        replace(report, rows=[*report.rows, row("nextquill", "preference_log_likelihood", -2.0, decoding="sane")])
    )
    assert "there are none among these" not in more
    assert "Preference tokens: those under θ′. Their log-likelihood and gains are measured with care." in more
    assert '<abbr title="on tokens that stored effects chose' in more


def test_retries_are_a_column_where_there_were_any(report: Report) -> None:
    assert "Retries" not in Page(render(report)).text
    assert "Retries" in Page(render(replace(report, costs=[{**COST, "retries": 2}]))).text


def test_many_methods_are_a_matrix(report: Report) -> None:
    """Thirteen methods, 78 pairs, each better than all before it, the last one significantly."""
    methods = [f"m{number:02}" for number in range(13)]
    comparisons = [
        compared(
            "rouge1", 0.01 * (second - first), reference=methods[first], method=methods[second], win_rate=0.8,
            p_adjusted=0.01 if second == 12 else 0.3,
        )
        for second in range(13)
        for first in range(second)
    ]  # fmt: skip
    rows = [row(method, "rouge1", 0.1) for method in methods]
    page = Page(render(replace(report, rows=rows, comparisons=comparisons)))
    assert "Every pair in ROUGE-1: 12 of 78 differ significantly" in page.text
    assert page.text.count("80 %") == page.text.count("20 %") == 78
    assert "80 % ▲+0.1200" in page.text
    assert "20 % ▼−0.1200" in page.text
    assert page.attributes("span", "aria-label").count("significantly better") == 12
    assert page.attributes("span", "aria-label").count("significantly worse") == 12
    one = [found for found in comparisons if found["reference"] == "m00"]
    listed = Page(render(replace(report, rows=rows, comparisons=one))).text
    assert "m12 against m00" in listed  # twelve pairs with one method are a list
    assert "Every pair" not in listed


def test_the_union_of_categories_comes_first(report: Report) -> None:
    rows = [row("qwen", "rouge1", 0.1, category) for category in ("Books", "Movies", "all")]
    html = render(replace(report, rows=rows, comparisons=[]))
    assert html.index("All categories: 317 examples") < html.index("<summary>Books") < html.index("<summary>Movies")


def test_absent_sections_are_left_out() -> None:
    page = Page(render(Report(title="Nothing yet")))
    assert page.text.split() == ["Nothing", "yet"] * 2  # in the window's title and on the page
    assert not {"section", "nav", "table", "figure", "dl"} & {tag for tag, _ in page.tags}
    only_data = Page(render(Report(title="Data", counts=[RowCount("items", 0, 0)])))
    assert only_data.attributes("section", "id") == ["data"]


def test_rows_that_vanished_are_told() -> None:
    assert "not accounted for" not in render(Report("r", counts=[RowCount("items", 10, 7, {"short": 3})]))
    assert "not accounted for" in render(Report("r", counts=[RowCount("items", 10, 7, {"short": 2})]))


def test_the_data_section_says_in_how_many_rows_html_was_cleaned() -> None:
    page = Page(render(Report("r", counts=[RowCount("items", 10, 7, {"short": 3}, {"title": 4, "description": 0})])))
    shown = "".join(page.text.split())
    assert "HTMLinthetitlecleaned,whethertherowwaskeptornot440.0%" in shown


def hostile_report() -> Report:
    """Return a report in which every text is an attack."""
    return Report(
        title=EVIL,
        facts=[(EVIL, EVIL)],
        config=[(EVIL, EVIL)],
        stages=[Stage(EVIL, EVIL, EVIL)],
        counts=[RowCount(EVIL, 2, 1, {EVIL: 1})],
        cohorts=[Cohort(EVIL, 1, 1, 1, {EVIL: 1})],
        rows=[row(EVIL, "rouge1", 0.1, EVIL, EVIL), row(EVIL, "rouge1", 0.1, EVIL + "2", EVIL)],
        comparisons=[compared("rouge1", 0.1, method=EVIL, category=EVIL, decoding=EVIL)],
        slices=[{**row(EVIL, "rouge1", 0.1, EVIL, EVIL), **SLICE}],
        published=[{**beside_published([row("nextquill", "rouge1", 0.25)])[0], "method": EVIL, "source": EVIL}],
        differences=[EVIL],
        costs=[{**COST, "method": EVIL, "decoding": EVIL, "preparation": {EVIL: None}}],
        answers=[{**ANSWER, "method": EVIL, "decoding": EVIL}],
        settings={EVIL: {EVIL: EVIL}},
        scores_figures=[draw(EVIL, Figure(), EVIL, EVIL, EVIL), picture("evil", EVIL[:90])],
        verdict=[EVIL],
        about=[(EVIL, EVIL)],
        forests=[draw("forest", Figure(), EVIL, EVIL, EVIL)],
        downloads=[Download(EVIL, EVIL, EVIL.replace("\ud800", ""))],
        histories=[Histories(EVIL, -1.0, None, None)],
        truth_figures=[draw("truth", Figure(), EVIL, EVIL, EVIL)],
        truth_facts=[(EVIL, EVIL)],
        tokens=[TokenEffect(EVIL, 0.1, 1)],
        training=[Training(EVIL, 1, 1, 1)],
        person=people_of([explained(EVIL, 0.1, EVIL), explained("שלום", 0.2, "ספר נפלא 😀")]),
        paper=[PictureGroup("evil", EVIL, {EVIL: draw("paper", Figure(), EVIL, EVIL, EVIL)}, EVIL)],
        notes=[EVIL],
        commands=[EVIL],
    )


def test_hostile_text_stays_text() -> None:
    html = render(hostile_report())
    page = Page(html)
    scripts = [attributes.get("type") for tag, attributes in page.tags if tag == "script"]
    assert sorted(map(str, scripts)) == ["None", "application/json", "application/json", "text/plain"], "the page's own"
    assert all(source.startswith("data:") for source in page.attributes("img", "src"))
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert "{{ 7*7 }}" in page.text
    assert "ספר נפלא 😀" in html
    html.encode("utf-8")
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", html)
