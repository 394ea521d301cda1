"""Tests for the costs of methods: derived from what was measured, and nothing made up."""

from __future__ import annotations

import json
from dataclasses import asdict

from nextquill_core.evaluation.costs import cost_rows
from nextquill_core.generation.engines import Usage


def test_costs_by_hand() -> None:
    """Four answers of 50 tokens each in 20 s are 10 tokens a second; 6 s to the four first tokens are 1,500 ms each."""
    usage = Usage(4, prompt_tokens=4000, new_tokens=200, seconds=20, first_token_seconds=6, peak_bytes=3_500_000_000)
    (row,) = cost_rows({("llm-trsr", "paper"): asdict(usage)}, {"nextquill": 60.0}, {"llm-trsr": {"summaries": 12.5}})
    assert row == {
        "method": "llm-trsr",
        "decoding": "paper",
        "answers": 4,
        "training_seconds": None,
        "preparation": {"summaries": 12.5},
        "prompt_tokens": 1000,
        "new_tokens": 50,
        "tokens_per_second": 10,
        "first_token_ms": 1500,
        "peak_gb": 3.5,
        "retries": 0,
    }
    assert json.loads(json.dumps(row)) == row


def test_what_nobody_measured_stays_unknown() -> None:
    usages = {
        ("nextquill", "paper"): None,
        ("nextquill", "sane"): asdict(Usage()),  # nothing was generated: everything was there already
        ("oppu", "paper"): {"answers": 2, "new_tokens": 9},
        ("sft", "paper"): {"answers": 2, "new_tokens": 9, "seconds": 3.0, "prompt_tokens": None},
    }
    rows = cost_rows(usages, {"nextquill": 60.0, "sft": None})
    measured = ("prompt_tokens", "new_tokens", "tokens_per_second", "first_token_ms", "peak_gb")
    assert [[row[name] for name in measured] for row in rows] == [
        [None, None, None, None, None],
        [None, None, None, None, None],
        [None, 4.5, None, None, None],
        [None, 4.5, 3.0, None, None],
    ]
    assert [row["training_seconds"] for row in rows] == [60.0, 60.0, None, None]
    assert all(row["preparation"] == {} for row in rows)
