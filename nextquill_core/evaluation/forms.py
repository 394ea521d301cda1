"""The form of the JSON documents of evaluations, sweeps, reproductions and studies, which their readers rely on."""

from __future__ import annotations

from typing import Any, NotRequired

from typing_extensions import TypedDict


class MetricRow(TypedDict):
    """One metric of one method, decoding preset and category, with its interval."""

    method: str
    category: str
    decoding: str
    metric: str
    value: float
    ci_low: float
    ci_high: float
    n: int


class EvaluationDocument(TypedDict):
    """The content of metrics.json of an evaluation; comparisons are rows of `tables.comparison_rows`."""

    settings: dict[str, Any]
    rows: list[MetricRow]
    comparisons: list[dict[str, Any]]
    chosen_on_val: NotRequired[dict[str, dict[str, Any]]]
    cautions: NotRequired[list[str]]
    verdict: NotRequired[list[str]]


class TruthRow(TypedDict):
    """How the effects and texts of one method compare with a synthetic world's truth; None for what does not exist."""

    method: str
    pearson: float | None
    auc: float | None
    slope: float | None
    own_style: float | None
    stranger_style: float | None


class SweepRow(MetricRow):
    """The same at one point of a sweep."""

    point: int


class SweepPoint(TypedDict):
    """One point of a sweep: its values by dotted key, and the fingerprints of its predictions by `METHOD/DECODING`."""

    point: int
    values: dict[str, Any]
    predictions: dict[str, str]


class SweepDocument(TypedDict):
    """The content of metrics.json of a sweep."""

    split: str
    points: list[SweepPoint]
    rows: list[SweepRow]
    cautions: NotRequired[list[str]]


class PublishedRow(TypedDict):
    """A number of both versions of the paper, or of another paper, with ours; None for what there is not."""

    method: str
    category: str
    metric: str
    v1: float | None
    v2: float | None
    published: float
    second_hand: list[str]
    source: str
    ours: float | None
    ci_low: float | None
    ci_high: float | None
    difference: float | None
    n: int | None


class ReproductionPart(TypedDict):
    """One configuration of a reproduction."""

    categories: list[str]
    ours: list[MetricRow]
    rows: list[PublishedRow]
    differences: list[str]
    cautions: NotRequired[list[str]]


class StudyTable(TypedDict):
    """One table of a study: rows and comparisons as of `studies.study.measure.table`."""

    split: str
    examples: int
    users: int
    rows: list[dict[str, Any]]
    comparisons: list[dict[str, Any]]


class StudyResults(TypedDict):
    """All numbers of one study."""

    name: str
    title: str
    questions: list[int]
    method: str
    reference: str
    decoding_methods: list[str]
    decoding: str
    seeds: list[int]
    val_seeds: dict[str, int]
    data: list[dict[str, Any]]
    settings: dict[str, str]
    steps: dict[str, list[int]]
    choices: list[dict[str, Any]]
    candidates: dict[str, dict[str, dict[str, Any]]]
    tables: dict[str, StudyTable]
    effects: list[dict[str, Any]]
    notes: list[str]
    missing: list[str]
    evaluations: dict[str, str]


class StudyDocument(TypedDict):
    """The content of results.json, from which the page of the studies is written."""

    studies: list[StudyResults]


class Choice(TypedDict):
    """What was chosen on val, by which metric, and every candidate's value."""

    chosen: str
    by: str
    asked: str
    why: str
    values: dict[str, float]
