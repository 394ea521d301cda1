"""Rows of results: metrics with intervals, comparisons of methods, scores of examples, costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, product
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nextquill_core.evaluation.metrics import (
    BLEU,
    HISTORY_GAIN,
    LENGTH_RATIO,
    LIKELIHOOD,
    METRICS,
    PERSONAL_GAIN,
    PREFERENCE_SETS,
    ExampleScores,
    preference_key,
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
from nextquill_core.generation.engines import CUT, STOPPED
from nextquill_core.schemas import EXAMPLE_SCORES

ALL = "all"
"""Name of the union of all categories."""
NO_TEXTS = "no"
"""What stands for the decoding preset of a method that generated no texts, so that tables say `no decoding`."""
Key = tuple[str, str]
"""Method and decoding preset."""
Row = Mapping[str, Any]
GB = 1e9
SAMPLES_A_COMPARISON = 40  # so that the least p-value, times the number of comparisons, is still 0.025
OVER_TOKENS = (LIKELIHOOD, PERSONAL_GAIN, HISTORY_GAIN)
TOKENS: Mapping[str, str] = dict.fromkeys(OVER_TOKENS, "tokens") | {
    preference_key(key, tokens): preference_key("tokens", tokens) for key in OVER_TOKENS for tokens in PREFERENCE_SETS
}
"""Column of `EXAMPLE_SCORES` with the number of tokens, by log-likelihood and gain."""


def metric_rows(
    scores: Mapping[Key, ExampleScores],
    users: Sequence[str],
    categories: Sequence[str],
    *,
    samples: int = SAMPLES,
    seed: int = 42,
) -> list[dict[str, Any]]:
    """Return every metric of every method, decoding preset and category, with its 95 % interval over users.

    Args:
        scores: By method and decoding preset; all are of the same examples in the same order.
        users: The user of each example.
        categories: The category of each example. With several, their union is a further one, "all".
        samples: Number of resamples of users.
        seed: Seed of the resampling.

    Returns:
        Rows with the columns of `schemas.METRICS`; n counts examples. ROUGE and METEOR 0 to 1, BLEU 0 to 100. A metric
        that was not measured, or has nothing to measure in a category, has no row.

    Raises:
        ValueError: The scores, users and categories are not all of the same, at least one, examples.
    """
    rows: list[dict[str, Any]] = []
    for category, members in category_groups(scores, users, categories).items():
        for key, found in resampled_values(scores, users, members, samples, seed).items():
            chosen = scores[key].take(members)
            head = {"method": key[0], "category": category, "decoding": key[1]}
            for metric, values in found.items():
                interval = interval_of(chosen.value(metric), values.resampled)
                rows.append({**head, "metric": metric, **interval.columns, "n": len(members)})
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
    """Compare methods under the same decoding preset by the paired bootstrap, in each metric with a better direction.

    Holm's correction is over all comparisons of one category, decoding preset and table: every pair in every metric of
    the table. No p-value lies below 1 / (samples + 1), so many comparisons need many samples: for the 78 pairs of 13
    methods in 7 metrics the least corrected p-value of 10,000 samples is 0.055. Where `samples` are too few, more are
    drawn.

    Args:
        scores: As for `metric_rows`.
        users: As for `metric_rows`.
        categories: As for `metric_rows`.
        reference: The method that every other one is compared with; None for every pair.
        samples: Number of resamples of users, at least.
        seed: Seed of the resampling.

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
    shown_in = Counter(METRICS[key].table for key in METRICS if key in compared)
    largest = max(shown_in.values(), default=0) * max(map(len, families.values()), default=0)
    rows: list[dict[str, Any]] = []
    for category, members in category_groups(scores, users, categories).items() if largest else ():
        found = resampled_values(scores, users, members, max(samples, SAMPLES_A_COMPARISON * largest), seed)
        for decoding, table in product(families, shown_in):
            family: list[dict[str, Any]] = [
                {
                    "method": method,
                    "reference": other,
                    "category": category,
                    "decoding": decoding,
                    "metric": metric,
                    **comparison_values(values, found[other, decoding][metric]),
                    "n": len(members),
                }
                for method, other in families[decoding]
                for metric, values in found[method, decoding].items()
                if metric in compared and METRICS[metric].table == table and metric in found[other, decoding]
            ]
            rows.extend(corrected(family))
    return rows


