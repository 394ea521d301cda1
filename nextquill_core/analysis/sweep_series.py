"""A sweep as series of points: what one key does to each method, at each value of the other keys."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nextquill_core.analysis.result_tables import preset_order, widest
from nextquill_core.evaluation.metrics import HISTORY_GAIN, LIKELIHOOD, METRICS, PERSONAL_GAIN
from nextquill_core.evaluation.tables import Row

SYMBOLS = {"train.alpha": "α", "weights.high": "λ", "weights.delta": "δ", "weights.low": "ε"}
"""The paper's symbols of keys."""
SHOWN = (PERSONAL_GAIN, HISTORY_GAIN, LIKELIHOOD, "rouge1", "rouge1_unicode", "meteor", "bleu")
"""Metrics of the pictures, the most telling first."""
MOST_METRICS = 4


@dataclass(frozen=True)
class SweepSeries:
    """What a key does.

    Attributes:
        key: The swept key.
        values: Its values as text, in ascending order if they are numbers.
        decoding: The decoding preset of the texts.
        category: The category, or `all`.
        metrics: Keys of the metrics.
        rows: Rows of a table: `series`, `at` (a value of the key), and the columns of `METRICS`.
    """

    key: str
    values: tuple[str, ...]
    decoding: str
    category: str
    metrics: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def symbol(self) -> str:
        """The paper's symbol of the key with the key, or the key alone."""
        return f"{SYMBOLS[self.key]} ({self.key})" if self.key in SYMBOLS else self.key


def sweep_series(document: Mapping[str, Any], key: str, methods: Sequence[str] = ()) -> SweepSeries | None:
    """Return what a key does to the methods that depend on it; None where it has one value or changes nothing.

    Args:
        document: The results of a sweep, as of `forms.SweepDocument`.
        key: One of its keys.
        methods: Methods to show; empty for all that depend on the key.
    """
    points, rows = document["points"], document["rows"]
    values = _ordered([point["values"][key] for point in points])
    decodings = preset_order(row["decoding"] for row in rows)
    if len(values) < 2 or not decodings:
        return None
    decoding, category = decodings[0], widest(rows)
    found: list[Row] = []
    seen: set[tuple[str, ...]] = set()
    for method in dict.fromkeys(row["method"] for row in rows):
        for others in {_others(point["values"], key): None for point in points}:
            members = [point for point in points if _others(point["values"], key) == others]
            members.sort(key=lambda point: values.index(_text(point["values"][key])))
            made = tuple(str(point["predictions"].get(f"{method}/{decoding}")) for point in members)
            if (methods and method not in methods) or len(set(made)) < 2 or made in seen:
                continue
            seen.add(made)
            name = ", ".join([method, *(f"{SYMBOLS.get(one, one)} = {value}" for one, value in others)])
            for point in members:
                mark = {"series": name, "at": _text(point["values"][key])}
                found += [
                    {**mark, **{column: value for column, value in row.items() if column != "point"}}
                    for row in rows
                    if (row["point"], row["method"]) == (point["point"], method)
                    and (row["decoding"], row["category"]) == (decoding, category)
                ]
    measured = {row["metric"] for row in found}
    metrics = [metric for metric in SHOWN if metric in measured] or [one for one in METRICS if one in measured]
    if PERSONAL_GAIN in metrics and HISTORY_GAIN in metrics:
        metrics.remove(HISTORY_GAIN)
    metrics = metrics[:MOST_METRICS]
    chosen = tuple(row for row in found if row["metric"] in metrics)
    return SweepSeries(key, tuple(values), decoding, category, tuple(metrics), chosen) if chosen else None


def _ordered(values: Sequence[Any]) -> list[str]:
    """Return values as text, each once: numbers in ascending order, others as they come."""
    if all(isinstance(value, int | float) for value in values):
        values = sorted(values)
    return list(dict.fromkeys(map(_text, values)))


def _others(values: Mapping[str, Any], key: str) -> tuple[tuple[str, str], ...]:
    return tuple((name, _text(value)) for name, value in values.items() if name != key)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
