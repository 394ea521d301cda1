"""Tests for the counts of answers that are odd in form."""

from __future__ import annotations

from nextquill_core.evaluation.answer_forms import answer_rows


def answer(method: str, text: str, n_tokens: int, finish_reason: str) -> dict[str, object]:
    return {
        "example_id": "e",
        "method": method,
        "decoding": "paper",
        "text": text,
        "n_tokens": n_tokens,
        "finish_reason": finish_reason,
    }


def test_counts_by_hand() -> None:
    rows = answer_rows(
        [
            answer("qwen", "good " * 100, 100, "length"),
            answer("nextquill", "A fine book.", 5, "stop"),
            answer("qwen", " \n\u00a0", 1, "stop"),
            answer("qwen", "", 0, "stop"),
            answer("qwen", "ספר נפלא 😀", 7, "content_filter"),
        ]
    )
    assert rows == [
        {
            "method": "qwen",
            "decoding": "paper",
            "answers": 4,
            "empty": 2,
            "cut": 1,
            "other": 1,
            "stopped_share": 0.5,
            "mean_tokens": 27,
            "longest_tokens": 100,
        },
        {
            "method": "nextquill",
            "decoding": "paper",
            "answers": 1,
            "empty": 0,
            "cut": 0,
            "other": 0,
            "stopped_share": 1.0,
            "mean_tokens": 5,
            "longest_tokens": 5,
        },
    ]


def test_nothing_was_written() -> None:
    assert answer_rows([]) == []
