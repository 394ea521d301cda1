"""Rows of results as tables that people read: scores, comparisons of pairs, matrices of many, slices, the control."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from nextquill_core.evaluation.metrics import (
    EXACT,
    GAIN,
    HISTORY_GAIN,
    LENGTH,
    LIKELIHOOD,
    MAIN,
    METRICS,
    PERSONAL_GAIN,
    UNICODE_FORMS,
    Metric,
    known_metrics,
    preference_key,
)
from nextquill_core.evaluation.slices import BUCKETS, CONTROL, DIFFERENCE, GAP, HISTORY_LENGTH, OWN, STRANGER
from nextquill_core.evaluation.tables import ALL, Row

NOTHING = "–"
"""What stands for a number that does not exist."""
SIGNIFICANT = 0.05
MAIN_PRESET = "sane"
"""The preset that is shown first: without a repetition penalty, which changes texts more than most methods do."""
LISTED_PAIRS = 6  # more pairs, of more than one reference, are shown as a matrix
HEADLINES = (
    PERSONAL_GAIN, preference_key(PERSONAL_GAIN, EXACT), LIKELIHOOD, "rouge1", "rouge1_unicode",
)  # fmt: skip
"""The metrics that a terminal shows first, in this order."""
_HEADINGS = {
    GAIN: "{category}, gain by history in nats a token, n = {n}",
    MAIN: "{category}, {decoding} decoding, n = {n}",
    LENGTH: "{category}, {decoding} decoding, answers cut to the length of the true review, n = {n}",
}
TITLES = {HISTORY_LENGTH: "By the number of past reviews", GAP: "By the time since the last review"}


@dataclass(frozen=True, slots=True)
class Cell:
    """One number as shown. `best`: no other method shows a better one."""

    value: str
    interval: str = ""
    best: bool = False

    def __str__(self) -> str:
        return f"{self.value} {self.interval}".strip()


@dataclass(frozen=True, slots=True)
class Pivot:
    """Methods by metrics. `lines` holds each method's cells in the order of `metrics`; `n` counts examples."""

    metrics: tuple[Metric, ...]
    lines: tuple[tuple[str, tuple[Cell, ...]], ...]
    n: int

    @property
    def markdown(self) -> str:
        """The table in Markdown, the best of each metric in bold."""
        lines = []
        for method, cells in self.lines:
            texts = (f"**{cell.value}** {cell.interval}".strip() if cell.best else str(cell) for cell in cells)
            lines.append([method, *texts])
        return markdown_table(["method", *(metric.name for metric in self.metrics)], lines) + "\n"


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
        """Number of pairs that were compared."""
        return sum(bool(duel.wins) for _, duels in self.lines for duel in duels) // 2

    @property
    def significant(self) -> int:
        """Number of pairs that differ significantly."""
        return sum(duel.verdict > 0 for _, duels in self.lines for duel in duels)


@dataclass(frozen=True, slots=True)
class Block:
    """The scores and comparisons of one decoding preset and category: pairs, or matrices where there are many."""

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
    """Methods by metrics under the stranger control, of one decoding preset and category."""

    decoding: str
    category: str
    metrics: tuple[Metric, ...]
    lines: tuple[tuple[str, tuple[ControlCell, ...]], ...]
    n: int


@dataclass(frozen=True, slots=True)
class Histories:
    """Log-likelihoods of the true reviews under one method with three histories, nats a token; None if not measured."""

    method: str
    own: float
    none: float | None
    stranger: float | None


def histories(rows: Sequence[Row]) -> Iterator[Histories]:
    """Yield the log-likelihood of each method with own, no and another user's history, of the widest category.

    The gains are differences of these log-likelihoods, so that those are the own one minus the gain.

    Args:
        rows: Of the schema `METRICS`.
    """
    category = widest(rows)
    found = {(row["method"], row["metric"]): row["value"] for row in rows if row["category"] == category}
    for method in dict.fromkeys(row["method"] for row in rows):
        own = found.get((method, LIKELIHOOD))
        if own is not None:
            none, stranger = (
                None if (gain := found.get((method, key))) is None else own - gain
                for key in (HISTORY_GAIN, PERSONAL_GAIN)
            )
            yield Histories(method, own, none, stranger)


def preset_order(decodings: Iterable[str]) -> list[str]:
    """Return decoding presets, each once, in the order in which they are shown: `sane` first."""
    return sorted(dict.fromkeys(decodings), key=lambda name: name != MAIN_PRESET)


