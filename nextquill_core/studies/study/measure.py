"""Tables of a study: the metrics of each row over users and seeds, and the rows compared in pairs.

The value of a row is the mean over seeds. Intervals and tests are by the bootstrap over users crossed with seeds: all
rows of a table share the draws of both, so that pairs are paired in users and in seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nextquill_core.evaluation.metrics import METRICS, ExampleScores, on_same_tokens
from nextquill_core.evaluation.significance import (
    Floats,
    Statistic,
    Values,
    interval_of,
    mean_over_seeds,
    resample,
    user_sums,
    values_of,
)
from nextquill_core.evaluation.tables import NO_TEXTS, comparison_values, corrected
from nextquill_core.pipeline.evaluate import read_results, read_scores
from nextquill_core.schemas import column_by_example
from nextquill_core.studies.study.cells import Cell
from nextquill_core.studies.study.choice import Differences, mean_differences

SAMPLES_A_COMPARISON = 200
"""Least number of resamples for each comparison of a table: the least p-value after correction is then 0.005."""


@dataclass(frozen=True)
class Measured:
    """What one cell measured.

    Attributes:
        users: The user of each example.
        scores: The scores of each method and decoding preset, examples sorted by id.
        shown: The metrics that the evaluation shows.
    """

    users: tuple[str, ...]
    scores: Mapping[tuple[str, str], ExampleScores]
    shown: frozenset[str]

    def of(self, method: str, decoding: str) -> ExampleScores | None:
        """Return the scores of a method under a preset, or its likelihoods where it generated no texts, or None."""
        return self.scores.get((method, decoding)) or self.scores.get((method, NO_TEXTS))


@dataclass(frozen=True)
class Line:
    """A row of a table: a method under one candidate.

    Attributes:
        method: The method.
        candidate: The candidate.
        by_seed: Its scores under each seed.
    """

    method: str
    candidate: str
    by_seed: tuple[ExampleScores, ...]


def read_cell(cell: Cell) -> Measured:
    """Return what a cell measured.

    Raises:
        UserError: It has not been evaluated, or an earlier version evaluated it.
    """
    run = cell.run
    evaluation = run.artifact(run.plan.evaluate)
    ids, scores = read_scores(evaluation)
    users = column_by_example(run.artifact(run.plan.ingest).folder / "examples", "user_id")
    order = np.argsort(np.array(ids, dtype=np.str_), kind="stable")
    return Measured(
        tuple(users[ids[row]] for row in order),
        {key: found.take(order) for key, found in scores.items()},
        frozenset(str(row["metric"]) for row in read_results(evaluation).rows),
    )


def val_differences(cells: Sequence[Cell], method: str, reference: str) -> dict[str, Differences]:
    """Return how far a method is above the reference under each candidate, from cells on val alone.

    Args:
        cells: The cells of one choice, all measured.
        method: The method.
        reference: The reference method.

    Raises:
        ValueError: A cell is not on val.
    """
    if on_test := [cell.label for cell in cells if cell.split != "val" or cell.run.config.evaluate.split != "val"]:
        raise ValueError(f"choices are made on val alone, not on {on_test[0]}")
    found: dict[str, list[tuple[dict[str, float], dict[str, float]]]] = {}
    for cell in cells:
        measured = read_cell(cell)
        both = [_values(measured.of(name, NO_TEXTS), measured.shown) for name in (method, reference)]
        found.setdefault(cell.candidate, []).append((both[0], both[1]))
    return {
        candidate: mean_differences([mine for mine, _ in pairs], [theirs for _, theirs in pairs])
        for candidate, pairs in found.items()
    }


def _values(scores: ExampleScores | None, shown: frozenset[str]) -> dict[str, float]:
    return {key: scores.value(key) for key in scores.keys if key in shown} if scores else {}


def table(
    lines: Sequence[Line],
    users: Sequence[str],
    pairs: Sequence[tuple[int, int]],
    metrics: Sequence[str],
    *,
    samples: int,
    seed: int,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the values of all lines, and the comparisons of pairs, corrected over all of them.

    Args:
        lines: The lines; all are of the same examples. One with fewer seeds than others has the first of theirs.
        users: The user of each example.
        pairs: Positions of the lines to compare, the first minus the second.
        metrics: The metrics, in order.
        samples: Least number of resamples; with many comparisons more are drawn.
        seed: Seed of the draws.

    Returns:
        Rows with method, candidate, metric, value, ci_low, ci_high, n and seeds; comparisons with method, candidate,
        reference, reference_candidate, metric, difference, ci_low, ci_high, p_value, win_rate, seeds (which both have)
        and p_adjusted. A metric is compared where it has a better direction and both lines measured it on the same
        tokens.
    """
    directed = [key for key in metrics if METRICS[key].higher_is_better is not None]
    samples = max(samples, SAMPLES_A_COMPARISON * len(pairs) * len(directed))
    rows: dict[tuple[int, int], dict[str, Any]] = {}  # by the places of line and metric
    family: dict[tuple[int, int], dict[str, Any]] = {}  # by those of pair and metric
    for column, key in enumerate(metrics):
        sums = {
            place: [user_sums(scores.statistics[key], users) for scores in line.by_seed]
            for place, line in enumerate(lines)
            if all(key in scores.keys for scores in line.by_seed)
        }
        values = _resampled(sums, METRICS[key].statistic, samples, seed)
        for place, found in values.items():
            line = lines[place]
            head = {"method": line.method, "candidate": line.candidate, "metric": key}
            counts = {"n": len(users), "seeds": len(found)}
            mean = mean_over_seeds(found, seed=seed)
            rows[place, column] = head | interval_of(mean.whole, mean.resampled).columns | counts
        for number, (first, second) in enumerate(pairs) if key in directed else ():
            if first in values and second in values and _comparable(key, sums[first], sums[second]):
                mine, theirs = lines[first], lines[second]
                head = {"method": mine.method, "candidate": mine.candidate}
                head |= {"reference": theirs.method, "reference_candidate": theirs.candidate, "metric": key}
                family[number, column] = head | _compared(values[first], values[second], seed)
    return [rows[place] for place in sorted(rows)], corrected([family[place] for place in sorted(family)])


def _resampled(
    sums: Mapping[int, Sequence[Floats]], statistic: Statistic, samples: int, seed: int
) -> dict[int, list[Values]]:
    """Return a metric of each line under each seed; all lines and seeds are resampled with the same draws of users.

    Args:
        sums: By line, the sums of each user under each seed.
        statistic: From sums to the metric.
        samples: Number of resamples.
        seed: Seed of the draws, which are the same for every metric.
    """
    parts = [part for by_seed in sums.values() for part in by_seed]
    if not parts:
        return {}
    drawn = iter(np.split(resample(np.hstack(parts), samples=samples, seed=seed), len(parts), axis=1))
    return {place: [values_of(part, next(drawn), statistic) for part in by_seed] for place, by_seed in sums.items()}


def _comparable(key: str, mine: Sequence[Floats], theirs: Sequence[Floats]) -> bool:
    """Return whether both lines measured a metric on the same tokens, under every seed that both have."""
    return all(on_same_tokens(key, one, other) for one, other in zip(mine, theirs, strict=False))


def _compared(mine: Sequence[Values], theirs: Sequence[Values], seed: int) -> dict[str, float]:
    """Compare two lines under the seeds that both have, the first ones."""
    seeds = min(len(mine), len(theirs))
    both = (mean_over_seeds(values[:seeds], seed=seed) for values in (mine, theirs))
    return comparison_values(*both) | {"seeds": seeds}
