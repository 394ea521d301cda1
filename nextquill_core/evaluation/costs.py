"""What each method costs beside what it scores: training, tokens read and written, the wait for the first, memory.

Everything is taken from what stages measured while they ran. What nobody measured is None, never a guess.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nextquill_core.evaluation.tables import Key

GB = 1e9


def cost_rows(
    usages: Mapping[Key, Mapping[str, Any] | None],
    training: Mapping[str, float | None] | None = None,
    preparation: Mapping[str, Mapping[str, float | None]] | None = None,
) -> list[dict[str, Any]]:
    """The costs of each method and decoding preset.

    Args:
        usages: What generating took, by method and preset, summed over the answers: `answers`, `prompt_tokens`,
            `new_tokens`, `seconds`, `first_token_seconds` and `retries`, with the highest `peak_bytes` (the fields of
            `engines.Usage`); None if unknown.
        training: By method, the seconds of training; a method that does not train is left out.
        preparation: By method, what else it needs before it can write, such as summaries, with the seconds that took.

    Returns:
        Rows with method, decoding, answers, training_seconds, preparation, prompt_tokens and new_tokens (mean an
        answer), tokens_per_second (written, over the whole time), first_token_ms (mean), peak_gb (10^9 bytes), retries.
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


def _count(usage: Mapping[str, Any] | None, name: str) -> int | None:
    value = usage.get(name) if usage else None
    return None if value is None else int(value)


def _ratio(usage: Mapping[str, Any] | None, above: str, below: str, scale: float = 1.0) -> float | None:
    if not usage or usage.get(above) is None or not usage.get(below):
        return None
    return scale * float(usage[above]) / float(usage[below])