def pivot(
    rows: Sequence[Row],
    decoding: str,
    category: str,
    tables: Collection[str] = (MAIN,),
    *,
    texts: Collection[bool] = (True, False),
) -> Pivot:
    """Return the table of one decoding preset and category.

    Methods stand in the order of the rows, metrics in that of `METRICS`. The best of a metric is decided on the
    digits shown, so equal ones are best together. A missing number is a dash.

    Args:
        rows: Of the schema `METRICS`.
        decoding: The decoding preset.
        category: The category.
        tables: The metrics shown are those of these tables (`Metric.table`).
        texts: Whether they judge generated texts, or not; by default either.
    """
    chosen = [row for row in rows if row["decoding"] == decoding and row["category"] == category]
    found = {(row["method"], row["metric"]): row for row in chosen}
    measured = {row["metric"] for row in chosen}
    known = known_metrics(key for key in METRICS if key in measured)
    metrics = tuple(metric for metric in known if metric.table in tables and metric.judges_text in texts)
    best = {metric.key: _best_of(metric, [row for row in chosen if row["metric"] == metric.key]) for metric in metrics}
    lines = tuple(
        (method, tuple(_cell(metric, found.get((method, metric.key)), best[metric.key]) for metric in metrics))
        for method in dict.fromkeys(row["method"] for row in chosen)
    )
    return Pivot(metrics, lines, max((row["n"] for row in chosen), default=0))


def shown_tables(rows: Sequence[Row]) -> Iterator[tuple[str, Pivot]]:
    """Yield all tables of an evaluation with their titles: gains of each category, then scores of each preset.

    Args:
        rows: Of the schema `METRICS`.
    """
    order = preset_order(row["decoding"] for row in rows)
    found = dict.fromkeys((row["decoding"], row["category"]) for row in rows)
    presets = sorted(found, key=lambda preset: order.index(preset[0]))
    first = {category: decoding for decoding, category in reversed(presets)}  # gains are the same under every preset
    wanted = [
        *((GAIN, first[category], category) for category in dict.fromkeys(category for _, category in presets)),
        *((MAIN, *preset) for preset in presets),
        *((LENGTH, *preset) for preset in presets),
    ]
    for name, decoding, category in wanted:
        table = pivot(rows, decoding, category, (name,))
        if table.metrics:
            yield _HEADINGS[name].format(decoding=decoding, category=category, n=table.n), table


def headline_table(rows: Sequence[Row]) -> tuple[str, Pivot]:
    """Return the most important metrics of the first preset and the widest category, with the title of the table.

    Args:
        rows: Of the schema `METRICS`.
    """
    decoding, category = preset_order(row["decoding"] for row in rows)[0], widest(rows)
    table = pivot(rows, decoding, category, (GAIN, MAIN))
    measured = {metric.key: place for place, metric in enumerate(table.metrics)}
    places = [measured[key] for key in HEADLINES if key in measured and UNICODE_FORMS.get(key) not in measured]
    lines = tuple((method, tuple(cells[place] for place in places)) for method, cells in table.lines)
    title = f"{category}, {decoding} decoding, n = {table.n}, with 95 % intervals over users"
    return title, Pivot(tuple(table.metrics[place] for place in places), lines, table.n)


def result_blocks(rows: Sequence[Row], comparisons: Sequence[Row], table: str = MAIN) -> list[tuple[str, list[Block]]]:
    """Return the blocks of generated texts by decoding preset, the union of all categories before its parts.

    Args:
        rows: Of the schema `METRICS`.
        comparisons: Rows of `tables.comparison_rows`.
        table: `main`, or `length` for texts that are cut to the length of the true review.
    """
    return [
        (decoding, _blocks(rows, comparisons, decoding, table, texts=True))
        for decoding in _presets(rows, table, texts=True)
    ]


def likelihood_blocks(rows: Sequence[Row], comparisons: Sequence[Row], table: str = MAIN) -> list[Block]:
    """Return the blocks of log-likelihoods under the first preset that has any: they are the same under all.

    Args:
        rows: Of the schema `METRICS`.
        comparisons: Rows of `tables.comparison_rows`.
        table: `main`, or `gain` for the gains by history, which are differences of log-likelihoods.
    """
    first = next(iter(_presets(rows, table, texts=False)), None)
    return [] if first is None else _blocks(rows, comparisons, first, table, texts=False)


def bucket_tables(slices: Sequence[Row]) -> list[tuple[str, list[BucketTable]]]:
    """Return the tables of each slice by its title, for every preset and metric of the widest category, gains first."""
    found: list[tuple[str, list[BucketTable]]] = []
    for name, title in TITLES.items():
        rows = [row for row in slices if row["slice"] == name]
        category = widest(rows)
        keys = dict.fromkeys((row["decoding"], row["metric"]) for row in rows if row["metric"] in METRICS)
        first = {metric: decoding for decoding, metric in reversed(keys)}
        tables = [
            _bucket_table(name, decoding, category, METRICS[key], rows)
            for decoding, key in sorted(
                keys, key=lambda shown: (METRICS[shown[1]].table != GAIN, shown[0] != MAIN_PRESET)
            )
            if METRICS[key].judges_text or decoding == first[key]
        ]
        if tables:
            found.append((title, tables))
    return found


def control_tables(slices: Sequence[Row]) -> list[ControlTable]:
    """Return a table of the stranger control for each preset, of the widest category."""
    rows = [row for row in slices if row["slice"] == CONTROL]
    category = widest(rows)
    rows = [row for row in rows if row["category"] == category]
    tables = []
    for decoding in preset_order(row["decoding"] for row in rows):
        found = {(row["method"], row["metric"], row["bucket"]): row for row in rows if row["decoding"] == decoding}
        tested = {metric for _, metric, bucket in found if bucket == DIFFERENCE}
        metrics = known_metrics(key for key in METRICS if key in tested)
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


