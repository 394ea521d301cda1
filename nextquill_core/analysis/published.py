"""The published numbers as data, each with its source, and tables of them beside ours.

ROUGE, METEOR and BERTScore run from 0 to 1, BLEU is sacreBLEU's corpus score from 0 to 100, all on the published test
split. Methods have the names of `METHODS`.

The paper has two versions: arXiv 2506.02368 v1, and v2, the camera-ready of March 2026. We have read v1 itself. Of v2
we know what a public summary says, so all numbers of v2 are second-hand, and every table marks them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from nextquill_core.analysis.result_tables import NOTHING, markdown_table, signed
from nextquill_core.evaluation.metrics import BERTSCORE, METRICS
from nextquill_core.evaluation.tables import Row
from nextquill_core.generation.decoding import PAPER as PAPER_DECODING

Version = Literal["v1", "v2", ""]

PAPER = "NextQuill, arXiv 2506.02368 v1, main results, Qwen2.5-3B"
SECOND_VERSION = "NextQuill, arXiv 2506.02368 v2, Qwen2.5-3B, second-hand"
DPL = "DPL, arXiv 2503.02450: a 7B instruct model without history"
DEP = "DEP, arXiv 2507.20849: the best published on these users, a 7B model"
PRESET = PAPER_DECODING.name
"""The decoding preset that is compared with the published numbers."""
SECOND_HAND = "\N{DEGREE SIGN}"
"""Marks a number that is known second-hand."""
LEGEND = (
    f"{SECOND_HAND} known second-hand: read in a public summary of the paper's second version, not in the paper. By "
    "that summary the second version repeats the Amazon numbers of the first, and names causal-only MCE only, "
    "norm-only DCE only and mce-dce MCE-DCE alignment"
)

CATEGORIES = ("Books", "Movies_and_TV", "CDs_and_Vinyl")
"""The paper's Amazon data sets."""
TOPIC_WRITING = "topic_writing"
"""The data set that the paper's second version adds: Topic Writing of LongLaMP."""
NAMES: Mapping[str, str] = {"topic_writing_user": TOPIC_WRITING, "topic_writing_temporal": TOPIC_WRITING}
"""The paper's data set by the name that the hub gives it. Which of the two the paper measures is not known to us."""
TEST_USERS: Mapping[str, int] = {"Books": 317, "Movies_and_TV": 1925, "CDs_and_Vinyl": 1754}
REPORTED = ("rouge1", "rougeL", "meteor", "bleu")
"""Metrics of the first version's table."""
COLUMNS = (*REPORTED, BERTSCORE)
"""Metrics of both versions."""

# One line per method; in each category ROUGE-1, ROUGE-L, METEOR, BLEU, or as many of them as are known.
_PAPER: Mapping[str, tuple[tuple[float, ...], ...]] = {
    "qwen": ((0.0519, 0.0267, 0.0639, 0.0591), (0.0470, 0.0255, 0.0575, 0.0402), (0.0438, 0.0231, 0.0517, 0.0330)),
    "contriever": (
        (0.0507, 0.0275, 0.0599, 0.2064),
        (0.0516, 0.0290, 0.0580, 0.2454),
        (0.0501, 0.0271, 0.0545, 0.2386),
    ),
    "latestk": ((0.0520, 0.0290, 0.0611, 0.3629), (0.0527, 0.0292, 0.0582, 0.3178), (0.0513, 0.0282, 0.0560, 0.2688)),
    "llm-trsr": ((0.0641, 0.0393, 0.0564, 0.5733), (0.0900, 0.0501, 0.0756, 0.5736), (0.0724, 0.0418, 0.0622, 0.5679)),
    "cos": ((0.1429, 0.0788, 0.1059, 2.5952), (0.1421, 0.0791, 0.1038, 1.3679), (0.1727, 0.0877, 0.1284, 1.7840)),
    "sft": ((0.0752, 0.0351, 0.0861, 0.1636), (0.0620, 0.0305, 0.0722, 0.1409), (0.0668, 0.0314, 0.0746, 0.1305)),
    "oppu": ((0.1502, 0.0750, 0.1013, 0.6935), (0.1231, 0.0648, 0.0796, 0.2555), (0.1405, 0.0714, 0.0848, 0.3090)),
    "contextsft": (
        (0.1661, 0.0836, 0.2158, 2.1214),
        (0.1573, 0.0753, 0.1718, 1.7151),
        (0.1505, 0.0714, 0.1583, 1.3487),
    ),
    "causal-only": (
        (0.1827, 0.0907, 0.2145, 2.5619),
        (0.1629, 0.0796, 0.1698, 2.0097),
        (0.1552, 0.0744, 0.1509, 1.4392),
    ),
    "mce-dce": ((), (), ()),
    "norm-only": (
        (0.1958, 0.1122, 0.2786, 3.2468),
        (0.1865, 0.0953, 0.2100, 2.3798),
        (0.1805, 0.0922, 0.1996, 1.9861),
    ),
    "nextquill": (
        (0.2318, 0.1270, 0.2580, 3.5718),
        (0.2015, 0.1041, 0.1918, 2.3845),
        (0.1976, 0.0998, 0.1805, 1.9676),
    ),
}
# What only the second version has, by method, category and metric.
_ADDED: Mapping[str, Mapping[tuple[str, str], float]] = {
    "qwen": {("Books", BERTSCORE): 0.7385, (TOPIC_WRITING, "rouge1"): 0.0684},
    "contextsft": {("Books", BERTSCORE): 0.8013, (TOPIC_WRITING, "rouge1"): 0.0934},
    "mce-dce": {
        ("Books", "rouge1"): 0.1876,
        ("Movies_and_TV", "rouge1"): 0.1671,
        ("CDs_and_Vinyl", "rouge1"): 0.1672,
    },
    "nextquill": {("Books", BERTSCORE): 0.8182, (TOPIC_WRITING, "rouge1"): 0.1510},
}
# The paper's text defines `nextquill`; its numbers most likely come from its code, which is `nextquill-official` here.
OFFICIAL = "nextquill-official"
OFFICIAL_SOURCE = f"{PAPER}; most likely measured by its official code"
# Numbers of others for the same test users, decoded without the penalty; by metric, in the order of the categories.
_FURTHER = {
    ("7B, no history", DPL): {"rouge1": (0.2711, 0.2279, 0.2396)},
    ("DEP-7B", DEP): {
        "rouge1": (0.3745, 0.3092, 0.3165),
        "meteor": (0.3156, 0.2381, 0.2364),
        "bleu": (13.53, 6.68, 6.52),
    },
}


