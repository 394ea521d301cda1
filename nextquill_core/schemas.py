"""The columns of every table in an artifact, and the reading of one of them by example.

Times are UTC milliseconds, log-probabilities are nats. `examples` hold indices into the reviews of their user, oldest
first, so a history text is stored once a user and never once an example.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from nextquill_core.records import Example as Example
from nextquill_core.records import Item as Item
from nextquill_core.records import Review as Review
from storage.tables import read_table

REVIEW = pa.struct(
    [
        pa.field("item_id", pa.string()),
        pa.field("rating", pa.float32()),
        pa.field("title", pa.string()),
        pa.field("text", pa.string()),
        pa.field("timestamp_ms", pa.int64()),
    ]
)
SEQUENCES = pa.schema({"user_id": pa.string(), "category": pa.string(), "reviews": pa.list_(REVIEW)})
ITEMS = pa.schema({"item_id": pa.string(), "category": pa.string(), "title": pa.string(), "description": pa.string()})
EXAMPLES = pa.schema(
    {
        "example_id": pa.string(),
        "user_id": pa.string(),
        "category": pa.string(),
        "split": pa.string(),
        "target": pa.int32(),
        "history": pa.list_(pa.int32()),
    }
)
QUARANTINE = pa.schema({"file": pa.string(), "line": pa.int64(), "reason": pa.string(), "raw": pa.string()})
EFFECTS = pa.schema(
    {
        "example_id": pa.string(),
        "target_ids": pa.list_(pa.int32()),
        "logp_factual": pa.list_(pa.float32()),
        "logp_counterfactual": pa.list_(pa.float32()),
        "effect": pa.list_(pa.float32()),
    }
)
WEIGHTS = pa.schema({"example_id": pa.string(), "weight": pa.list_(pa.float32())})
# One score for each review of the example's history, in its order.
RELEVANCE = pa.schema({"example_id": pa.string(), "score": pa.list_(pa.float32())})
# A summary of the older reviews of the example's history.
SUMMARIES = pa.schema({"example_id": pa.string(), "summary": pa.string()})
# How past reviews, by position in the example's history, differ from those of other users.
DIFFERENCES = pa.schema({"example_id": pa.string(), "position": pa.int32(), "others": pa.int32(), "text": pa.string()})
# Losses of each step of the training of soft tokens.
SOFT_TRAINING = pa.schema({"loss": pa.float64(), "answer": pa.float64(), "autoencoder": pa.float64()})
# The aspects of a user's rubric, and the question and answer behind them.
ASPECT = pa.struct([pa.field(name, pa.string()) for name in ("aspect", "reason", "evidence")])
RUBRICS = pa.schema(
    {"example_id": pa.string(), "aspects": pa.list_(ASPECT), "prompt": pa.string(), "answer": pa.string()}
)
# The judge's points for one aspect of a text, null where no answer could be read, with question and answer.
JUDGED = pa.schema(
    {
        "example_id": pa.string(),
        "aspect": pa.int32(),
        "prompt": pa.string(),
        "answer": pa.string(),
        "score": pa.int32(),
    }
)
# Style-free texts for the queries of past reviews; a review is named `CATEGORY:USER#POSITION`.
NEUTRAL = pa.schema(
    {"review_id": pa.string(), "text": pa.string(), "n_tokens": pa.int32(), "finish_reason": pa.string()}
)
PREDICTIONS = pa.schema(
    {
        "example_id": pa.string(),
        "method": pa.string(),
        "decoding": pa.string(),
        "text": pa.string(),
        "n_tokens": pa.int32(),
        "finish_reason": pa.string(),
    }
)
# Log-probability of each token of the true review under a method's model, in nats.
LIKELIHOODS = pa.schema({"example_id": pa.string(), "logp": pa.list_(pa.float32())})
# Preference tokens by their position in the answer, with the cluster and the place on the map of their hidden states.
CLUSTERS = pa.schema(
    {
        "example_id": pa.string(),
        "position": pa.int32(),
        "effect": pa.float32(),
        "cluster": pa.int32(),
        "x": pa.float64(),
        "y": pa.float64(),
    }
)
METRICS = pa.schema(
    {
        "method": pa.string(),
        "category": pa.string(),
        "decoding": pa.string(),
        "metric": pa.string(),
        "value": pa.float64(),
        "ci_low": pa.float64(),
        "ci_high": pa.float64(),
        "n": pa.int64(),
    }
)
# Metrics of every point of a sweep: its number, and its settings as JSON.
SWEEP = pa.schema([pa.field("point", pa.int32()), pa.field("values", pa.string()), *METRICS])
# Results on parts of a split: buckets of examples by `slice`, or both sides of a control and their difference. Only
# differences have p-values.
_BUCKET = [pa.field("slice", pa.string()), pa.field("bucket", pa.string())]
_SIGNIFICANCE = [pa.field("p_value", pa.float64()), pa.field("p_adjusted", pa.float64())]
SLICES = pa.schema([*_BUCKET, *METRICS, *_SIGNIFICANCE])


def _on_preference_tokens(suffix: str) -> dict[str, pa.DataType]:
    """Return the columns of one set of preference tokens."""
    measured = ("log_likelihood", "personal_gain", "history_gain")
    columns = {f"preference_{name}{suffix}": pa.float64() for name in measured}
    return columns | {f"preference_tokens{suffix}": pa.int64()}


# `bleu` is the sentence score; sums of `bleu_counts` (matching and all n-grams of order 1 to 4, both lengths) give
# the corpus score. Log-likelihoods and gains are in nats, summed over the tokens that are counted beside them.
EXAMPLE_SCORES = pa.schema(
    {
        "example_id": pa.string(),
        "method": pa.string(),
        "decoding": pa.string(),
        **dict.fromkeys(("rouge1", "rougeL", "rouge1_unicode", "rougeL_unicode", "meteor"), pa.float64()),
        **dict.fromkeys(("rouge1_cut", "rougeL_cut", "meteor_cut", "bleu"), pa.float64()),
        "bleu_counts": pa.list_(pa.int64()),
        "bertscore": pa.float64(),
        "words": pa.int64(),
        "reference_words": pa.int64(),
        "log_likelihood": pa.float64(),
        "personal_gain": pa.float64(),
        "history_gain": pa.float64(),
        "tokens": pa.int64(),
        **_on_preference_tokens(""),
        **_on_preference_tokens("_crossfit"),
        **_on_preference_tokens("_exact"),
    }
)


def column_by_example(folder: Path, column: str) -> dict[str, Any]:
    """Return a column of all Parquet files in a folder, by the column `example_id`.

    Raises:
        Damaged: A file is damaged.
    """
    found: dict[str, Any] = {}
    for shard in sorted(folder.glob("*.parquet")):
        rows = read_table(shard, columns=["example_id", column])
        found.update(zip(rows["example_id"].to_pylist(), rows[column].to_pylist(), strict=True))
    return found
