"""The published numbers as data, each with its source, and tables of them beside ours.

ROUGE and METEOR run from 0 to 1, BLEU is sacreBLEU's corpus score from 0 to 100, all on the test split of the DPL
protocol. Methods have the names of `METHODS`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nextquill_core.analysis.result_tables import NOTHING, signed
from nextquill_core.evaluation.metrics import METRICS
from nextquill_core.evaluation.tables import Row
from nextquill_core.generation.decoding import PAPER as PAPER_DECODING

PAPER = "NextQuill, arXiv 2506.02368, main results, Qwen2.5-3B"
SECOND_VERSION = "NextQuill, arXiv 2506.02368 v2, ablation, Qwen2.5-3B"
DPL = "DPL, arXiv 2503.02450: a 7B instruct model without history"
DEP = "DEP, arXiv 2507.20849: the best published on these users, a 7B model"
PRESET = PAPER_DECODING.name
"""The decoding preset that is compared with the published numbers."""

CATEGORIES = ("Books", "Movies_and_TV", "CDs_and_Vinyl")
TEST_USERS: Mapping[str, int] = {"Books": 317, "Movies_and_TV": 1925, "CDs_and_Vinyl": 1754}
REPORTED = ("rouge1", "rougeL", "meteor", "bleu")

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
    "mce-dce": ((0.1876,), (0.1671,), (0.1672,)),
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
_SOURCES = {"mce-dce": SECOND_VERSION}
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
    """One published number. `ours`: whether the method is in `METHODS`, so that the two can be compared."""

    method: str
    category: str
    metric: str
    value: float
    source: str
    ours: bool


def _numbers() -> Iterator[Published]:
    for method, blocks in _PAPER.items():
        for category, values in zip(CATEGORIES, blocks, strict=True):
            for metric, value in zip(REPORTED, values, strict=False):
                yield Published(method, category, metric, value, _SOURCES.get(method, PAPER), ours=True)
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
        Rows with method, category, metric, published, source, ours, ci_low, ci_high, difference (ours minus
        published) and n (examples); the last five are None where we have no number. Empty if no category is the
        paper's. NextQuill's numbers appear a second time beside `nextquill-official` where it was measured.
    """
    measured = {(row["method"], row["category"], row["metric"]): row for row in rows if row["decoding"] == PRESET}
    categories = {category for _, category, _ in measured}
    methods = {method for method, _, _ in measured}
    return [
        _joined(number, measured.get((number.method, number.category, number.metric)) if number.ours else None)
        for category in CATEGORIES
        if category in categories
        for number in (*PUBLISHED, *(_by_official_code() if OFFICIAL in methods else ()))
        if number.category == category
    ]


def _by_official_code() -> Iterator[Published]:
    """Yield the published numbers of NextQuill again, for the objective of its official code."""
    for number in PUBLISHED:
        if number.method == "nextquill":
            yield replace(number, method=OFFICIAL, source=OFFICIAL_SOURCE)


def _joined(number: Published, row: Row | None) -> dict[str, Any]:
    return {
        "method": number.method,
        "category": number.category,
        "metric": number.metric,
        "published": number.value,
        "source": number.source,
        "ours": row["value"] if row else None,
        "ci_low": row["ci_low"] if row else None,
        "ci_high": row["ci_high"] if row else None,
        "difference": row["value"] - number.value if row else None,
        "n": row["n"] if row else None,
    }


@dataclass(frozen=True, slots=True)
class PublishedCell:
    """A published number and ours as shown; "" for what is missing."""

    published: str = ""
    ours: str = ""
    interval: str = ""
    difference: str = ""

    def __str__(self) -> str:
        """Return ours / published (difference)."""
        if not self.published:
            return NOTHING
        return f"{self.ours or NOTHING} / {self.published}" + (f" ({self.difference})" if self.difference else "")


@dataclass(frozen=True, slots=True)
class PublishedTable:
    """One category. `lines` holds each method's cells in the order of `metrics`; `n` counts our examples."""

    category: str
    metrics: tuple[str, ...]
    lines: tuple[tuple[str, tuple[PublishedCell, ...]], ...]
    n: int

    decoding: str = PRESET

    @property
    def published_n(self) -> int:
        """Number of examples behind the published numbers."""
        return TEST_USERS[self.category]

    @property
    def title(self) -> str:
        """Heading: what the cells are, and of how many examples."""
        sizes = f"n = {self.n:,} / {self.published_n:,}"
        return f"{self.category}, {self.decoding} decoding, ours / published (difference), {sizes}"


def published_tables(joined: Sequence[Row]) -> list[PublishedTable]:
    """Return the rows of `beside_published` as one table per category."""
    tables = []
    for category in dict.fromkeys(row["category"] for row in joined):
        chosen = [row for row in joined if row["category"] == category]
        found = {(row["method"], row["metric"]): _cell(row) for row in chosen}
        lines = tuple(
            (method, tuple(found.get((method, metric), PublishedCell()) for metric in REPORTED))
            for method in dict.fromkeys(row["method"] for row in chosen)
        )
        n = max((row["n"] or 0 for row in chosen), default=0)
        tables.append(PublishedTable(category, tuple(METRICS[key].name for key in REPORTED), lines, n))
    return tables


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
        lines = [["method", *table.metrics], ["---", *("---:" for _ in table.metrics)]]
        lines += [[method, *map(str, cells)] for method, cells in table.lines]
        body = "".join(f"| {' | '.join(line)} |\n" for line in lines)
        parts.append(f"### {table.title}\n\n{body}")
    if parts:
        parts.append("Sources: " + "; ".join(dict.fromkeys(row["source"] for row in joined)) + ".\n")
    if differences:
        parts.append("What differs:\n\n" + "".join(f"- {difference}\n" for difference in differences))
    return "\n".join(parts)


def _cell(row: Row) -> PublishedCell:
    metric = METRICS[row["metric"]]
    published = metric.text(row["published"])
    if row["ours"] is None:
        return PublishedCell(published)
    interval = f"[{metric.text(row['ci_low'])}, {metric.text(row['ci_high'])}]"
    return PublishedCell(published, metric.text(row["ours"]), interval, signed(row["difference"], metric.decimals))
