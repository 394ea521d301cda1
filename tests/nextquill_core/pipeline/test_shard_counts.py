"""Counts of a stage in shards: an interrupted stage ends with the counts of one that ran through."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nextquill_core.causal.shard_queue import split_into_shards
from nextquill_core.evaluation.judge import Asked, Aspect
from nextquill_core.pipeline import judge
from nextquill_core.pipeline.shard_counts import ShardCounts
from nextquill_core.progress import silent
from nextquill_core.records import Example
from storage.staging import Basis, Staging
from tests.conftest import review


def staged(folder: Path) -> Staging:
    return Staging(folder, Basis())


def test_counts_of_earlier_processes_are_added(tmp_path: Path) -> None:
    first = ShardCounts(staged(tmp_path), "texts", "empty")
    first.add("own/00000", {"texts": 3, "empty": 1})
    later = ShardCounts(staged(tmp_path), "texts", "empty")
    assert later.total == {"texts": 0, "empty": 0}
    assert later.restore("own/00000")
    later.add("own/00001", {"texts": 2, "cut": 5})
    assert later.total == {"texts": 5, "empty": 1, "cut": 5}
    assert not later.restore("own/00002"), "a shard without counts is made again"
    (staged(tmp_path).scratch / "counts-own-00000.json").write_text("{")
    assert not later.restore("own/00000")


def test_a_judge_that_was_interrupted_counts_all_of_its_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three shards of two examples; the second process finds the first shard finished."""
    examples = [Example(f"C:u{number}:0", f"u{number}", "C", "test", review(number), ()) for number in range(6)]
    step: Any = SimpleNamespace(fingerprint="f")
    plan = SimpleNamespace(evaluation=SimpleNamespace(judged={judge.TRUE_REVIEW: step}), writes="review")
    config = SimpleNamespace(evaluate=SimpleNamespace(split="test", judge=None))
    run: Any = SimpleNamespace(plan=plan, config=config)

    def asked(part: list[Example], *_: Any) -> list[Asked]:
        scores = (1, None)  # of each example, one aspect is scored and one cannot be read
        return [
            Asked(example.example_id, number, "?", "", score) for example in part for number, score in enumerate(scores)
        ]

    monkeypatch.setattr(judge, "split_examples", lambda *_: examples)
    monkeypatch.setattr(judge, "split_into_shards", lambda rows: split_into_shards(rows, 2))
    monkeypatch.setattr(judge, "_rubrics", lambda _: {one.example_id: [Aspect("a", "", "")] * 2 for one in examples})
    monkeypatch.setattr(judge, "_asking", lambda *_: None)
    monkeypatch.setattr(judge, "ask_scores", asked)

    def made(folder: str, progress: Callable[..., None] = silent) -> dict[str, Any]:
        return judge.build_judged(run, step, staged(tmp_path / folder), progress)

    def interrupted(done: float, total: float, note: str = "", *, phase: str = "") -> None:
        if done >= 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made("parts", interrupted)
    assert len(staged(tmp_path / "parts").finished()) == 1
    assert made("parts") == made("whole") == {"examples": 6, "scores": 12, "unread": 6}