def widest(rows: Sequence[Row]) -> str:
    """Return the union of all categories, or the first one where there is no union; `all` without rows."""
    categories = list(dict.fromkeys(row["category"] for row in rows))
    return ALL if ALL in categories or not categories else str(categories[0])


def markdown_table(columns: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown, all columns but the first aligned to the right; the cells are Markdown already."""
    rule = ["---", *("---:" for _ in columns[1:])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, rule, *lines))


def signed(value: float, decimals: int) -> str:
    """Return a number with its sign, a real minus."""
    return f"{value:+.{decimals}f}".replace("-", "\N{MINUS SIGN}")


def _shown_in(table: str, rows: Iterable[Row], *, texts: bool) -> list[Row]:
    """Return the rows of a table's metrics that judge generated texts, as unknown metrics do, or of its others."""
    known = {key: (metric.table, metric.judges_text) for key, metric in METRICS.built_in.items()}
    return [row for row in rows if known.get(row["metric"], (MAIN, True)) == (table, texts)]


def _presets(rows: Iterable[Row], table: str, *, texts: bool) -> list[str]:
    """Return the decoding presets that have such metrics."""
    return preset_order(row["decoding"] for row in _shown_in(table, rows, texts=texts))


def _blocks(
    rows: Sequence[Row], comparisons: Sequence[Row], decoding: str, shown_in: str, *, texts: bool
) -> list[Block]:
    """Return the blocks of one preset; a method without any of the metrics has a line of dashes."""
    found, every = (_shown_in(shown_in, some, texts=texts) for some in (rows, comparisons))
    categories = dict.fromkeys(row["category"] for row in found if row["decoding"] == decoding)
    blocks = []
    for category in sorted(categories, key=lambda name: name != ALL):
        table = pivot(rows, decoding, category, (shown_in,), texts=(texts,))
        compared = [row for row in every if row["decoding"] == decoding and row["category"] == category]
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
    """Return the comparison from the side of its first method (1) or its second (-1)."""
    difference = side * row["difference"]
    share = row["win_rate"] if side > 0 else 1 - row["win_rate"]
    better = difference > 0 if metric.higher_is_better else difference < 0
    verdict = (1 if better else -1) if row["p_adjusted"] < SIGNIFICANT else 0
    return Duel(f"{100 * share:.0f} %", signed(difference, metric.decimals), verdict)


def _difference(row: Row | None) -> Cell:
    """Return a difference as shown; `best` marks one that is significant after the correction."""
    if row is None:
        return Cell(NOTHING)
    decimals = METRICS[row["metric"]].decimals
    low, high = signed(row["ci_low"], decimals), signed(row["ci_high"], decimals)
    value = row["difference"] if "difference" in row else row["value"]
    return Cell(signed(value, decimals), f"[{low}, {high}]", row["p_adjusted"] < SIGNIFICANT)


def p_value_text(row: Row) -> str:
    """Return a comparison's p-value after correction as shown, such as `p = 0.012`."""
    value = row["p_adjusted"]
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def _detail(row: Row | None) -> str:
    return "" if row is None else f"{p_value_text(row)}, wins {100 * row['win_rate']:.0f} %"


def _bucket_table(name: str, decoding: str, category: str, metric: Metric, rows: Sequence[Row]) -> BucketTable:
    chosen = [
        row for row in rows if (row["decoding"], row["category"], row["metric"]) == (decoding, category, metric.key)
    ]
    sizes = {row["bucket"]: row["n"] for row in chosen}
    buckets = tuple((bucket, sizes[bucket]) for bucket in BUCKETS[name] if bucket in sizes)
    found = {(row["method"], row["bucket"]): row for row in chosen}
    best = {bucket: _best_of(metric, [row for row in chosen if row["bucket"] == bucket]) for bucket, _ in buckets}
    lines = tuple(
        (method, tuple(_cell(metric, found.get((method, bucket)), best[bucket]) for bucket, _ in buckets))
        for method in dict.fromkeys(row["method"] for row in chosen)
    )
    return BucketTable(TITLES[name], decoding, category, metric, buckets, lines)


def _control_cell(metric: Metric, own: Row | None, stranger: Row | None, test: Row | None) -> ControlCell:
    values = [NOTHING if row is None else metric.text(row["value"]) for row in (own, stranger)]
    return ControlCell(_difference(test), "" if test is None else p_value_text(test), *values)


def _best_of(metric: Metric, rows: Sequence[Row]) -> str | None:
    """Return the best value as shown; None where neither direction is better."""
    if metric.higher_is_better is None or not rows:
        return None
    values = [row["value"] for row in rows]
    return metric.text(max(values) if metric.higher_is_better else min(values))


def _cell(metric: Metric, row: Row | None, best: str | None) -> Cell:
    """Return a row's value and interval as shown; a dash where there is no row."""
    if row is None:
        return Cell(NOTHING)
    value = metric.text(row["value"])
    return Cell(value, f"[{metric.text(row['ci_low'])}, {metric.text(row['ci_high'])}]", value == best)
