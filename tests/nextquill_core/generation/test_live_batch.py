"""Requests that join and leave a running batch get the answers that each gets alone."""

from __future__ import annotations

import random
from concurrent.futures import CancelledError
from typing import Any

import pytest

from nextquill_core.errors import ModelError
from nextquill_core.generation.decoding import GREEDY, PAPER, SAMPLED, Decoding, steering
from nextquill_core.generation.engines import Request
from nextquill_core.generation.live_batch import Job, LiveBatch
from nextquill_core.generation.local_engine import Batch, TransformersEngine
from nextquill_core.generation.streaming import TokenParts
from tests.nextquill_core.generation.spelling import Numbers
from tests.nextquill_core.generation.test_local_engine import adapted, engine, lively, prompts, requests


def live(model: Any, decoding: Decoding = GREEDY, **settings: Any) -> LiveBatch:
    return LiveBatch(engine(model, decoding, **settings), lambda: 0)


def drain(batch: LiveBatch, most: int = 500) -> None:
    for _ in range(most):
        if batch.idle:
            return
        batch.step()
    raise AssertionError("not finished")


@pytest.mark.parametrize("budget", [1, 150, 10**6])
@pytest.mark.parametrize("decoding", [GREEDY, PAPER, SAMPLED])
def test_requests_that_arrive_at_any_time_get_the_answers_they_get_alone(decoding: Decoding, budget: int) -> None:
    model, draw = lively(), random.Random(budget)
    alone = [engine(model, decoding).generate([request])[0] for request in requests()]
    batch = live(model, decoding, batch_tokens=budget)
    jobs = [Job(request) for request in requests()]
    for job in jobs:
        batch.add(job)
        for _ in range(draw.randint(0, 5)):
            batch.step()
    drain(batch)
    assert [job.answer.result(0) for job in jobs] == alone
    assert batch.positions == 0


def test_a_request_joins_before_any_other_has_finished() -> None:
    model = lively(stops=[0])
    batch = live(model, batch_tokens=10**6)
    first, second = (Job(Request(name, prompt, limit=9)) for name, prompt in zip("ab", prompts(2), strict=True))
    batch.add(first)
    batch.step()
    batch.add(second)
    for _ in range(8):
        batch.step()
    assert first.answer.done()
    assert not second.answer.done()
    batch.step()
    assert second.answer.result(0).n_tokens == 9


def test_one_and_two_branches_and_several_adapters_share_a_model() -> None:
    model = adapted(["default", "ann", "bob"])
    asked = [
        Request(
            request.key, request.prompt, [50, 60 + number] if number % 2 else None, [None, "ann", "bob"][number % 3]
        )
        for number, request in enumerate(requests())
    ]
    alone = [engine(model, contrast=steering(1.0)).generate([request])[0] for request in asked]
    batch = live(model, contrast=steering(1.0), batch_tokens=10**6)
    jobs = [Job(request) for request in asked]
    for job in jobs:
        batch.add(job)
        batch.step()
    drain(batch)
    assert [job.answer.result(0) for job in jobs] == alone


def test_a_cancelled_request_leaves_and_the_others_stay() -> None:
    model = lively(stops=[0])
    alone = engine(model).generate(requests(3))
    batch = live(model, batch_tokens=100)
    jobs = [Job(request) for request in requests(3)]
    for job in jobs:
        batch.add(job)
    batch.step()
    assert jobs[0].answer.cancel()
    assert jobs[2].answer.cancel()
    drain(batch)
    with pytest.raises(CancelledError):
        jobs[0].answer.result(0)
    assert jobs[1].answer.result(0) == alone[1]
    assert batch.positions == 0


def test_a_stream_is_the_answer_part_by_part(tiny_model: Any, tiny_tokenizer: Any) -> None:
    used = TransformersEngine(tiny_model, tiny_tokenizer, SAMPLED, max_new_tokens=20, batch_tokens=4096)
    batch = LiveBatch(used, lambda: 0)
    sent: list[str] = []
    streamed = Job(Request("a", [5, 6, 7]), TokenParts(sent.append, tiny_tokenizer))
    batch.add(streamed)
    batch.step()
    drain(batch)
    text = streamed.answer.result(0).text
    assert "".join(sent) == text
    assert len(sent) > 2


def test_an_unknown_adapter_ends_its_request_alone() -> None:
    model = lively()
    batch = live(model)
    wrong, right = Job(Request("a", [50], adapter="eve")), Job(requests(1)[0])
    batch.add(wrong)
    batch.add(right)
    drain(batch)
    with pytest.raises(ModelError, match="no adapter 'eve'"):
        wrong.answer.result(0)
    assert right.answer.result(0) == engine(model).generate(requests(1))[0]


@pytest.mark.parametrize("fault", [RuntimeError("the device failed"), MemoryError()])
def test_a_failed_pass_ends_what_was_in_it_or_starts_again_with_less(
    fault: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = lively(stops=[0])
    alone = engine(model).generate(requests(4))
    used = engine(model, batch_tokens=10**6)
    batch = LiveBatch(used, lambda: 0)
    original, failed = Batch.step, []

    def step(self: Batch) -> bool:
        more = original(self)
        if self.rows and not failed:
            failed.append(fault)
            raise fault
        return more

    monkeypatch.setattr(Batch, "step", step)
    jobs = [Job(request, TokenParts(lambda part: None, Numbers())) for request in requests(4)]
    for job in jobs[:3]:
        batch.add(job)
    batch.step()
    batch.add(jobs[3])
    drain(batch)
    assert jobs[3].answer.result(0) == alone[3]
    for job, expected in zip(jobs[:3], alone, strict=False):
        if isinstance(fault, MemoryError):
            assert job.answer.result(0) == expected
        else:
            with pytest.raises(RuntimeError, match="the device failed"):
                job.answer.result(0)
    assert used.usage.retries == isinstance(fault, MemoryError)


def test_other_batches_leave_less_room() -> None:
    held = [10**6]
    used = engine(lively(stops=[0]), batch_tokens=10**6)
    batch = LiveBatch(used, lambda: held[0])
    for request in requests(3):
        batch.add(Job(request))
    batch.step()
    one = batch.positions
    assert one < 60, "one row is always admitted"
    held[0] = 0
    batch.step()
    assert batch.positions > 2 * one
