"""The metrics on parts of the examples: by history length, by time gap, and under the stranger control.

The cut points are fixed, so that runs can be compared; an empty bucket has no row. They follow from the data protocol:
a base profile has at least 8 reviews, a test target at least 17 reviews before it, and a user at most 500 reviews, so
lengths go in powers of two from 8 up. The finer buckets below serve other thresholds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from nextquill_core.evaluation.metrics import LENGTH, ExampleScores
from nextquill_core.evaluation.significance import SAMPLES
from nextquill_core.evaluation.tables import (
    SAMPLES_A_COMPARISON,
    Key,
    category_groups,
    comparison_rows,
    corrected,
    metric_rows,
)
from nextquill_core.schemas import SLICES, Example

HISTORY_LENGTH, GAP, CONTROL = "history_length", "gap", "control"
OWN, STRANGER, DIFFERENCE = "own history", "a stranger's history", "difference"

LENGTHS = (0, 1, 4, 8, 16, 32, 64, 128)  # least number of past reviews in each bucket
LENGTH_BUCKETS = (
    "none",
    *(f"{low}–{high - 1}" for low, high in pairwise(LENGTHS[1:])),
    f"{LENGTHS[-1]}+",
)
DAYS = (7, 30, 182, 730)  # exclusive upper bound of each bucket but the last
GAP_BUCKETS = ("under a week", "under a month", "under 6 months", "under 2 years", "2 years or more")
BUCKETS: Mapping[str, tuple[str, ...]] = {
    HISTORY_LENGTH: LENGTH_BUCKETS,
    GAP: GAP_BUCKETS,
    CONTROL: (OWN, STRANGER, DIFFERENCE),
}
_DAY_MS = 24 * 60 * 60 * 1000


def length_bucket(example: Example) -> str:
    """Return the bucket of the number of past reviews, of which a prompt may show fewer."""
    return LENGTH_BUCKETS[int(np.searchsorted(LENGTHS, len(example.history), side="right")) - 1]


def gap_bucket(example: Example) -> str:
    """Return the bucket of the time since the newest past review; "" without history, or if it is later."""
    if not example.history:
        return ""
    gap = example.target.timestamp_ms - max(review.timestamp_ms for review in example.history)
    return GAP_BUCKETS[int(np.searchsorted(DAYS, gap / _DAY_MS, side="right"))] if gap >= 0 else ""


def slice_labels(examples: Sequence[Example], *, dated: bool = True) -> dict[str, list[str]]:
    """Return the bucket of each example, by slice.

    Args:
        examples: The measured examples.
        dated: Whether the source's timestamps are dates; otherwise gaps have no meaning and are left out.
    """
    labels = {HISTORY_LENGTH: [length_bucket(example) for example in examples]}
    return labels | ({GAP: [gap_bucket(example) for example in examples]} if dated else {})


def slice_rows(
    scores: Mapping[Key, ExampleScores],
    users: Sequence[str],
    categories: Sequence[str],
    labels: Mapping[str, Sequence[str]],
    *,
    samples: int = SAMPLES,
    seed: int = 42,
) -> list[dict[str, Any]]:
    """Return every metric but those of cut answers in every bucket, with its 95 % interval over the users in it.

    Args:
        scores: As for `tables.metric_rows`.
        users: As for `tables.metric_rows`.
        categories: As for `tables.metric_rows`; with several, their union has buckets too.
        labels: By slice, the bucket of each example, "" for none, as of `slice_labels`.
        samples: Number of resamples of users.
        seed: Seed of the resampling.

    Returns:
        Rows of the schema `SLICES`, buckets in the order of `BUCKETS`; n counts the bucket's examples.

    Raises:
        ValueError: As for `tables.metric_rows`, or labels of another number of examples.
    """
    groups = category_groups(scores, users, categories)
    rows: list[dict[str, Any]] = []
    for name, found in labels.items():
        if len(found) != len(users):
            raise ValueError(f"{name} of {len(found)} examples for {len(users)}")
        named = np.asarray(found, dtype=np.str_)
        for bucket in BUCKETS[name]:
            for category, members in groups.items():
                inside = members[named[members] == bucket]
                if not len(inside):
                    continue
                taken = {key: result.without(LENGTH).take(inside) for key, result in scores.items()}
                chosen = [users[index] for index in inside]
                measured = metric_rows(taken, chosen, [category] * len(inside), samples=samples, seed=seed)
                rows += [_row(name, bucket, row) for row in measured]
    return rows


def control_rows(
    own: Mapping[Key, ExampleScores],
    stranger: Mapping[Key, ExampleScores],
    users: Sequence[str],
    categories: Sequence[str],
    *,
    samples: int = SAMPLES,
    seed: int = 42,
) -> list[dict[str, Any]]:
    """Compare each method with the users' own histories to itself with strangers' histories, in whole answers.

    A method that gains as much from a stranger's reviews has learned the genre and not the user.

    Args:
        own: As for `tables.metric_rows`.
        stranger: Scores of the same examples with a stranger's history; its keys are among those of `own`.
        users: As for `tables.metric_rows`.
        categories: As for `tables.metric_rows`.
        samples: Number of resamples of users, at least.
        seed: Seed of the resampling.

    Returns:
        Rows of the schema `SLICES` with the buckets `OWN`, `STRANGER` and `DIFFERENCE` (own minus stranger's, with a
        paired bootstrap interval). Holm's correction is over all methods and metrics of a category and preset.

    Raises:
        ValueError: As for `tables.metric_rows`, or a key of `stranger` is not in `own`.
    """
    if absent := sorted(set(stranger) - set(own)):
        raise ValueError(f"no scores with own histories of {absent}")
    stranger = {key: result.without(LENGTH) for key, result in stranger.items()}
    many = max(samples, SAMPLES_A_COMPARISON * sum(len(result.keys) for result in stranger.values()))
    rows: list[dict[str, Any]] = []
    tests: list[dict[str, Any]] = []
    for (method, decoding), result in stranger.items():
        sides = {(OWN, decoding): own[method, decoding].only(result.keys), (STRANGER, decoding): result}
        measured = metric_rows(sides, users, categories, samples=samples, seed=seed)
        rows += [_row(CONTROL, row["method"], {**row, "method": method}) for row in measured]
        compared = comparison_rows(sides, users, categories, reference=STRANGER, samples=many, seed=seed)
        tests += [{**row, "method": method, "value": row["difference"]} for row in compared]
    for family in dict.fromkeys((row["category"], row["decoding"]) for row in tests):
        members = [row for row in tests if (row["category"], row["decoding"]) == family]
        rows += [_row(CONTROL, DIFFERENCE, row) for row in corrected(members)]
    return rows


def _row(name: str, bucket: str, row: Mapping[str, Any]) -> dict[str, Any]:
    return {**{column: row.get(column) for column in SLICES.names}, "slice": name, "bucket": bucket}
