"""Rows of metrics as an evaluation stores them."""

from __future__ import annotations


def row(
    method: str, metric: str, value: float, category: str = "Books", decoding: str = "paper", *, n: int = 317
) -> dict[str, object]:
    """Return the row of a metric whose interval is 0.01 to both sides of its value."""
    return {
        "method": method,
        "category": category,
        "decoding": decoding,
        "metric": metric,
        "value": value,
        "ci_low": value - 0.01,
        "ci_high": value + 0.01,
        "n": n,
    }
