"""The report of a run as one HTML page: settings, data, scores, costs, and examples of generated texts.

It begins with the verdict and the differences behind it; tables of all numbers are folded below. The page is
self-contained: figures and the script that sorts tables are inlined, and a content policy forbids fetching anything and
any other script. Reviews and generated texts are untrusted, so every value is escaped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from nextquill_core.analysis.example_view import People
from nextquill_core.analysis.figures import png
from nextquill_core.analysis.glossary import GLOSSARY
from nextquill_core.analysis.html import page, script
from nextquill_core.analysis.published import published_sources, published_tables
from nextquill_core.analysis.result_tables import (
    SIGNIFICANT,
    Histories,
    bucket_tables,
    control_tables,
    likelihood_blocks,
    result_blocks,
)
from nextquill_core.analysis.svg import inline_svg
from nextquill_core.analysis.verdict import REFERENCES
from nextquill_core.config.packaged import leaves
from nextquill_core.evaluation.metrics import GAIN, LENGTH, LIKELIHOOD, PREFERENCE_SETS, preference_key
from nextquill_core.evaluation.tables import ALL, Row


@dataclass(frozen=True, slots=True)
class Stage:
    """One artifact of the run; `seconds` is None where it was not measured."""

    name: str
    fingerprint: str
    path: str = ""
    rows: int | None = None
    size: int | None = None
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class RowCount:
    """Row counts of one raw table; `dropped` by reason, `cleaned` by the column whose HTML was cleaned."""

    table: str
    read: int
    kept: int
    dropped: Mapping[str, int] = field(default_factory=dict)
    cleaned: Mapping[str, int] = field(default_factory=dict)

    @property
    def fates(self) -> list[tuple[str, int]]:
        """Row counts by outcome; a last line names rows that are not accounted for, which is always a fault."""
        lost = self.read - self.kept - sum(self.dropped.values())
        return [("kept", self.kept), *self.dropped.items(), *([("not accounted for", lost)] if lost else [])]


@dataclass(frozen=True, slots=True)
class Cohort:
    """The content of one category after ingestion; `examples` by split."""

    category: str
    users: int
    items: int
    reviews: int
    examples: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure, for the page and for files.

    Attributes:
        title: Its title.
        alt: What it shows, for those who do not see it.
        png: The figure as a PNG file.
        svg: The figure as an element of the page.
        caption: How to read it.
        data: The numbers that it shows, as rows of a table.
    """

    title: str
    alt: str
    png: bytes
    svg: Markup
    caption: str = ""
    data: Sequence[Row] = ()


def draw(name: str, figure: Figure, title: str, alt: str, caption: str = "", data: Sequence[Row] = ()) -> Picture:
    """Return a figure of matplotlib as a picture of the report.

    Args:
        name: The file's name without suffix, different for each figure of a page.
        figure: The figure.
        title: As for `Picture`.
        alt: As for `Picture`.
        caption: As for `Picture`.
        data: As for `Picture`.
    """
    drawn = png(figure)
    figure.set_layout_engine("none")  # the layout stays as it is: finding it takes longest
    return Picture(title, alt, drawn, inline_svg(figure, name, alt), caption, data)


@dataclass(frozen=True, slots=True)
class Training:
    """The training of one adapter; losses in nats, of the last steps, None where the method has no such part."""

    method: str
    steps: int
    tokens: int
    seconds: float
    loss: float | None = None
    normal: float | None = None
    causal: float | None = None


@dataclass(frozen=True, slots=True)
class TokenEffect:
    """A vocabulary token, its mean causal effect (a difference of probabilities) and how often it was scored."""

    token: str
    effect: float
    count: int


@dataclass(frozen=True, slots=True)
class Download:
    """A table as a file: its name, what it holds, and its content as CSV."""

    name: str
    title: str
    csv: str


@dataclass(frozen=True, slots=True)
class PictureGroup:
    """The pictures of one subject.

    Attributes:
        name: Its id on the page.
        title: Its title.
        pictures: The pictures by file name without suffix.
        absent: One line on what is missing and how to get it; "" where nothing is.
        input: Whether they follow from the inputs of the evaluation alone, so that they are part of its content.
    """

    name: str
    title: str
    pictures: Mapping[str, Picture] = field(default_factory=dict)
    absent: str = ""
    input: bool = True


