"""From the scores of examples to the rows of metrics.json and of Parquet files, and from rows to tables for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nextquill_core.errors import UserError
from nextquill_core.evaluation.metrics import (
    LIKELIHOOD,
    METRICS,
    PREFERENCE_LIKELIHOOD,
    ExampleScores,
    Metric,
    sentence_bleu,
)
from nextquill_core.evaluation.significance import (
    SAMPLES,
    Values,
    compare_values,
    holm,
    interval_of,
    resample,
    user_sums,
    values_of,
)
from nextquill_core.schemas import EXAMPLE_SCORES
from storage import documents

ALL = "all"
Key = tuple[str, str]  # method, decoding
Row = Mapping[str, Any]
NOTHING = "–"
_NAMES = ("method", "category", "decoding", "metric")
_NUMBERS = ("value", "ci_low", "ci_high")
SAMPLES_A_COMPARISON = 40  # so that the least p-value, times the number of comparisons, is still 0.025


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
        Rows with the columns of `schemas.METRICS`; n counts examples. ROUGE and METEOR 0 to 1, BLEU 0 to 100. A metric
        that was not measured, or has nothing to measure in a category, has no row.

    Raises:
        ValueError: The scores, users and categories are not all of the same, at least one, examples.
    """
    rows = []
    for category, members in category_groups(scores, users, categories).items():
        for key, found in _resampled(scores, users, members, samples, seed).items():
            chosen = scores[key].take(members)
            for metric, values in found.items():
                interval = interval_of(chosen.value(metric), values.resampled)
                rows.append(
                    {
                        "method": key[0],
                        "category": category,
                        "decoding": key[1],
                        "metric": metric,
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

    Holm's correction is over all comparisons of one category and decoding preset: every pair in every metric. No
    p-value lies below 1 / (samples + 1), so many comparisons need many samples, or nothing could be found however
    large: for the 78 pairs of 13 methods in 7 metrics the least corrected p-value of 10,000 samples is 0.055. Where
    `samples` are too few, more are drawn.

    Args:
        scores: As for `metric_rows`.
        users: As for `metric_rows`.
        categories: As for `metric_rows`.
        reference: The method that each other one is compared against; None for every pair.
        samples: Resamples of users, at least.
        seed: Of the resampling.

    Returns:
        Rows with method, reference, category, decoding, metric, difference (method minus reference, in the metric's
        unit), ci_low, ci_high, p_value, p_adjusted, win_rate (share of users) and n (examples).

    Raises:
        ValueError: As for `metric_rows`.
    """
    families = {
        decoding: _pairs([method for method, preset in scores if preset == decoding], reference)
        for decoding in dict.fromkeys(preset for _, preset in scores)
    }
    compared = {key for result in scores.values() for key in result.keys if METRICS[key].higher_is_better is not None}
    largest = len(compared) * max(map(len, families.values()), default=0)
    rows: list[dict[str, Any]] = []
    for category, members in category_groups(scores, users, categories).items() if largest else ():
        found = _resampled(scores, users, members, max(samples, SAMPLES_A_COMPARISON * largest), seed)
        for decoding, pairs in families.items():
            family: list[dict[str, Any]] = [
                {
                    "method": method,
                    "reference": other,
                    "category": category,
                    "decoding": decoding,
                    "metric": metric,
                    **_comparison(values, found[other, decoding][metric]),
                    "n": len(members),
                }
                for method, other in pairs
                for metric, values in found[method, decoding].items()
                if metric in compared and metric in found[other, decoding]
            ]
            rows.extend(corrected(family))
    return rows


def corrected(family: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows of one family of comparisons with `p_adjusted`, Holm's correction of their `p_value`."""
    adjusted = holm([row["p_value"] for row in family])
    return [{**row, "p_adjusted": p_value} for row, p_value in zip(family, adjusted, strict=True)]


def example_table(scores: Mapping[Key, ExampleScores], example_ids: Sequence[str]) -> pa.Table:
    """Every score of every example, in the schema `EXAMPLE_SCORES`; what was not measured is null.

    Args:
        scores: By method and decoding preset; all are of the same examples in the same order.
        example_ids: Theirs.

    Raises:
        ValueError: The scores are of another number of examples.
    """
    parts = [_example_columns(*key, result, example_ids) for key, result in scores.items()]
    tables = [pa.table(columns, schema=EXAMPLE_SCORES) for columns in parts]
    return pa.concat_tables(tables) if tables else EXAMPLE_SCORES.empty_table()


def _example_columns(
    method: str, decoding: str, scores: ExampleScores, example_ids: Sequence[str]
) -> dict[str, Sequence[Any]]:
    if len(scores) != len(example_ids):
        raise ValueError(f"{len(scores)} scores of {method} for {len(example_ids)} examples")
    absent: list[Any] = [None] * len(scores)
    columns: dict[str, Sequence[Any]] = {
        "example_id": list(example_ids),
        "method": [method] * len(scores),
        "decoding": [decoding] * len(scores),
        "bleu": sentence_bleu(scores).tolist(),
        "bleu_counts": scores.bleu.tolist(),
        "words": scores.lengths[:, 0].tolist(),
        "reference_words": scores.lengths[:, 1].tolist(),
        **{key: values.tolist() for key, values in (*scores.means.items(), *scores.unicode.items())},
    }
    for key, tokens in ((LIKELIHOOD, "tokens"), (PREFERENCE_LIKELIHOOD, "preference_tokens")):
        if key in scores.sums:
            columns[key], columns[tokens] = scores.sums[key][:, 0].tolist(), scores.sums[key][:, 1].astype(int).tolist()
    return {name: columns.get(name, absent) for name in EXAMPLE_SCORES.names}


def to_document(
    settings: Mapping[str, Any], rows: Sequence[Row], comparisons: Sequence[Row] = (), **further: Sequence[Row]
) -> dict[str, Any]:
    """The content of metrics.json; `further` lists of rows, such as slices, costs and answers, by their names."""
    listed = {"rows": rows, "comparisons": comparisons, **further}
    return {"settings": dict(settings), **{name: [dict(row) for row in found] for name, found in listed.items()}}


def read_document(path: Path) -> Any:
    """Return the JSON value in a metrics.json whose settings, rows and comparisons have the form that tables need.

    Raises:
        UserError: The file cannot be read, or it is damaged.
    """
    document = documents.read_document(path, "evaluate again")
    from_document(document, str(path))
    return document


def from_document(document: Any, where: str = "metrics.json") -> tuple[dict[str, Any], list[Row], list[Row]]:
    """Settings, rows and comparisons of a parsed metrics.json.

    Raises:
        UserError: It is not one; `where` names the file.
    """
    try:
        settings, rows = dict(document["settings"]), list(document["rows"])
        comparisons, cautions = list(document["comparisons"]), document.get("cautions", [])
    except (AttributeError, TypeError, KeyError, ValueError):
        raise UserError(
            "not a metrics file: settings, rows or comparisons are missing", where, "evaluate again"
        ) from None
    if not isinstance(cautions, list) or not all(isinstance(caution, str) for caution in cautions):
        raise UserError("not a metrics file: its cautions are not a list of texts", where, "evaluate again")
    for number, row in enumerate(rows):
        if not _is_row(row):
            raise UserError(f"not a metrics file: row {number} is damaged", where, "evaluate again")
    return settings, rows, comparisons


def _is_row(row: Any) -> bool:
    """Return whether a value has the fields of a row that tables are made from."""
    if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in _NAMES):
        return False
    numbers = (row.get(name) for name in _NUMBERS)
    return type(row.get("n")) is int and all(type(number) in (int, float) for number in numbers)


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
    best = {metric.key: best_of(metric, [row for row in chosen if row["metric"] == metric.key]) for metric in metrics}
    lines = tuple(
        (method, tuple(cell_of(metric, found.get((method, metric.key)), best[metric.key]) for metric in metrics))
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


def category_groups(
    scores: Mapping[Key, ExampleScores], users: Sequence[str], categories: Sequence[str]
) -> dict[str, NDArray[np.intp]]:
    """The examples of each category by name, then those of all if there are several.

    Raises:
        ValueError: As for `metric_rows`.
    """
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
) -> dict[Key, dict[str, Values]]:
    """Of each method and each metric that it has, the users' values and the resampled ones, all from the same draws."""
    chosen = [users[index] for index in members]
    taken = {key: result.take(members) for key, result in scores.items()}
    sums = {
        (key, metric): user_sums(result.stats(metric), chosen)
        for key, result in taken.items()
        for metric in result.keys
    }
    ends = np.cumsum([part.shape[1] for part in sums.values()])[:-1]
    resampled = np.split(resample(np.hstack(list(sums.values())), samples=samples, seed=seed), ends, axis=1)
    found: dict[Key, dict[str, Values]] = {key: {} for key in scores}
    for ((key, metric), part), drawn in zip(sums.items(), resampled, strict=True):
        found[key][metric] = values_of(part, drawn, METRICS[metric].statistic)
    return found


def _comparison(mine: Values, theirs: Values) -> dict[str, float]:
    result = compare_values(mine, theirs)
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


def best_of(metric: Metric, rows: Sequence[Row]) -> str | None:
    """The best value as shown; None where neither direction is better."""
    if metric.higher_is_better is None or not rows:
        return None
    values = [row["value"] for row in rows]
    return metric.text(max(values) if metric.higher_is_better else min(values))


def cell_of(metric: Metric, row: Row | None, best: str | None) -> Cell:
    """A row's value and interval as shown; a dash where there is no row."""
    if row is None:
        return Cell(NOTHING)
    value = metric.text(row["value"])
    return Cell(value, f"[{metric.text(row['ci_low'])}, {metric.text(row['ci_high'])}]", value == best)
