"""The columns of every table an artifact holds, and the records that the code passes around.

Times are UTC milliseconds, log-probabilities nats. `examples` index the reviews of their own user, oldest first, so a
history text is stored once a user and never once an example.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

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


@dataclass(frozen=True, slots=True)
class Item:
    """What a product says of itself."""

    title: str
    description: str


@dataclass(frozen=True, slots=True)
class Review:
    """A review together with the item it is about."""

    item: Item
    rating: float
    title: str
    text: str
    timestamp_ms: int = 0


@dataclass(frozen=True, slots=True)
class Example:
    """One thing to predict: the user's `target` review, given the reviews written before it.

    Attributes:
        history: The user's past reviews, oldest first; the whole of it, before any limit of the prompt.
    """

    example_id: str
    user_id: str
    category: str
    split: str
    target: Review
    history: tuple[Review, ...]
