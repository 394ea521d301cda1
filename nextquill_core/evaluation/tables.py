"""From the scores of examples to the rows of metrics.json and metrics.parquet, and from rows to tables for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextquill_core.errors import UserError
from nextquill_core.evaluation.metrics import METRICS, ExampleScores, Metric
from nextquill_core.evaluation.significance import SAMPLES, Floats, compare, holm, interval_of, resample, user_sums

ALL = "all"
Key = tuple[str, str]  # method, decoding
Row = Mapping[str, Any]
NOTHING = "–"
_Sums = dict[str, tuple[Floats, Floats]]  # by metric: the users' sums (U, K), the resampled sums (B, K)


def metric_rows(
    scores: Mapping[Key, ExampleScores],
    users: Sequence[str],
    categories: Sequence[str],
    *,
    samples: int = SAMPLES,
    seed: int = 42,
) -> list[dict[str, Any]]:
    """Every metric of every method, decoding preset and category, with its 95 % interval over users.

    Args:
        scores: By method and decoding preset; all are of the same examples in the same order.
        users: Each example's user.
        categories: Each example's category. With several, their union is a further one, "all".
        samples: Resamples of users.
        seed: Of the resampling.

    Returns:
        Rows with the columns of `schemas.METRICS`; n counts examples. ROUGE and METEOR 0 to 1, BLEU 0 to 100.

    Raises:
        ValueError: The scores, users and categories are not all of the same, at least one, examples.
    """
    rows = []
    for category, members in _groups(scores, users, categories).items():
        for key, sums in _resampled(scores, users, members, samples, seed).items():
            chosen = scores[key].take(members)
            for metric in METRICS.values():
                _, resampled = sums[metric.key]
                interval = interval_of(chosen.value(metric.key), metric.statistic(resampled))
                rows.append(
                    {
                        "method": key[0],
                        "category": category,
                        "decoding": key[1],
                        "metric": metric.key,
                        "value": interval.value,
                        "ci_low": interval.low,
                        "ci_high": interval.high,
                        "n": len(members),
                    }
                )
    return rows


def comparison_rows(
    scores: Mapping[Key, ExampleScores],
    users: Sequence[str],
    categories: Sequence[str],
    *,
    reference: str | None = None,
    samples: int = SAMPLES,
    seed: int = 42,
) -> list[dict[str, Any]]:
    """Paired bootstrap tests of methods under the same decoding preset, for each metric that has a better direction.

    Holm's correction is over all comparisons of one category and decoding preset, that is over one table as a reader
    sees it. No p-value lies below 1 / (samples + 1), so many comparisons need many samples: 10,000 are enough for the
    55 pairs of 11 methods in 4 metrics.

    Args:
        scores: As for `metric_rows`.
        users: As for `metric_rows`.
        categories: As for `metric_rows`.
        reference: The method that each other one is compared against; None for every pair.
        samples: Resamples of users.
        seed: Of the resampling.

    Returns:
        Rows with method, reference, category, decoding, metric, difference (method minus reference, in the metric's
        unit), ci_low, ci_high, p_value, p_adjusted, win_rate (share of users) and n (examples).

    Raises:
        ValueError: As for `metric_rows`.
    """
    rows: list[dict[str, Any]] = []
    for category, members in _groups(scores, users, categories).items():
        sums = _resampled(scores, users, members, samples, seed)
        for decoding in dict.fromkeys(preset for _, preset in scores):
            methods = [method for method, preset in scores if preset == decoding]
            family: list[dict[str, Any]] = [
                {
                    "method": method,
                    "reference": other,
                    "category": category,
                    "decoding": decoding,
                    "metric": metric.key,
                    **_comparison(metric, sums[method, decoding], sums[other, decoding]),
                    "n": len(members),
                }
                for method, other in _pairs(methods, reference)
                for metric in METRICS.values()
                if metric.higher_is_better is not None
            ]
            adjusted = holm([row["p_value"] for row in family])
            rows.extend({**row, "p_adjusted": p_value} for row, p_value in zip(family, adjusted, strict=True))
    return rows


def to_document(settings: Mapping[str, Any], rows: Sequence[Row], comparisons: Sequence[Row] = ()) -> dict[str, Any]:
    """The content of metrics.json."""
    return {
        "settings": dict(settings),
        "rows": [dict(row) for row in rows],
        "comparisons": [dict(row) for row in comparisons],
    }


def from_document(document: Any, where: str = "metrics.json") -> tuple[dict[str, Any], list[Row], list[Row]]:
    """Settings, rows and comparisons of a parsed metrics.json.

    Raises:
        UserError: It is not one; `where` names the file.
    """
    try:
        return dict(document["settings"]), list(document["rows"]), list(document["comparisons"])
    except (TypeError, KeyError, ValueError):
        raise UserError(
            "not a metrics file: settings, rows or comparisons are missing", where, "evaluate again"
        ) from None


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


def pivot(rows: Sequence[Row], decoding: str, category: str) -> Pivot:
    """The table of one decoding preset and category, methods and metrics in the order in which the rows name them.

    The best of a metric is decided on the digits shown, so equal ones are best together. A number that is not there
    is a dash.
    """
    chosen = [row for row in rows if row["decoding"] == decoding and row["category"] == category]
    found = {(row["method"], row["metric"]): row for row in chosen}
    metrics = tuple(METRICS[key] for key in dict.fromkeys(row["metric"] for row in chosen) if key in METRICS)
    best = {metric.key: _best(metric, [row for row in chosen if row["metric"] == metric.key]) for metric in metrics}
    lines = tuple(
        (method, tuple(_cell(metric, found.get((method, metric.key)), best[metric.key]) for metric in metrics))
        for method in dict.fromkeys(row["method"] for row in chosen)
    )
    return Pivot(metrics, lines, max((row["n"] for row in chosen), default=0))


def markdown_table(rows: Sequence[Row], decoding: str, category: str) -> str:
    """The same table in Markdown, the best of each metric in bold."""
    table = pivot(rows, decoding, category)
    lines = [["method", *(metric.name for metric in table.metrics)], ["---", *("---:" for _ in table.metrics)]]
    for method, cells in table.lines:
        texts = (f"**{cell.value}** {cell.interval}".strip() if cell.best else str(cell) for cell in cells)
        lines.append([method, *texts])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _groups(
    scores: Mapping[Key, ExampleScores], users: Sequence[str], categories: Sequence[str]
) -> dict[str, NDArray[np.intp]]:
    """The examples of each category by name, then those of all if there are several."""
    counts = {len(users), len(categories), *map(len, scores.values())}
    if len(counts) > 1 or not users:
        raise ValueError(
            f"scores, users and categories of {sorted(counts)} examples; one number of at least 1 expected"
        )
    named = np.asarray(categories, dtype=np.str_)
    groups = {name: np.flatnonzero(named == name) for name in sorted(set(categories))}
    return groups if len(groups) == 1 else {**groups, ALL: np.arange(len(named))}


def _resampled(
    scores: Mapping[Key, ExampleScores], users: Sequence[str], members: NDArray[np.intp], samples: int, seed: int
) -> dict[Key, _Sums]:
    """Of each method and metric the users' sums and the resampled sums, all from the same draws of users."""
    chosen = [users[index] for index in members]
    sums = {
        (key, metric): user_sums(result.take(members).stats(metric), chosen)
        for key, result in scores.items()
        for metric in METRICS
    }
    ends = np.cumsum([part.shape[1] for part in sums.values()])[:-1]
    resampled = np.split(resample(np.hstack(list(sums.values())), samples=samples, seed=seed), ends, axis=1)
    found: dict[Key, _Sums] = {key: {} for key in scores}
    for ((key, metric), part), drawn in zip(sums.items(), resampled, strict=True):
        found[key][metric] = part, drawn
    return found


def _comparison(metric: Metric, mine: _Sums, theirs: _Sums) -> dict[str, float]:
    (sums, resampled), (other, other_resampled) = mine[metric.key], theirs[metric.key]
    result = compare(sums, other, resampled, other_resampled, metric.statistic)
    return {
        "difference": result.difference.value,
        "ci_low": result.difference.low,
        "ci_high": result.difference.high,
        "p_value": result.p_value,
        "win_rate": result.win_rate,
    }


def _pairs(methods: Sequence[str], reference: str | None) -> list[tuple[str, str]]:
    if reference is None:
        return [(later, earlier) for earlier, later in combinations(methods, 2)]
    return [(method, reference) for method in methods if method != reference] if reference in methods else []


def _best(metric: Metric, rows: Sequence[Row]) -> str | None:
    if metric.higher_is_better is None or not rows:
        return None
    values = [row["value"] for row in rows]
    return metric.text(max(values) if metric.higher_is_better else min(values))


def _cell(metric: Metric, row: Row | None, best: str | None) -> Cell:
    if row is None:
        return Cell(NOTHING)
    value = metric.text(row["value"])
    return Cell(value, f"[{metric.text(row['ci_low'])}, {metric.text(row['ci_high'])}]", value == best)