@dataclass(frozen=True, slots=True)
class Published:
    """One published number.

    Attributes:
        method: Name of the method; of `METHODS`, if `ours`.
        category: The data set.
        metric: Key of the metric.
        value: The number.
        source: Where it was published.
        ours: Whether the method is in `METHODS`, so that the two can be compared.
        version: Version of the paper; "" for the paper of others.
        second_hand: Whether we read it in a summary and not in the paper itself.
    """

    method: str
    category: str
    metric: str
    value: float
    source: str
    ours: bool
    version: Version = ""
    second_hand: bool = False


def _numbers() -> Iterator[Published]:
    for method, by_category in _PAPER.items():
        first = {
            (category, metric): value
            for category, values in zip(CATEGORIES, by_category, strict=True)
            for metric, value in zip(REPORTED, values, strict=False)
        }
        for (category, metric), value in first.items():
            yield Published(method, category, metric, value, PAPER, ours=True, version="v1")
        # By the summary, the second version repeats the numbers of the first.
        for (category, metric), value in {**first, **_ADDED.get(method, {})}.items():
            yield Published(method, category, metric, value, SECOND_VERSION, ours=True, version="v2", second_hand=True)
    for (method, source), metrics in _FURTHER.items():
        for metric, column in metrics.items():
            for category, value in zip(CATEGORIES, column, strict=True):
                yield Published(method, category, metric, value, source, ours=False)


PUBLISHED: tuple[Published, ...] = tuple(_numbers())


