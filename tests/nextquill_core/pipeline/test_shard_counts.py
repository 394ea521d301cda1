"""Counts of a stage in shards: an interrupted stage ends with the counts of one that ran through."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nextquill_core.causal.shard_queue import split_into_shards
from nextquill_core.evaluation import likelihood
from nextquill_core.evaluation.judge import Asked, Aspect
from nextquill_core.methods import retrieval, summaries, text_encoder
from nextquill_core.methods.pooling import Pooling
from nextquill_core.pipeline import judge, methods, predict
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
    for damaged in ("{", '"texts"', '{"texts": "three"}'):
        (staged(tmp_path).scratch / "counts-own-00000.json").write_text(damaged)
        assert not later.restore("own/00000")


EXAMPLES = [
    Example(f"C:u{number}:0", f"u{number}", "C", "test", review(number), tuple(review(past) for past in range(number)))
    for number in range(6)
]
STEP: Any = SimpleNamespace(fingerprint="f")
RUN: Any = SimpleNamespace(
    model=None,
    plan=SimpleNamespace(evaluation=SimpleNamespace(judged={judge.TRUE_REVIEW: STEP}), writes="review"),
    config=SimpleNamespace(
        model=SimpleNamespace(trust_remote_code=False),
        score=SimpleNamespace(batch_tokens=9),
        prompt=SimpleNamespace(max_prompt_tokens=9),
        evaluate=SimpleNamespace(
            split="test",
            judge=None,
            summaries=SimpleNamespace(newest=0, block=1, max_tokens=6),
            retrieval=SimpleNamespace(encoder="base", revision="main"),
        ),
    ),
)


@pytest.fixture(autouse=True)
def _three_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (judge, methods):
        monkeypatch.setattr(module, "split_examples", lambda *_: EXAMPLES)
        monkeypatch.setattr(module, "split_into_shards", lambda rows: split_into_shards(rows, 2))


def interrupted_and_whole(folder: Path, stage: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """Run a stage of six examples in three shards at once, and by two processes; returns its stats."""

    def interrupt(done: float, total: float, note: str = "", *, phase: str = "") -> None:
        if list((folder / "parts").rglob("00000.parquet")):
            raise KeyboardInterrupt

    whole = stage(RUN, STEP, staged(folder / "whole"), silent)
    with pytest.raises(KeyboardInterrupt):
        stage(RUN, STEP, staged(folder / "parts"), interrupt)
    assert len(staged(folder / "parts").finished()) == 1
    shown: list[tuple[float, float]] = []
    again = stage(RUN, STEP, staged(folder / "parts"), lambda done, total, *_, **__: shown.append((done, total)))
    assert again == whole
    assert shown[-1][0] == shown[-1][1], "what was done before counts as done"
    return whole


def test_a_judge_that_was_interrupted_counts_all_of_its_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(part: list[Example], *_: Any) -> list[Asked]:
        scores = (1, None)  # of each example, one aspect is scored and one cannot be read
        return [
            Asked(example.example_id, number, "?", "", score) for example in part for number, score in enumerate(scores)
        ]

    monkeypatch.setattr(judge, "_rubrics", lambda _: {one.example_id: [Aspect("a", "", "")] * 2 for one in EXAMPLES})
    monkeypatch.setattr(judge, "_asking", lambda *_: None)
    monkeypatch.setattr(judge, "ask_scores", asked)
    assert interrupted_and_whole(tmp_path, judge.build_judged) == {"examples": 6, "scores": 12, "unread": 6}


def test_relevance_that_was_interrupted_counts_all_texts_that_were_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encoder(*_: Any, **__: Any) -> Any:
        return SimpleNamespace(truncated=0, max_tokens=5, pooling=Pooling())

    def scored(part: Sequence[Example], encoder: Any, advance: Callable[[int], None], _: Any) -> list[list[float]]:
        encoder.truncated += sum(len(example.history) for example in part)
        advance(len(part))
        return [[0.5] * len(example.history) for example in part]

    monkeypatch.setattr(text_encoder, "load_encoder", encoder)
    monkeypatch.setattr(retrieval, "dense_scores", scored)
    interrupted_and_whole(tmp_path, methods.build_relevance)


def test_summaries_that_were_interrupted_count_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def summarized(part: Sequence[Example], *_: Any, advance: Callable[[int], None], **__: Any) -> Any:
        steps = sum(len(example.history) for example in part)
        advance(steps)
        return ["s"] * len(part), Counter(summaries=steps, empty=1, cut=0, prompts_clipped=2)

    monkeypatch.setattr(
        methods, "method_encoder", lambda *_: SimpleNamespace(tokenizer=None, template=None, wording=None)
    )
    monkeypatch.setattr(methods, "local_engine", lambda *_: None)
    monkeypatch.setattr(methods, "base_model", lambda *_: None)
    monkeypatch.setattr(summaries, "summarize", summarized)
    interrupted_and_whole(tmp_path, methods.build_summaries)


def test_likelihoods_that_were_interrupted_count_what_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing_shards(*given: Any, **_: Any) -> Any:
        for name, part in split_into_shards(EXAMPLES, 2):
            if given[3](name):
                yield methods.Shard(name, part, None)

    def logps(
        _model: Any, pairs: Sequence[Example], _tokens: int, advance: Callable[[int], None]
    ) -> list[torch.Tensor]:
        advance(len(pairs))
        return [torch.zeros(1)] * len(pairs)

    step: Any = SimpleNamespace(settings={"method": "contextsft", "split": "test", "past": "own"})
    monkeypatch.setattr(predict, "shown_examples", lambda *_: EXAMPLES)
    monkeypatch.setattr(predict, "shard_names", lambda *_: [name for name, _ in split_into_shards(EXAMPLES, 2)])
    monkeypatch.setattr(predict, "method_encoder", lambda *_: SimpleNamespace(encode=lambda examples: examples))
    monkeypatch.setattr(predict, "missing_shards", missing_shards)
    monkeypatch.setattr(likelihood, "answer_logps", logps)
    interrupted_and_whole(tmp_path, lambda run, _, *rest: predict.build_likelihoods(run, step, *rest))
