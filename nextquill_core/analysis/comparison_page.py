"""Comparison of two evaluations as tables and as one HTML page: what differs in settings, and what in results.

The page is self-contained as the report is: no script, nothing fetched, every value escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nextquill_core.analysis.html import page
from nextquill_core.analysis.report import number
from nextquill_core.analysis.result_tables import NOTHING, SIGNIFICANT, p_value_text, preset_order, signed
from nextquill_core.evaluation.metrics import GAIN, LENGTH, METRICS, Metric
from nextquill_core.evaluation.tables import ALL, NO_TEXTS, Row


@dataclass(frozen=True, slots=True)
class ComparedRun:
    """One of the two evaluations, for the head of the page.

    Attributes:
        name: What the user called it.
        fingerprint: Its fingerprint.
        place: Its folder or URI.
        made: When it was made, as the manifest says; "" where it does not.
        split: The split that was measured.
        examples: Number of examples.
    """

    name: str
    fingerprint: str
    place: str
    made: str
    split: str
    examples: int


@dataclass(frozen=True, slots=True)
class ValueDifference:
    """A setting by its dotted key, with both values as shown."""

    key: str
    a: str
    b: str


@dataclass(frozen=True, slots=True)
class Overlap:
    """How the examples of two evaluations match.

    Attributes:
        examples: Examples that both have.
        users: Their users.
        only_a: Examples that only A has.
        only_b: Examples that only B has.
        changed: Examples whose id both have, but whose true review differs; they do not count as matching.
    """

    examples: int
    users: int
    only_a: int
    only_b: int
    changed: int = 0

    def __str__(self) -> str:
        text = (
            f"{self.examples:,} examples of {self.users:,} users match; {self.only_a:,} are only in A and "
            f"{self.only_b:,} only in B"
        )
        if self.changed:
            text += f"; {self.changed:,} have the same id but another true review, and do not count as matching"
        if not self.examples:
            text += "; the means are of different examples, so there is no test"
        return f"{text}."


@dataclass(frozen=True, slots=True)
class Comparison:
    """All that differs between two evaluations.

    Attributes:
        a: The first evaluation.
        b: The second evaluation.
        settings: Settings that decide results.
        operational: Settings that say how a stage runs.
        origin: What else went into the results: data, model, code, libraries, choices on val.
        overlap: How the examples match.
        rows: Rows of `between_runs.paired_rows` or `unpaired_rows`.
        notes: What a reader must know, such as methods that only one of the two has.
    """

    a: ComparedRun
    b: ComparedRun
    settings: Sequence[ValueDifference]
    operational: Sequence[ValueDifference]
    origin: Sequence[ValueDifference]
    overlap: Overlap
    rows: Sequence[Row]
    notes: Sequence[str] = ()

    @property
    def setting_groups(self) -> list[tuple[str, Sequence[ValueDifference]]]:
        """The groups of settings with their titles; groups without a difference are left out."""
        groups = (
            ("Settings that decide results", self.settings),
            ("Data, model and code", self.origin),
            ("Operational settings, which change no result", self.operational),
        )
        return [(title, found) for title, found in groups if found]


@dataclass(frozen=True, slots=True)
class ResultLine:
    """One metric of one method as shown.

    Attributes:
        metric: The metric.
        method: The method.
        a: Value of A.
        b: Value of B.
        difference: B minus A with its sign; a dash where the values cannot be compared.
        interval: Its 95 % interval, or "".
        test: The p-value after correction, or why there is no test.
        wins: Share of the users for whom B is higher, or "".
        tested: Whether there is a test.
        verdict: 1 or -1 where B is significantly better or worse, else 0.
    """

    metric: Metric
    method: str
    a: str
    b: str
    difference: str
    interval: str
    test: str
    wins: str
    tested: bool
    verdict: int


@dataclass(frozen=True, slots=True)
class ResultTable:
    """The lines of one category, decoding preset and group of metrics."""

    title: str
    lines: tuple[ResultLine, ...]

    @property
    def significant(self) -> int:
        """Number of lines with a significant difference."""
        return sum(line.verdict != 0 for line in self.lines)

    @property
    def tested(self) -> int:
        """Number of lines with a test."""
        return sum(line.tested for line in self.lines)


def comparison_tables(rows: Sequence[Row]) -> list[ResultTable]:
    """Return the tables of a comparison, the union of all categories first; in each, metric by metric.

    In a category, gains and likelihoods come first, then texts as `preset_order`, then texts that were cut.

    Args:
        rows: Rows of `between_runs.paired_rows` or `unpaired_rows`.
    """
    known = list(METRICS)
    categories = list(dict.fromkeys(row["category"] for row in rows))
    presets = preset_order(row["decoding"] for row in rows)
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["category"], row["decoding"], METRICS[row["metric"]].table), []).append(row)

    def place(group: tuple[str, str, str]) -> tuple[bool | int, ...]:
        category, decoding, table = group
        kind = (decoding != NO_TEXTS, table != GAIN, table == LENGTH)
        return category != ALL, categories.index(category), *kind, presets.index(decoding)

    tables = []
    for category, decoding, table in sorted(groups, key=place):
        found = groups[category, decoding, table]
        ordered = sorted(found, key=lambda row: known.index(row["metric"]))
        tables.append(ResultTable(_title(category, decoding, table, found[0]), tuple(map(_line, ordered))))
    return tables


def comparison_html(comparison: Comparison) -> str:
    """Return the comparison as an HTML page."""
    tables = comparison_tables(comparison.rows)
    return page("comparison.html.j2", {"number": number}, found=comparison, tables=tables, alpha=SIGNIFICANT)


def _title(category: str, decoding: str, table: str, row: Row) -> str:
    if decoding == NO_TEXTS:
        what = "gain by history in nats a token" if table == GAIN else "likelihood of the true reviews"
    else:
        what = f"{decoding} decoding" + (", answers cut to the length of the true review" if table == LENGTH else "")
    counts = f"n = {row['n_a']:,}" if row["n_a"] == row["n_b"] else f"n = {row['n_a']:,} and {row['n_b']:,}"
    return f"{'All categories' if category == ALL else category}, {what}, {counts}"


def _line(row: Row) -> ResultLine:
    metric = METRICS[row["metric"]]
    difference, low = row["difference"], row["ci_low"]
    verdict = 0
    if row["p_adjusted"] is not None and row["p_adjusted"] < SIGNIFICANT:
        verdict = 1 if (difference > 0) == metric.higher_is_better else -1
    return ResultLine(
        metric,
        row["method"],
        metric.text(row["value_a"]),
        metric.text(row["value_b"]),
        NOTHING if difference is None else _difference(difference, metric.decimals),
        "" if low is None else f"[{_difference(low, metric.decimals)}, {_difference(row['ci_high'], metric.decimals)}]",
        row["untested"] or p_value_text(row),
        "" if row["win_rate"] is None else f"{100 * row['win_rate']:.0f} %",
        not row["untested"],
        verdict,
    )


def _difference(value: float, decimals: int) -> str:
    """Return a difference with its sign; zero, as shown, has none."""
    shown = signed(value, decimals)
    return shown if any(digit in shown for digit in "123456789") else shown[1:]
