"""Answers that are odd in form, counted: nothing at all, or cut at the length limit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from nextquill_core.generation.engines import CUT, STOPPED


def answer_rows(predictions: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """How the answers of each method and preset ended, in the order in which they first appear.

    Args:
        predictions: Rows of the schema `PREDICTIONS`.

    Returns:
        Rows with method, decoding, answers, empty (nothing but white space), cut (at the length limit), other (ended in
        another way), stopped_share (by the model's own stop token, 0 to 1), mean_tokens and longest_tokens.
    """
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in predictions:
        found.setdefault((row["method"], row["decoding"]), []).append(row)
    return [_counted(method, decoding, rows) for (method, decoding), rows in found.items()]


def _counted(method: str, decoding: str, rows: list[Mapping[str, Any]]) -> dict[str, Any]:
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
