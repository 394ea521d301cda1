"""Rows of metrics and of comparisons as an evaluation stores them."""

from __future__ import annotations

from typing import Any


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


def compared(
    metric: str, difference: float, spread: float = 0.01, reference: str = "contextsft", **changes: Any
) -> dict[str, Any]:
    """Return the row of a comparison of nextquill whose interval is `spread` to both sides of the difference."""
    found = {"method": "nextquill", "reference": reference, "category": "Books", "decoding": "paper", "metric": metric}
    found |= {"difference": difference, "ci_low": difference - spread, "ci_high": difference + spread}
    return found | {"p_value": 0.001, "p_adjusted": 0.001, "win_rate": 0.71, "n": 317} | changes
