"""Rows of results arranged as a reader sees them: tables, comparisons of pairs, matrices of many, slices, a control."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nextquill_core.evaluation.metrics import METRICS, Metric
from nextquill_core.evaluation.slices import BUCKETS, CONTROL, DIFFERENCE, GAP, HISTORY_LENGTH, OWN, STRANGER
from nextquill_core.evaluation.tables import ALL, NOTHING, Cell, Pivot, Row, best_of, cell_of, pivot

SIGNIFICANT = 0.05
LISTED_PAIRS = 6  # more of them, against more than one method, are a matrix


@dataclass(frozen=True, slots=True)
class ComparedPair:
    """A method against another: for each metric the difference, shares and p-value as shown."""

    method: str
    reference: str
    cells: tuple[Cell, ...]
    details: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Duel:
    """A cell of a matrix: how the row's method does against the column's.

    Attributes:
        wins: Share of users for whom it scores higher, as shown; "" on the diagonal and where there is no comparison.
        difference: Row minus column, in the metric's unit, as shown.
        verdict: 1 or -1 where the difference is significant after correction, else 0.
    """

    wins: str = ""
    difference: str = ""
    verdict: int = 0


@dataclass(frozen=True, slots=True)
class Matrix:
    """Every method against every other in one metric; the cells of a line stand in the order of `methods`."""

    metric: Metric
    methods: tuple[str, ...]
    lines: tuple[tuple[str, tuple[Duel, ...]], ...]

    @property
    def pairs(self) -> int:
        """How many pairs were compared."""
        return sum(bool(duel.wins) for _, duels in self.lines for duel in duels) // 2

    @property
    def significant(self) -> int:
        """How many of them differ significantly."""
        return sum(duel.verdict > 0 for _, duels in self.lines for duel in duels)


@dataclass(frozen=True, slots=True)
class Block:
    """The scores and comparisons of one decoding preset and category; pairs or, of many, matrices."""

    decoding: str
    category: str
    table: Pivot
    pairs: tuple[ComparedPair, ...]
    matrices: tuple[Matrix, ...] = ()


@dataclass(frozen=True, slots=True)
class BucketTable:
    """Methods by buckets in one metric: `buckets` are (name, examples)."""

    title: str
    decoding: str
    category: str
    metric: Metric
    buckets: tuple[tuple[str, int], ...]
    lines: tuple[tuple[str, tuple[Cell, ...]], ...]


@dataclass(frozen=True, slots=True)
class ControlCell:
    """Own minus stranger's as shown, `difference.best` if significant, and both values."""

    difference: Cell
    detail: str
    own: str
    stranger: str


@dataclass(frozen=True, slots=True)
class ControlTable:
    """Methods by metrics, of one decoding preset and category."""

    decoding: str
    category: str
    metrics: tuple[Metric, ...]
    lines: tuple[tuple[str, tuple[ControlCell, ...]], ...]
    n: int


TITLES = {HISTORY_LENGTH: "By the number of past reviews", GAP: "By the time since the last review"}


def result_blocks(rows: Sequence[Row], comparisons: Sequence[Row]) -> list[tuple[str, list[Block]]]:
    """What methods wrote, by decoding preset in the order of the rows, the union of all categories before its parts."""
    written, compared = _of_texts(rows, texts=True), _of_texts(comparisons, texts=True)
    return [
        (decoding, _blocks(written, compared, decoding))
        for decoding in dict.fromkeys(row["decoding"] for row in written)
    ]


def likelihood_blocks(rows: Sequence[Row], comparisons: Sequence[Row]) -> list[Block]:
    """What methods expect, of the first preset that tells: it is the same under every preset."""
    found, compared = _of_texts(rows, texts=False), _of_texts(comparisons, texts=False)
    return _blocks(found, compared, found[0]["decoding"]) if found else []


def bucket_tables(slices: Sequence[Row]) -> list[tuple[str, list[BucketTable]]]:
    """By slice, its tables: every preset and metric, of the union of all categories or the only one."""
    found: list[tuple[str, list[BucketTable]]] = []
    for name, title in TITLES.items():
        rows = [row for row in slices if row["slice"] == name]
        category = _widest(rows)
        keys = dict.fromkeys((row["decoding"], row["metric"]) for row in rows if row["metric"] in METRICS)
        first = {metric: decoding for decoding, metric in reversed(keys)}
        tables = [
            _bucket_table(name, decoding, category, METRICS[key], rows)
            for decoding, key in keys
            if METRICS[key].written or decoding == first[key]
        ]
        if tables:
            found.append((title, tables))
    return found


def control_tables(slices: Sequence[Row]) -> list[ControlTable]:
    """A table a preset, of the union of all categories or the only one."""
    rows = [row for row in slices if row["slice"] == CONTROL]
    category = _widest(rows)
    rows = [row for row in rows if row["category"] == category]
    tables = []
    for decoding in dict.fromkeys(row["decoding"] for row in rows):
        found = {(row["method"], row["metric"], row["bucket"]): row for row in rows if row["decoding"] == decoding}
        tested = {metric for _, metric, bucket in found if bucket == DIFFERENCE}
        metrics = tuple(metric for key, metric in METRICS.items() if key in tested)
        lines = tuple(
            (
                method,
                tuple(
                    _control_cell(
                        metric, *(found.get((method, metric.key, bucket)) for bucket in (OWN, STRANGER, DIFFERENCE))
                    )
                    for metric in metrics
                ),
            )
            for method in dict.fromkeys(method for method, *_ in found)
        )
        tables.append(ControlTable(decoding, category, metrics, lines, max(row["n"] for row in found.values())))
    return tables