@dataclass(frozen=True, slots=True)
class Report:
    """Everything the page shows. A section whose values are empty is left out.

    Attributes:
        title: Title of the page.
        verdict: At most three sentences on what the numbers show, as of `verdict.verdict`.
        about: What the page is about, label and value: date, version, machine, base model, number of users, seed.
        facts: The most important numbers, label and value.
        forests: Figures of the differences to the references, one for each decoding preset.
        downloads: Tables to download.
        histories: Log-likelihoods with own, no and another user's history.
        history_figures: Figures on what the history adds.
        truth_figures: Figures on estimated and exact effects; empty for data without exact effects.
        truth_facts: Numbers on the same, label and value.
        truth_rows: The same for each method, as `pipeline.report.against_truth` describes them.
        person: Single users: three that a rule chooses, and a picker for all.
        config: The most important settings, name and value.
        stages: The artifacts of the run.
        counts: Row counts of the raw tables.
        cohorts: The categories.
        rows: Rows of the schema `METRICS`.
        comparisons: Rows of `tables.comparison_rows`.
        slices: Rows of the schema `SLICES`: by history length, by gap, and the control.
        published: Rows of `published.beside_published`.
        differences: Differences from the published setting, one or two sentences each.
        costs: Rows of `tables.cost_rows`.
        answers: Rows of `tables.answer_rows`.
        settings: How the metrics are computed, as of `metrics.metric_settings`.
        scores_figures: Figures beside the tables.
        effect_figures: Figures of the causal effects.
        tokens: Tokens with the highest mean effect, in that order.
        training: Summaries of the trainings.
        training_figures: Figures of the trainings.
        paper: The pictures that the paper shows, by subject.
        notes: What a reader must know to judge the numbers.
        commands: Commands that reproduce the page.
    """

    title: str
    verdict: Sequence[str] = ()
    about: Sequence[tuple[str, str]] = ()
    facts: Sequence[tuple[str, str]] = ()
    forests: Sequence[Picture] = ()
    downloads: Sequence[Download] = ()
    histories: Sequence[Histories] = ()
    history_figures: Sequence[Picture] = ()
    truth_figures: Sequence[Picture] = ()
    truth_facts: Sequence[tuple[str, str]] = ()
    truth_rows: Sequence[Mapping[str, Any]] = ()
    person: People | None = None
    config: Sequence[tuple[str, str]] = ()
    stages: Sequence[Stage] = ()
    counts: Sequence[RowCount] = ()
    cohorts: Sequence[Cohort] = ()
    rows: Sequence[Row] = ()
    comparisons: Sequence[Row] = ()
    slices: Sequence[Row] = ()
    published: Sequence[Row] = ()
    differences: Sequence[str] = ()
    costs: Sequence[Row] = ()
    answers: Sequence[Row] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    scores_figures: Sequence[Picture] = ()
    effect_figures: Sequence[Picture] = ()
    tokens: Sequence[TokenEffect] = ()
    training: Sequence[Training] = ()
    training_figures: Sequence[Picture] = ()
    paper: Sequence[PictureGroup] = ()
    notes: Sequence[str] = ()
    commands: Sequence[str] = ()


def render(report: Report) -> str:
    """Return the report as an HTML page."""
    filters: dict[str, Callable[..., Any]] = {"number": number, "duration": _duration, "size": _size, "flat": _flat}
    values = {
        "gains": likelihood_blocks(report.rows, report.comparisons, GAIN),
        "presets": result_blocks(report.rows, report.comparisons),
        "cut": result_blocks(report.rows, report.comparisons, LENGTH),
        "likelihoods": likelihood_blocks(report.rows, report.comparisons),
        "published": published_tables(report.published),
        "sources": published_sources(report.published),
        "slices": bucket_tables(report.slices),
        "controls": control_tables(report.slices),
        "preferences": _preferences(report),
        "all": ALL,
        "alpha": SIGNIFICANT,
        "glossary": GLOSSARY,
        "references": REFERENCES,
        "compared": {row[side] for row in report.comparisons for side in ("method", "reference")},
        **script("report_script.js", "token_keys.js", "person_picker.js"),
    }
    return page("report.html.j2", filters, report=report, **values)


def _preferences(report: Report) -> list[dict[str, Any]]:
    """Return for each set of preference tokens what its columns' names add, its tokens and what to know of them."""
    measured = {row["metric"] for row in report.rows}
    return [
        {
            "ending": ending,
            "tokens": report.settings[key]["preference tokens"],
            "caution": report.settings[key]["caution"],
            "found": key in measured,
        }
        for name, ending in PREFERENCE_SETS.items()
        if (key := preference_key(LIKELIHOOD, name)) in report.settings
    ]


def number(value: float | None, decimals: int = 0) -> str:
    """Return a number with thousands separators and a minus sign; a dash where there is none."""
    return "–" if value is None else f"{value:,.{decimals}f}".replace("-", "\N{MINUS SIGN}")


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def _size(count: int | None) -> str:
    if count is None:
        return "–"
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def _flat(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return nested settings as dotted names and values."""
    words = {True: "yes", False: "no"}
    found = ((name, value) for name, value in leaves(settings) if value != {})
    return [(name, words[value] if isinstance(value, bool) else str(value)) for name, value in found]
