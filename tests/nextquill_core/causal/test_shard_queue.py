"""Any number of workers share the shards: same bytes, nothing lost, failed shards are named."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from nextquill_core.causal import worker
from nextquill_core.causal.scorer import Scorer
from nextquill_core.causal.shard_queue import Report, ScoringProgress, ShardQueue, ShardsFailed, split_into_shards
from nextquill_core.causal.worker import work, work_alone
from nextquill_core.ingest.reader import read_examples
from nextquill_core.orders import ScoreOrder
from nextquill_core.progress import silent
from nextquill_core.tokens import TokenPair
from tests.scoring import SHARDS, digests, open_order, write_sequences

Opened = Callable[..., tuple[Path, ShardQueue]]


class Killed(BaseException):
    """Stands for the moment at which a process dies."""


@pytest.fixture(scope="module")
def sequences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sequences(tmp_path_factory.mktemp("ingest"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, sequences: Path, tiny_folder: Path) -> ShardQueue:
    # All shards, scored by one worker without a failure.
    order, queue = open_order(tmp_path_factory.mktemp("whole"), sequences, tiny_folder)
    work_alone(order, silent)
    queue.check()
    return queue


@pytest.fixture
def opened(tmp_path: Path, sequences: Path, tiny_folder: Path) -> Opened:
    """Opens the order of a run in the test's folder, a second time to resume it; see `open_order`."""
    return partial(open_order, tmp_path, sequences, tiny_folder)


def failing_at(
    monkeypatch: Any, *bad: str, error: type[BaseException] = ValueError, times: int = 10**6
) -> Counter[str]:
    # Scoring a shard that holds one of these examples fails; returns how often each first example was tried.
    tried: Counter[str] = Counter()
    real = Scorer.score

    def score(self: Scorer, pairs: Sequence[TokenPair]) -> Any:
        tried[pairs[0].example_id] += 1
        for pair in pairs:
            if pair.example_id in bad and tried[pairs[0].example_id] <= times:
                raise error("a poisoned example\nand more")
        return real(self, pairs)

    monkeypatch.setattr(Scorer, "score", score)
    return tried


def test_boundaries_depend_on_the_rows_alone() -> None:
    assert list(split_into_shards("abcdefg", 3)) == [("00000", "abc"), ("00001", "def"), ("00002", "g")]


def test_an_order_survives_its_file(tmp_path: Path, opened: Opened, tiny_folder: Path) -> None:
    order, _ = opened(adapters=("a", "b"))
    read = ScoreOrder.load(order)
    assert (read.adapters, read.shard_examples) == ((Path("a"), Path("b")), 3)
    assert read.model.name_or_path == str(tiny_folder)
    read.save(tmp_path / "again.json")
    assert ScoreOrder.load(tmp_path / "again.json") == read


def test_every_example_is_scored_once_in_order(whole: ShardQueue, sequences: Path) -> None:
    assert list(whole.shards) == SHARDS
    found = [
        name
        for shard in whole.staging.finished()
        for name in pq.read_table(whole.staging.folder / shard.path)["example_id"].to_pylist()
    ]
    assert found == [example.example_id for example in read_examples(sequences)]


def test_three_workers_make_the_same_bytes_as_one(whole: ShardQueue, opened: Opened, monkeypatch: Any) -> None:
    tried = failing_at(monkeypatch)
    order, queue = opened()
    one_by_one, load = threading.Lock(), worker.load_model

    def load_alone(*arguments: Any) -> Any:
        with one_by_one:  # transformers cannot load in two threads at a time
            return load(*arguments)

    monkeypatch.setattr(worker, "load_model", load_alone)
    workers = [threading.Thread(target=work, args=(ScoreOrder.load(order), str(name), "cpu")) for name in range(3)]
    for thread in workers:
        thread.start()
    for thread in workers:
        thread.join()
    queue.check()
    assert digests(queue) == digests(whole)
    assert queue.truncation() == whole.truncation()
    assert set(tried.values()) == {1}, "no shard was scored by two"
    assert len(tried) == len(SHARDS)
    assert sum(report.tokens for report in queue.reports()) > 0


def test_killed_and_resumed_makes_the_same_bytes_and_repeats_the_claimed_shard_only(
    whole: ShardQueue, opened: Opened, monkeypatch: Any
) -> None:
    order, queue = opened()
    third = queue.shards[SHARDS[2]][0]
    with monkeypatch.context() as patched:
        failing_at(patched, third, error=Killed)
        with pytest.raises(Killed):
            work_alone(order, silent)
    assert [queue.finished(number) for number in SHARDS] == [True] * 2 + [False] * 6
    order, queue = opened()
    tried = failing_at(monkeypatch)
    work_alone(order, silent)
    queue.check()
    assert len(tried) == len(SHARDS) - 2
    assert digests(queue) == digests(whole)
    assert queue.truncation() == whole.truncation()