def signed(value: float, decimals: int) -> str:
    """A number with its sign, a real minus."""
    return f"{value:+.{decimals}f}".replace("-", "\N{MINUS SIGN}")


def _of_texts(rows: Iterable[Row], *, texts: bool) -> list[Row]:
    asked = {key for key, metric in METRICS.items() if not metric.written}
    return [row for row in rows if (row["metric"] not in asked) == texts]


def _blocks(rows: Sequence[Row], comparisons: Sequence[Row], decoding: str) -> list[Block]:
    categories = dict.fromkeys(row["category"] for row in rows if row["decoding"] == decoding)
    blocks = []
    for category in sorted(categories, key=lambda name: name != ALL):
        table = pivot(rows, decoding, category)
        compared = [row for row in comparisons if row["decoding"] == decoding and row["category"] == category]
        pairs = list(dict.fromkeys((row["method"], row["reference"]) for row in compared))
        if len(pairs) > LISTED_PAIRS and len({reference for _, reference in pairs}) > 1:
            blocks.append(Block(decoding, category, table, (), _matrices(table, compared)))
        else:
            blocks.append(Block(decoding, category, table, _pairs(table, compared, pairs)))
    return blocks


def _pairs(table: Pivot, rows: Sequence[Row], pairs: Sequence[tuple[str, str]]) -> tuple[ComparedPair, ...]:
    found = {(row["method"], row["reference"], row["metric"]): row for row in rows}
    compared = [metric.key for metric in table.metrics if metric.higher_is_better is not None]
    listed = []
    for method, reference in pairs:
        chosen = [found.get((method, reference, key)) for key in compared]
        listed.append(ComparedPair(method, reference, tuple(map(_difference, chosen)), tuple(map(_detail, chosen))))
    return tuple(listed)


def _matrices(table: Pivot, rows: Sequence[Row]) -> tuple[Matrix, ...]:
    methods = tuple(method for method, _ in table.lines)
    matrices = []
    for metric in table.metrics:
        duels: dict[tuple[str, str], Duel] = {}
        for row in rows:
            if row["metric"] == metric.key:
                duels[row["method"], row["reference"]] = _duel(metric, row, 1)
                duels[row["reference"], row["method"]] = _duel(metric, row, -1)
        if duels:
            lines = tuple(
                (method, tuple(duels.get((method, other), Duel()) for other in methods)) for method in methods
            )
            matrices.append(Matrix(metric, methods, lines))
    return tuple(matrices)


def _duel(metric: Metric, row: Row, side: int) -> Duel:
    """The comparison as its first method (1) or its second (-1) sees it."""
    difference = side * row["difference"]
    share = row["win_rate"] if side > 0 else 1 - row["win_rate"]
    better = difference > 0 if metric.higher_is_better else difference < 0
    verdict = (1 if better else -1) if row["p_adjusted"] < SIGNIFICANT else 0
    return Duel(f"{100 * share:.0f} %", signed(difference, metric.decimals), verdict)


def _difference(row: Row | None) -> Cell:
    """`best` marks a difference that is significant after the correction."""
    if row is None:
        return Cell(NOTHING)
    decimals = METRICS[row["metric"]].decimals
    low, high = signed(row["ci_low"], decimals), signed(row["ci_high"], decimals)
    value = row["difference"] if "difference" in row else row["value"]
    return Cell(signed(value, decimals), f"[{low}, {high}]", row["p_adjusted"] < SIGNIFICANT)


def _p_value(row: Row) -> str:
    value = row["p_adjusted"]
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def _detail(row: Row | None) -> str:
    return "" if row is None else f"{_p_value(row)}, wins {100 * row['win_rate']:.0f} %"


def _bucket_table(name: str, decoding: str, category: str, metric: Metric, rows: Sequence[Row]) -> BucketTable:
    chosen = [
        row for row in rows if (row["decoding"], row["category"], row["metric"]) == (decoding, category, metric.key)
    ]
    sizes = {row["bucket"]: row["n"] for row in chosen}
    buckets = tuple((bucket, sizes[bucket]) for bucket in BUCKETS[name] if bucket in sizes)
    found = {(row["method"], row["bucket"]): row for row in chosen}
    best = {bucket: best_of(metric, [row for row in chosen if row["bucket"] == bucket]) for bucket, _ in buckets}
    lines = tuple(
        (method, tuple(cell_of(metric, found.get((method, bucket)), best[bucket]) for bucket, _ in buckets))
        for method in dict.fromkeys(row["method"] for row in chosen)
    )
    return BucketTable(TITLES[name], decoding, category, metric, buckets, lines)


def _control_cell(metric: Metric, own: Row | None, stranger: Row | None, test: Row | None) -> ControlCell:
    values = [NOTHING if row is None else metric.text(row["value"]) for row in (own, stranger)]
    return ControlCell(_difference(test), "" if test is None else _p_value(test), *values)


def _widest(rows: Sequence[Row]) -> str:
    categories = list(dict.fromkeys(row["category"] for row in rows))
    return ALL if ALL in categories or not categories else categories[0]
