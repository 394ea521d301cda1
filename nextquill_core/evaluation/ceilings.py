"""The value of the true reviews in a metric that needs no reference: what a perfect writer would reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nextquill_core.evaluation.metrics import METRICS, ExampleScores
from nextquill_core.evaluation.significance import Floats
from nextquill_core.evaluation.tables import category_groups, metric_rows

TRUE_REVIEW = ("true review", "")
"""What stands for method and decoding where the true reviews are scored."""


def ceiling(
    metric: str,
    statistics: Floats,
    users: Sequence[str],
    categories: Sequence[str],
    *,
    samples: int,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """Return the value of the true reviews by category, with its interval over users and the examples behind it.

    Args:
        metric: A metric that is a mean.
        statistics: Its statistics for the true reviews: value and 1, or 0 and 0 for what is not measured, (n, 2).
        users: The user of each example.
        categories: The category of each example; with several, their union is a further one.
        samples: Number of resamples of users.
        seed: Seed of the resampling.
    """
    scores = {TRUE_REVIEW: ExampleScores({}).plus({metric: statistics})}
    members = category_groups(scores, users, categories)
    return {
        row["category"]: {
            **{key: row[key] for key in ("value", "ci_low", "ci_high")},
            "examples": int(np.sum(statistics[members[row["category"]], 1])),
        }
        for row in metric_rows(scores, users, categories, samples=samples, seed=seed)
    }


def ceiling_note(metric: str, how: Mapping[str, Any]) -> str:
    """Return what the true reviews reach in a metric, and how to read the others beside it.

    Args:
        metric: The metric.
        how: Its settings: `ceiling`, and who measured (`by`).
    """
    name = METRICS[metric].name
    if not how["ceiling"]:
        return f"{name} by {how['by']}: nothing was measured, for no example has what it needs."
    reached = "; ".join(
        f"{METRICS[metric].text(found['value'])} [{METRICS[metric].text(found['ci_low'])}, "
        f"{METRICS[metric].text(found['ci_high'])}] in {category}, n = {found['examples']}"
        for category, found in how["ceiling"].items()
    )
    return f"{name} by {how['by']}: the true reviews reach {reached}. Read the other values beside this ceiling."
