"""Rows that compare two evaluations method by method: B minus A on the examples of both.

The examples are paired, and users are resampled with the same draws on both sides. Holm's correction is over all
comparisons of one table: one category, decoding preset and `Metric.table`. Metrics that do not judge generated texts do
not depend on the decoding preset, so they have separate tables, under the preset `NO_TEXTS`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextquill_core.evaluation.metrics import METRICS, ExampleScores, on_same_tokens
from nextquill_core.evaluation.significance import SAMPLES
from nextquill_core.evaluation.tables import (
    ALL,
    NO_TEXTS,
    SAMPLES_A_COMPARISON,
    Key,
    category_groups,
    comparison_values,
    corrected,
    resampled_values,
)

OTHER_TOKENS = "other tokens"
OTHER_SETTINGS = "measured in another way"
NO_PAIRS = "no common example"
UNDIRECTED = "no better direction"
"""Why a row has no test, or no difference at all."""


def shared_scores(
    scores: Mapping[Key, ExampleScores], others: Mapping[Key, ExampleScores], shown: Collection[str]
) -> tuple[dict[Key, ExampleScores], dict[Key, ExampleScores]]:
    """Return what two evaluations have in common: methods under a preset, with the same metrics on both sides.

    Args:
        scores: Scores of the first evaluation, by method and decoding preset.
        others: Scores of the second one; its examples may be others.
        shown: The metrics to take.
    """
    sides = _by_judged(scores, shown), _by_judged(others, shown)
    both: tuple[dict[Key, ExampleScores], dict[Key, ExampleScores]] = ({}, {})
    for key in sides[0]:
        common = set(sides[0][key].keys).intersection(sides[1][key].keys if key in sides[1] else ())
        for side, found in zip(sides, both, strict=True):
            if common:
                found[key] = side[key].only(common)
    return both


def paired_rows(
    scores: Mapping[Key, ExampleScores],
    others: Mapping[Key, ExampleScores],
    users: Sequence[str],
    categories: Sequence[str],
    *,
    unlike: Collection[str] = (),
    samples: int = SAMPLES,
    seed: int = 42,
) -> list[dict[str, Any]]:
    """Compare two evaluations on the same examples.

    Args:
        scores: Scores of A, from `shared_scores`.
        others: Scores of B, of the same examples in the same order.
        users: The user of each example.
        categories: The category of each example. With several, their union is a further one, "all".
        unlike: Metrics that were measured in different ways, whose values cannot be compared.
        samples: Number of resamples of users, at least; with many comparisons more are drawn.
        seed: Seed of the resampling.

    Returns:
        Rows with method, category, decoding, metric, value_a, value_b, n_a and n_b (examples, equal), difference (B
        minus A), ci_low, ci_high, win_rate (share of users for whom B is higher), p_value, p_adjusted and untested. A
        row without a test has None for both p-values and says why in `untested`; values that cannot be compared have
        no difference either.

    Raises:
        ValueError: The scores, users and categories are not all of the same, at least one, examples.
    """
    if not scores:
        return []
    groups = category_groups(scores, users, categories)
    category_groups(others, users, categories)  # raises for another number of examples
    sizes = Counter((key[1], METRICS[metric].table) for key, result in scores.items() for metric in result.keys)
    samples = max(samples, SAMPLES_A_COMPARISON * max(sizes.values(), default=0))
    rows: list[dict[str, Any]] = []
    for category, members in groups.items():
        # Each side is resampled by itself with the same seed, so equal scores give equal resamples to the last bit.
        mine, theirs = (resampled_values(side, users, members, samples, seed) for side in (scores, others))
        tables: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for (method, decoding), measured in mine.items():
            for metric in (name for name in measured if name in theirs[method, decoding]):
                first, second = (side[method, decoding].take(members) for side in (scores, others))
                row = _row((method, decoding), category, metric, first, second)
                row["untested"] = _why_untested(metric, first, second, unlike)
                if row["untested"] in ("", UNDIRECTED):
                    row |= comparison_values(theirs[method, decoding][metric], measured[metric])
                tables.setdefault((decoding, METRICS[metric].table), []).append(row)
        for found in tables.values():
            rows += _with_tests(found)
    return rows


def unpaired_rows(
    scores: Mapping[Key, ExampleScores], others: Mapping[Key, ExampleScores], *, unlike: Collection[str] = ()
) -> list[dict[str, Any]]:
    """Return the values of two evaluations that have no example in common, and their differences, without tests.

    Args:
        scores: Scores of A, from `shared_scores`.
        others: Scores of B.
        unlike: Metrics that were measured in different ways, for instance on tokens of different models; they get no
            difference.

    Returns:
        Rows as of `paired_rows` over all examples; what needs pairs is None.
    """
    rows = [
        _row(key, ALL, metric, result, others[key]) | {"untested": OTHER_SETTINGS if metric in unlike else NO_PAIRS}
        for key, result in scores.items()
        for metric in result.keys
    ]
    return [row if row["metric"] in unlike else row | {"difference": row["value_b"] - row["value_a"]} for row in rows]


def _by_judged(scores: Mapping[Key, ExampleScores], shown: Collection[str]) -> dict[Key, ExampleScores]:
    """Return the scores of texts by method and preset, and those of true reviews once, under `NO_TEXTS`."""
    found: dict[Key, ExampleScores] = {}
    for (method, decoding), result in scores.items():
        for preset, texts in ((decoding, True), (NO_TEXTS, False)):
            if chosen := [key for key in result.keys if key in shown and METRICS[key].judges_text == texts]:
                found.setdefault((method, preset), result.only(chosen))
    return found


def _row(key: Key, category: str, metric: str, first: ExampleScores, second: ExampleScores) -> dict[str, Any]:
    """Return a row without a difference."""
    return {
        "method": key[0],
        "category": category,
        "decoding": key[1],
        "metric": metric,
        "value_a": first.value(metric),
        "value_b": second.value(metric),
        "n_a": len(first),
        "n_b": len(second),
        **dict.fromkeys(("difference", "ci_low", "ci_high", "win_rate", "p_value", "p_adjusted")),
    }


def _why_untested(metric: str, first: ExampleScores, second: ExampleScores, unlike: Collection[str]) -> str:
    if metric in unlike:
        return OTHER_SETTINGS
    if not on_same_tokens(metric, first.statistics[metric], second.statistics[metric]):
        return OTHER_TOKENS
    return UNDIRECTED if METRICS[metric].higher_is_better is None else ""


def _with_tests(table: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of one table, corrected over those that are tested; the others lose their p-value."""
    tested = iter(corrected([row for row in table if not row["untested"]]))
    return [next(tested) if not row["untested"] else {**row, "p_value": None} for row in table]


def matched(ids: Sequence[str], others: Sequence[str]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the positions of the examples that both sides have, in the order of their ids.

    Args:
        ids: Ids of the examples of A, each once.
        others: Ids of the examples of B, each once.
    """
    places = [{name: place for place, name in enumerate(names)} for names in (ids, others)]
    common = sorted(places[0].keys() & places[1].keys())
    first, second = (np.array([found[name] for name in common], dtype=np.intp) for found in places)
    return first, second
