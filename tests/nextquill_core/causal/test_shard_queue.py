"""Shards are shared by whoever comes: same bytes, nothing lost, what fails is named."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from nextquill_core.causal import worker
from nextquill_core.causal.job import ScoreJob
from nextquill_core.causal.scorer import Scorer
from nextquill_core.causal.shard_queue import Board, Report, ShardsFailed, in_shards
from nextquill_core.causal.tally import Tally
from nextquill_core.causal.worker import work, work_alone
from nextquill_core.errors import ModelError
from nextquill_core.folds import fold_of
from nextquill_core.ingest.reader import read_examples
from nextquill_core.progress import silent
from nextquill_core.tokens import TokenPair
from tests.scoring import SHARDS, digests, open_job, write_sequences


class Killed(BaseException):
    """Stands for the moment at which a process dies."""


@pytest.fixture(scope="module")
def sequences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sequences(tmp_path_factory.mktemp("ingest"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, sequences: Path, tiny_folder: Path) -> Board:
    """Scored by one worker without any trouble."""
    order, board = open_job(tmp_path_factory.mktemp("whole"), sequences, tiny_folder)
    work_alone(order, silent)
    board.check()
    return board


def failing_at(
    monkeypatch: Any, *bad: str, error: type[BaseException] = ValueError, times: int = 10**6
) -> Counter[str]:
    """Scoring a shard that holds one of these examples fails; returns how often each first example was tried."""
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
    assert list(in_shards("abcdefg", 3)) == [("00000", "abc"), ("00001", "def"), ("00002", "g")]


def test_a_job_survives_its_file(tmp_path: Path, sequences: Path, tiny_folder: Path) -> None:
    order, _ = open_job(tmp_path, sequences, tiny_folder, adapters=("a", "b"))
    job = ScoreJob.load(order)
    assert (job.adapters, job.shard_examples, job.model.name_or_path) == (("a", "b"), 3, str(tiny_folder))
    job.save(tmp_path / "again.json")
    assert ScoreJob.load(tmp_path / "again.json") == job


def test_every_example_is_scored_once_in_order(whole: Board, sequences: Path) -> None:
    assert list(whole.shards) == SHARDS
    found = [
        name
        for shard in whole.staging.finished()
        for name in pq.read_table(whole.staging.folder / shard.path)["example_id"].to_pylist()
    ]
    assert found == [example.example_id for example in read_examples(sequences)]


def test_three_workers_make_the_same_bytes_as_one(
    whole: Board, tmp_path: Path, sequences: Path, tiny_folder: Path, monkeypatch: Any
) -> None:
    tried = failing_at(monkeypatch)
    order, board = open_job(tmp_path, sequences, tiny_folder)
    job = ScoreJob.load(order)
    one_by_one, load = threading.Lock(), worker.load_model

    def load_alone(*arguments: Any) -> Any:
        with one_by_one:  # transformers cannot load in two threads at a time
            return load(*arguments)

    monkeypatch.setattr(worker, "load_model", load_alone)
    workers = [threading.Thread(target=work, args=(job, str(name), "cpu")) for name in range(3)]
    for thread in workers:
        thread.start()
    for thread in workers:
        thread.join()
    board.check()
    assert digests(board) == digests(whole)
    assert board.truncation() == whole.truncation()
    assert set(tried.values()) == {1}, "no shard was scored by two"
    assert len(tried) == len(SHARDS)
    assert sum(report.tokens for report in board.reports()) > 0


def test_killed_and_resumed_makes_the_same_bytes_and_repeats_the_shard_in_hand_alone(
    whole: Board, tmp_path: Path, sequences: Path, tiny_folder: Path, monkeypatch: Any
) -> None:
    order, board = open_job(tmp_path, sequences, tiny_folder)
    third = board.shards[SHARDS[2]][0]
    with monkeypatch.context() as patched:
        failing_at(patched, third, error=Killed)
        with pytest.raises(Killed):
            work_alone(order, silent)
    assert [board.finished(number) for number in SHARDS] == [True] * 2 + [False] * 6
    order, board = open_job(tmp_path, sequences, tiny_folder)
    tried = failing_at(monkeypatch)
    work_alone(order, silent)
    board.check()
    assert len(tried) == len(SHARDS) - 2
    assert digests(board) == digests(whole)
    assert board.truncation() == whole.truncation()


def test_truncation_is_counted_exactly(whole: Board, sequences: Path, tiny_folder: Path, tmp_path: Path) -> None:
    from dataclasses import asdict

    from nextquill_core.model.loading import load_tokenizer
    from nextquill_core.tokens import encoder_for

    order, _ = open_job(tmp_path, sequences, tiny_folder)
    job = ScoreJob.load(order)
    encoder = encoder_for(job.model, load_tokenizer(job.model), **asdict(job.prompt))
    encoder.encode(list(read_examples(sequences)))
    assert whole.truncation() == dict(encoder.truncation)
    assert whole.truncation()["targets_cut"] > 0
    assert whole.truncation()["past_reviews_dropped"] > 0


def test_a_finished_shard_without_its_counts_is_encoded_and_not_scored(
    whole: Board, tmp_path: Path, sequences: Path, tiny_folder: Path, monkeypatch: Any
) -> None:
    """As after a kill between the end of scoring and the manifest, when scratch is gone already."""
    order, board = open_job(tmp_path, sequences, tiny_folder)
    work_alone(order, silent)
    for counts in (board.staging.scratch / "truncation").iterdir():
        counts.unlink()
    tried = failing_at(monkeypatch)
    work_alone(order, silent)
    assert not tried
    assert board.truncation() == whole.truncation()


def test_a_poisoned_shard_is_retried_after_all_others_then_named(
    whole: Board, tmp_path: Path, sequences: Path, tiny_folder: Path, monkeypatch: Any
) -> None:
    order, board = open_job(tmp_path, sequences, tiny_folder)
    bad = board.shards[SHARDS[1]]
    with monkeypatch.context() as patched:
        tried = failing_at(patched, bad[2])
        work_alone(order, silent)
    assert tried[bad[0]] == 2
    assert sum(tried.values()) == len(SHARDS) + 1
    with pytest.raises(ShardsFailed) as failed:
        board.check()
    first, second = str(failed.value).splitlines()
    assert first.startswith("1 of 8 shards could not be scored")
    assert second == f"  00001 ({bad[0]} to {bad[2]}): ValueError: a poisoned example"
    assert len(digests(board)) == len(SHARDS) - 1
    order, board = open_job(tmp_path, sequences, tiny_folder)
    work_alone(order, silent)
    assert digests(board) == digests(whole), "the next run tries again, and nothing else"


def test_a_shard_that_fails_once_is_no_failure(
    whole: Board, tmp_path: Path, sequences: Path, tiny_folder: Path, monkeypatch: Any
) -> None:
    order, board = open_job(tmp_path, sequences, tiny_folder)
    failing_at(monkeypatch, board.shards[SHARDS[0]][1], times=1)
    work_alone(order, silent)
    board.check()
    assert digests(board) == digests(whole)


def test_a_shard_whose_workers_die_is_given_up(
    tmp_path: Path, sequences: Path, tiny_folder: Path, monkeypatch: Any
) -> None:
    order, board = open_job(tmp_path, sequences, tiny_folder)
    failing_at(monkeypatch, board.shards[SHARDS[0]][0], error=Killed)
    for _ in range(2):
        with pytest.raises(Killed):
            work(ScoreJob.load(order), "0", "cpu")
    work(ScoreJob.load(order), "0", "cpu")
    with pytest.raises(ShardsFailed, match=r"00000 .*the worker that scored it died"):
        board.check()
    assert len(digests(board)) == len(SHARDS) - 1


def test_wrong_input_ends_the_worker_at_once(
    tmp_path: Path, sequences: Path, tiny_folder: Path, monkeypatch: Any
) -> None:
    order, board = open_job(tmp_path, sequences, tiny_folder)
    tried = failing_at(monkeypatch, board.shards[SHARDS[0]][0], error=ModelError)
    with pytest.raises(ModelError):
        work_alone(order, silent)
    assert sum(tried.values()) == 1


def test_a_held_shard_is_left_alone_until_it_is_free(tmp_path: Path, sequences: Path, tiny_folder: Path) -> None:
    order, board = open_job(tmp_path, sequences, tiny_folder)
    with board.claim(SHARDS[0]) as ours:
        assert ours
        thread = threading.Thread(target=work_alone, args=(order, silent))
        thread.start()
        while not all(board.finished(number) for number in SHARDS[1:]):
            assert thread.is_alive()
            time.sleep(0.05)
        assert not board.finished(SHARDS[0])
    thread.join()
    assert board.finished(SHARDS[0])


def test_nothing_left_loads_no_model(whole: Board, monkeypatch: Any) -> None:
    monkeypatch.setattr(worker, "load_model", lambda *_: pytest.fail("loaded"))
    work_alone(whole.staging.scratch / "job.json", silent)


def test_a_lost_device_ends_the_worker_and_no_shard_more(
    tmp_path: Path, sequences: Path, tiny_folder: Path, monkeypatch: Any
) -> None:
    order, board = open_job(tmp_path, sequences, tiny_folder)
    bad = board.shards[SHARDS[0]][0]
    tried = failing_at(monkeypatch, bad)

    # a device that this build of torch does not have answers as little as one that is lost
    monkeypatch.setattr(worker, "check_device", lambda _, check=worker.check_device: check(torch.device("hpu")))
    with pytest.raises(worker.DeviceLost, match="hpu answers no more"):
        work_alone(order, silent)
    assert tried == {bad: 1}


def test_each_user_is_scored_by_the_adapter_of_the_own_fold(
    whole: Board, tmp_path: Path, sequences: Path, tiny_folder: Path, tiny_model: Any
) -> None:
    import copy

    from peft import LoraConfig, get_peft_model

    adapters, expected = [], {}
    for fold in range(2):
        torch.manual_seed(fold)
        config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
        adapted = get_peft_model(copy.deepcopy(tiny_model), config)
        adapters.append(str(tmp_path / f"adapter-{fold}"))
        adapted.save_pretrained(adapters[-1])
        order, board = open_job(tmp_path / f"alone-{fold}", sequences, tiny_folder, adapters=(adapters[-1],))
        work_alone(order, silent)
        expected[fold] = effects(board)
    order, board = open_job(tmp_path / "both", sequences, tiny_folder, adapters=tuple(adapters))
    work_alone(order, silent)
    users = {example.example_id: example.user_id for example in read_examples(sequences)}
    assert {fold_of(user, 2) for user in users.values()} == {0, 1}
    assert effects(board) == {name: expected[fold_of(user, 2)][name] for name, user in users.items()}
    assert expected[0] != expected[1] != effects(whole)


def test_an_adapter_without_safetensors_is_refused(tmp_path: Path, sequences: Path, tiny_folder: Path) -> None:
    (tmp_path / "a").mkdir()
    order, _ = open_job(tmp_path / "s", sequences, tiny_folder, adapters=(str(tmp_path / "a"),))
    with pytest.raises(ModelError, match=r"there is no adapter_model\.safetensors"):
        work_alone(order, silent)


def effects(board: Board) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for shard in board.staging.finished():
        table = pq.read_table(board.staging.folder / shard.path)
        found.update(zip(table["example_id"].to_pylist(), table["effect"].to_pylist(), strict=True))
    return found


def test_progress_by_hand(tmp_path: Path, sequences: Path, tiny_folder: Path) -> None:
    """24 examples in shards of 3. After 10 s two workers have 900 + 100 tokens and 1 of 3 examples each: 22 are left,
    at 0.2 examples a second these are 110 s."""
    _, board = open_job(tmp_path, sequences, tiny_folder)
    shown: list[tuple[float, float, str]] = []
    times = iter([100.0, 110.0, 120.0])
    tally = Tally(board, lambda *state: shown.append(state), clock=lambda: next(times))
    tally.show([])
    tally.show([Report(0, "", 0.0)])
    tally.show([Report(900, "00000", 1 / 3), Report(100, "00001", 1 / 3)])
    assert shown == [(0, 24, ""), (2, 24, "100 tokens/s, 0:01:50 left")]
    tally.show([Report(900, "00000", 1 / 3), Report(100, "00000", 2 / 3)])
    assert shown[-1][:2] == (2, 24), "a shard that was taken over counts once"


def test_progress_of_a_real_run_ends_with_all_examples(tmp_path: Path, sequences: Path, tiny_folder: Path) -> None:
    order, _ = open_job(tmp_path, sequences, tiny_folder)
    shown: list[tuple[float, float, str]] = []
    work_alone(order, lambda *state: shown.append(state))
    done = [state[0] for state in shown]
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0, 24)
    assert shown[-1][2].endswith(" tokens/s, 0:00:00 left")
    assert json.loads(order.read_text())["batch_tokens"] == 600