def beside_published(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return every published number of the measured categories, with ours under the paper's preset where there is one.

    Args:
        rows: Rows of the schema `METRICS`.

    Returns:
        Rows with method, category, metric, v1, v2 (the numbers of the paper's versions), published (v1 if there is one,
        else v2, or the number of another paper), second_hand (the versions whose number is second-hand), source, ours,
        ci_low, ci_high, difference (ours minus published) and n (examples); what is missing is None. Empty if no
        category is the paper's. NextQuill's numbers appear a second time beside `nextquill-official` where it was
        measured.
    """
    measured = {(row["method"], row["category"], row["metric"]): row for row in rows if row["decoding"] == PRESET}
    methods = {method for method, _, _ in measured}
    numbers = (*PUBLISHED, *(_by_official_code() if OFFICIAL in methods else ()))
    joined = []
    for category in dict.fromkeys(category for _, category, _ in measured):
        known: dict[tuple[str, str], list[Published]] = {}
        for number in numbers:
            if number.category == NAMES.get(category, category):
                known.setdefault((number.method, number.metric), []).append(number)
        for (method, metric), versions in known.items():
            row = measured.get((method, category, metric)) if versions[0].ours else None
            joined.append(_joined(category, versions, row))
    order = [*CATEGORIES, TOPIC_WRITING]
    return sorted(joined, key=lambda row: order.index(NAMES.get(row["category"], row["category"])))


def _by_official_code() -> Iterator[Published]:
    """Yield the published numbers of NextQuill again, for the objective of its official code."""
    for number in PUBLISHED:
        if number.method == "nextquill":
            yield replace(number, method=OFFICIAL, source=OFFICIAL_SOURCE)


def _joined(category: str, versions: Sequence[Published], row: Row | None) -> dict[str, Any]:
    """Return the numbers of one cell in all versions, with ours.

    Args:
        category: The category as it was measured.
        versions: The published numbers, the one that ours is compared with first.
        row: Our number, if there is one.
    """
    values = {number.version: number.value for number in versions}
    number = versions[0]
    return {
        "method": number.method,
        "category": category,
        "metric": number.metric,
        "v1": values.get("v1"),
        "v2": values.get("v2"),
        "published": number.value,
        "second_hand": [one.version for one in versions if one.second_hand],
        "source": number.source,
        "ours": row["value"] if row else None,
        "ci_low": row["ci_low"] if row else None,
        "ci_high": row["ci_high"] if row else None,
        "difference": row["value"] - number.value if row else None,
        "n": row["n"] if row else None,
    }


@dataclass(frozen=True, slots=True)
class PublishedCell:
    """Published numbers and ours as shown; "" for what is missing.

    Attributes:
        published: The number that ours is compared with: the first version's if there is one.
        second: The number of the paper's second version, unless `published` is that one.
        ours: Our number.
        interval: Its interval.
        difference: Ours minus `published`.
    """

    published: str = ""
    second: str = ""
    ours: str = ""
    interval: str = ""
    difference: str = ""

    def __str__(self) -> str:
        """Return ours / published / second version (difference)."""
        if not self.published:
            return NOTHING
        shown = " / ".join((self.ours or NOTHING, self.published, *([self.second] if self.second else [])))
        return shown + (f" ({self.difference})" if self.difference else "")


@dataclass(frozen=True, slots=True)
class PublishedTable:
    """One category. `lines` holds each method's cells in the order of `metrics`; `n` counts our examples."""

    category: str
    metrics: tuple[str, ...]
    lines: tuple[tuple[str, tuple[PublishedCell, ...]], ...]
    n: int

    decoding: str = PRESET

    @property
    def published_n(self) -> int | None:
        """Number of examples behind the published numbers; None if it is not known to us."""
        return TEST_USERS.get(self.category)

    @property
    def title(self) -> str:
        """Heading: what the cells are, and of how many examples."""
        published_n = "not known" if self.published_n is None else f"{self.published_n:,}"
        columns = "ours / v1 / v2 (difference)" if self.category in CATEGORIES else "ours / v2 (difference)"
        return f"{self.category}, {self.decoding} decoding, {columns}, n = {self.n:,} / {published_n}"


def published_tables(joined: Sequence[Row]) -> list[PublishedTable]:
    """Return the rows of `beside_published` as one table per category."""
    tables = []
    for category in dict.fromkeys(row["category"] for row in joined):
        chosen = [row for row in joined if row["category"] == category]
        found = {(row["method"], row["metric"]): _cell(row) for row in chosen}
        metrics = [key for key in COLUMNS if any(row["metric"] == key for row in chosen)]
        lines = tuple(
            (method, tuple(found.get((method, metric), PublishedCell()) for metric in metrics))
            for method in dict.fromkeys(row["method"] for row in chosen)
        )
        n = max((row["n"] or 0 for row in chosen), default=0)
        tables.append(PublishedTable(category, tuple(METRICS[key].name for key in metrics), lines, n))
    return tables


def published_sources(joined: Sequence[Row]) -> list[str]:
    """Return the sources of the rows of `beside_published`, each once, and what marked numbers are."""
    found = dict.fromkeys(row["source"] for row in joined)
    if any(row["second_hand"] for row in joined):
        found |= dict.fromkeys((SECOND_VERSION, LEGEND))
    return list(found)


def published_cells(joined: Sequence[Row]) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Yield (title, one row per method) for each category, to print in a terminal."""
    for table in published_tables(joined):
        yield (
            table.title,
            [
                {"method": method, **dict(zip(table.metrics, map(str, cells), strict=True))}
                for method, cells in table.lines
            ],
        )


def published_markdown(joined: Sequence[Row], differences: Sequence[str] = ()) -> str:
    """Return the tables, their sources, and the differences of the settings in Markdown."""
    parts = []
    for table in published_tables(joined):
        lines = ([method, *map(str, cells)] for method, cells in table.lines)
        parts.append(f"### {table.title}\n\n{markdown_table(['method', *table.metrics], lines)}\n")
    if parts:
        parts.append("Sources: " + "; ".join(published_sources(joined)) + ".\n")
    if differences:
        parts.append("What differs:\n\n" + "".join(f"- {difference}\n" for difference in differences))
    return "\n".join(parts)


def _cell(row: Row) -> PublishedCell:
    metric = METRICS[row["metric"]]

    def shown(version: str, value: float) -> str:
        return metric.text(value) + SECOND_HAND * (version in row["second_hand"])

    first = "v1" if row["v1"] is not None else "v2" if row["v2"] is not None else ""
    published = shown(first, row["published"])
    second = shown("v2", row["v2"]) if first == "v1" and row["v2"] is not None else ""
    if row["ours"] is None:
        return PublishedCell(published, second)
    interval = f"[{metric.text(row['ci_low'])}, {metric.text(row['ci_high'])}]"
    difference = signed(row["difference"], metric.decimals)
    return PublishedCell(published, second, metric.text(row["ours"]), interval, difference)