def test_truncation_is_counted_exactly(whole: ShardQueue, sequences: Path, opened: Opened) -> None:
    from nextquill_core.model.loading import encoder_for, load_tokenizer

    order = ScoreOrder.load(opened()[0])
    encoder = encoder_for(order.model, order.prompt, load_tokenizer(order.model))
    encoder.encode(list(read_examples(sequences)))
    assert whole.truncation() == dict(encoder.truncation)
    assert whole.truncation()["targets_cut"] > 0
    assert whole.truncation()["past_reviews_dropped"] > 0


def test_a_finished_shard_without_its_counts_is_encoded_and_not_scored(
    whole: ShardQueue, opened: Opened, monkeypatch: Any
) -> None:
    # As after a kill between the end of scoring and the manifest, when the scratch folder is deleted.
    order, queue = opened()
    work_alone(order, silent)
    for counts in (queue.staging.scratch / "truncation").iterdir():
        counts.unlink()
    tried = failing_at(monkeypatch)
    work_alone(order, silent)
    assert not tried
    assert queue.truncation() == whole.truncation()


def test_a_poisoned_shard_is_retried_after_all_others_then_named(
    whole: ShardQueue, opened: Opened, monkeypatch: Any
) -> None:
    order, queue = opened()
    bad = queue.shards[SHARDS[1]]
    with monkeypatch.context() as patched:
        tried = failing_at(patched, bad[2])
        work_alone(order, silent)
    assert tried[bad[0]] == 2
    assert sum(tried.values()) == len(SHARDS) + 1
    with pytest.raises(ShardsFailed) as failed:
        queue.check()
    first, second = str(failed.value).splitlines()
    assert first.startswith("1 of 8 shards could not be scored")
    assert second == f"  00001 ({bad[0]} to {bad[2]}): ValueError: a poisoned example"
    assert len(digests(queue)) == len(SHARDS) - 1
    order, queue = opened()
    work_alone(order, silent)
    assert digests(queue) == digests(whole), "the next run tries again, and nothing else"


def test_a_shard_that_fails_once_is_no_failure(whole: ShardQueue, opened: Opened, monkeypatch: Any) -> None:
    order, queue = opened()
    failing_at(monkeypatch, queue.shards[SHARDS[0]][1], times=1)
    work_alone(order, silent)
    queue.check()
    assert digests(queue) == digests(whole)


def test_a_shard_whose_workers_die_is_given_up(opened: Opened, monkeypatch: Any) -> None:
    order, queue = opened()
    failing_at(monkeypatch, queue.shards[SHARDS[0]][0], error=Killed)
    for _ in range(2):
        with pytest.raises(Killed):
            work(ScoreOrder.load(order), "0", "cpu")
    work(ScoreOrder.load(order), "0", "cpu")
    with pytest.raises(ShardsFailed, match=r"00000 .*the worker that scored it died"):
        queue.check()
    assert len(digests(queue)) == len(SHARDS) - 1


def test_a_claimed_shard_is_left_until_it_is_free(opened: Opened) -> None:
    order, queue = opened()
    with queue.claim(SHARDS[0]) as claimed:
        assert claimed
        thread = threading.Thread(target=work_alone, args=(order, silent))
        thread.start()
        while not all(queue.finished(number) for number in SHARDS[1:]):
            assert thread.is_alive()
            time.sleep(0.05)
        assert not queue.finished(SHARDS[0])
    thread.join()
    assert queue.finished(SHARDS[0])


def test_progress_by_hand(opened: Opened) -> None:
    # 24 examples in shards of 3. After 10 s two workers have 900 + 100 tokens and 1 of 3 examples each: 22 are left,
    # at 0.2 examples a second these are 110 s.
    _, queue = opened()
    shown: list[tuple[float, float, str]] = []
    times = iter([100.0, 110.0, 120.0])
    progress = ScoringProgress(queue, lambda *state: shown.append(state), clock=lambda: next(times))
    progress.show([])
    progress.show([Report(0, "", 0.0)])
    progress.show([Report(900, "00000", 1 / 3), Report(100, "00001", 1 / 3)])
    assert shown == [(0, 24, ""), (2, 24, "100 tokens/s, 0:01:50 left")]
    progress.show([Report(900, "00000", 1 / 3), Report(100, "00000", 2 / 3)])
    assert shown[-1][:2] == (2, 24), "a shard that was taken over counts once"


def test_progress_of_a_real_run_ends_with_all_examples(opened: Opened) -> None:
    order, _ = opened()
    shown: list[tuple[float, float, str]] = []
    work_alone(order, lambda *state: shown.append(state))
    done = [state[0] for state in shown]
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0, 24)
    assert shown[-1][2].endswith(" tokens/s, 0:00:00 left")
    assert json.loads(order.read_text())["score"]["batch_tokens"] == 600