def corrected(family: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of one family of comparisons with `p_adjusted`, Holm's correction of their `p_value`."""
    adjusted = holm([row["p_value"] for row in family])
    return [{**row, "p_adjusted": p_value} for row, p_value in zip(family, adjusted, strict=True)]


def example_table(scores: Mapping[Key, ExampleScores], example_ids: Sequence[str]) -> pa.Table:
    """Return every score of every example; what was not measured is null.

    Args:
        scores: By method and decoding preset; all are of the same examples in the same order.
        example_ids: Their ids.

    Returns:
        A table of the schema `EXAMPLE_SCORES`, and a further column for each metric that has none there: the optional
        ones that were measured, and those of other packages.

    Raises:
        ValueError: The scores are of another number of examples.
    """
    known = {*EXAMPLE_SCORES.names, LENGTH_RATIO}
    added = dict.fromkeys(key for result in scores.values() for key in result.statistics if key not in known)
    schema = pa.schema([*EXAMPLE_SCORES, *(pa.field(key, pa.float64()) for key in added)])
    parts = [_example_columns(*key, result, example_ids, schema.names) for key, result in scores.items()]
    tables = [pa.table(columns, schema=schema) for columns in parts]
    return pa.concat_tables(tables) if tables else schema.empty_table()


def _example_columns(
    method: str, decoding: str, scores: ExampleScores, example_ids: Sequence[str], names: Sequence[str]
) -> dict[str, Sequence[Any]]:
    if len(scores) != len(example_ids):
        raise ValueError(f"{len(scores)} scores of {method} for {len(example_ids)} examples")
    rows = scores.statistics
    columns: dict[str, Sequence[Any]] = {
        "example_id": list(example_ids),
        "method": [method] * len(scores),
        "decoding": [decoding] * len(scores),
        **{key: METRICS[key].statistic(values).tolist() for key, values in rows.items()},
    }
    if BLEU in rows:
        columns |= {"bleu_counts": rows[BLEU].astype(int).tolist(), BLEU: sentence_bleu(scores).tolist()}
    if LENGTH_RATIO in rows:
        for position, name in enumerate(("words", "reference_words")):
            columns[name] = rows[LENGTH_RATIO][:, position].astype(int).tolist()
    for key, tokens in TOKENS.items():
        if key in rows:
            *nats, counts = rows[key].T  # of one history, or of two
            columns[key] = (nats[0] - sum(nats[1:])).tolist()
            columns[tokens] = counts.astype(int).tolist()
    absent: list[Any] = [None] * len(scores)
    return {name: columns.get(name, absent) for name in names}


def statistics_table(scores: Mapping[Key, ExampleScores], example_ids: Sequence[str]) -> pa.Table:
    """Return the statistics behind every metric, from which any set of the examples can be measured again exactly.

    Args:
        scores: By method and decoding preset; all are of the same examples in the same order.
        example_ids: Their ids.

    Returns:
        Columns example_id, method and decoding, and for each metric a list of numbers, or null where it was not
        measured; the metric is its `statistic` of their sum.
    """
    keys = list(dict.fromkeys(key for result in scores.values() for key in result.statistics))
    texts = [pa.field(name, pa.string()) for name in ("example_id", "method", "decoding")]
    schema = pa.schema([*texts, *(pa.field(key, pa.list_(pa.float64())) for key in keys)])
    tables = []
    count = len(example_ids)
    for (method, decoding), result in scores.items():
        names: list[Any] = [list(example_ids), [method] * count, [decoding] * count]
        rows = result.statistics
        numbers = [rows[key].tolist() if key in rows else [None] * count for key in keys]
        tables.append(pa.table([*names, *numbers], schema=schema))
    return pa.concat_tables(tables) if tables else schema.empty_table()


def scores_of_statistics(table: pa.Table) -> tuple[list[str], dict[Key, ExampleScores]]:
    """Return the ids of the examples and the scores that `statistics_table` made a table of.

    Metrics of packages that are no longer installed are left out. Hidden metrics are no longer hidden.
    """
    ids: list[str] = []
    scores: dict[Key, ExampleScores] = {}
    keys = [name for name in table.column_names[3:] if name in METRICS]
    methods, decodings = (np.array(table[name].to_pylist(), dtype=np.str_) for name in ("method", "decoding"))
    for method, decoding in dict.fromkeys(zip(methods.tolist(), decodings.tolist(), strict=True)):
        rows = table.filter(pa.array((methods == method) & (decodings == decoding)))
        ids = rows["example_id"].to_pylist()
        measured = [key for key in keys if not rows[key].null_count]
        scores[method, decoding] = ExampleScores({key: np.array(rows[key].to_pylist()) for key in measured})
    return ids, scores


def category_groups(
    scores: Mapping[Key, ExampleScores], users: Sequence[str], categories: Sequence[str]
) -> dict[str, NDArray[np.intp]]:
    """Return the indices of each category's examples by its name, then those of all if there are several.

    Args:
        scores: As for `metric_rows`.
        users: As for `metric_rows`.
        categories: As for `metric_rows`.

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


def resampled_values(
    scores: Mapping[Key, ExampleScores], users: Sequence[str], members: NDArray[np.intp], samples: int, seed: int
) -> dict[Key, dict[str, Values]]:
    """Return the values of users and resamples by method and metric, all from the same draws.

    Args:
        scores: As for `metric_rows`.
        users: As for `metric_rows`.
        members: Positions of the examples that are measured.
        samples: Number of resamples of users.
        seed: Seed of the draws, which otherwise depend on the numbers of users and resamples only.
    """
    chosen = [users[index] for index in members]
    taken = {key: result.take(members) for key, result in scores.items()}
    sums = {
        (key, metric): user_sums(result.statistics[metric], chosen)
        for key, result in taken.items()
        for metric in result.keys
    }
    found: dict[Key, dict[str, Values]] = {key: {} for key in scores}
    if not sums:
        return found
    ends = np.cumsum([part.shape[1] for part in sums.values()])[:-1]
    resampled = np.split(resample(np.hstack(list(sums.values())), samples=samples, seed=seed), ends, axis=1)
    for ((key, metric), part), drawn in zip(sums.items(), resampled, strict=True):
        found[key][metric] = values_of(part, drawn, METRICS[metric].statistic)
    return found


def comparison_values(mine: Values, theirs: Values) -> dict[str, float]:
    """Return a comparison of two methods as columns: difference, ci_low, ci_high, p_value and win_rate.

    Args:
        mine: The first method.
        theirs: The second method, which is subtracted, resampled with the same draws of users.
    """
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


def cost_rows(
    usages: Mapping[Key, Mapping[str, Any] | None],
    training: Mapping[str, float | None] | None = None,
    preparation: Mapping[str, Mapping[str, float | None]] | None = None,
) -> list[dict[str, Any]]:
    """Return the costs of each method and decoding preset; a missing measurement is None, never an estimate.

    Args:
        usages: By method and preset, the fields of `engines.Usage` summed over the answers, with the highest
            `peak_bytes`; None if unknown.
        training: By method, the seconds of training; a method that does not train is left out.
        preparation: By method, the seconds of each of its inputs, such as summaries.

    Returns:
        Rows with method, decoding, answers, training_seconds, preparation, prompt_tokens and new_tokens (mean per
        answer), tokens_per_second (generated, over the whole time), first_token_ms (mean), peak_gb (10^9 bytes),
        retries.
    """
    return [
        {
            "method": method,
            "decoding": decoding,
            "answers": _count(usage, "answers"),
            "training_seconds": (training or {}).get(method),
            "preparation": dict((preparation or {}).get(method, {})),
            "prompt_tokens": _ratio(usage, "prompt_tokens", "answers"),
            "new_tokens": _ratio(usage, "new_tokens", "answers"),
            "tokens_per_second": _ratio(usage, "new_tokens", "seconds"),
            "first_token_ms": _ratio(usage, "first_token_seconds", "answers", 1000),
            "peak_gb": None if not usage or not usage.get("peak_bytes") else usage["peak_bytes"] / GB,
            "retries": _count(usage, "retries"),
        }
        for (method, decoding), usage in usages.items()
    ]


def answer_rows(predictions: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return how the answers of each method and preset ended, in the order in which they first appear.

    Args:
        predictions: Rows of the schema `PREDICTIONS`.

    Returns:
        Rows with method, decoding, answers, empty (nothing but white space), cut (at the length limit), other (ended in
        another way), stopped_share (by the model's own stop token, 0 to 1), mean_tokens and longest_tokens.
    """
    found: dict[Key, list[Mapping[str, Any]]] = {}
    for row in predictions:
        found.setdefault((row["method"], row["decoding"]), []).append(row)
    return [_ending(method, decoding, rows) for (method, decoding), rows in found.items()]


def _ending(method: str, decoding: str, rows: list[Mapping[str, Any]]) -> dict[str, Any]:
    reasons = [row["finish_reason"] for row in rows]
    lengths = [int(row["n_tokens"]) for row in rows]
    stopped, cut = reasons.count(STOPPED), reasons.count(CUT)
    return {
        "method": method,
        "decoding": decoding,
        "answers": len(rows),
        "empty": sum(not row["text"].strip() for row in rows),
        "cut": cut,
        "other": len(rows) - stopped - cut,
        "stopped_share": stopped / len(rows),
        "mean_tokens": sum(lengths) / len(rows),
        "longest_tokens": max(lengths),
    }


def _count(usage: Mapping[str, Any] | None, name: str) -> int | None:
    value = usage.get(name) if usage else None
    return None if value is None else int(value)


def _ratio(usage: Mapping[str, Any] | None, above: str, below: str, scale: float = 1.0) -> float | None:
    if not usage or usage.get(above) is None or not usage.get(below):
        return None
    return scale * float(usage[above]) / float(usage[below])
