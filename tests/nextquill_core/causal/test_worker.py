"""A scoring worker: adapters by fold, invalid input, a lost device, nothing left to do."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from nextquill_core.causal import worker
from nextquill_core.causal.shard_queue import ShardQueue
from nextquill_core.causal.worker import work_alone
from nextquill_core.errors import ModelError
from nextquill_core.folds import fold_of
from nextquill_core.ingest.reader import read_examples
from nextquill_core.progress import silent
from tests.models import lora_model
from tests.nextquill_core.causal.test_shard_queue import Opened, failing_at, opened, sequences, whole
from tests.scoring import SHARDS, open_order

__all__ = ["opened", "sequences", "whole"]  # fixtures


def test_wrong_input_ends_the_worker_at_once(opened: Opened, monkeypatch: Any) -> None:
    order, queue = opened()
    tried = failing_at(monkeypatch, queue.shards[SHARDS[0]][0], error=ModelError)
    with pytest.raises(ModelError):
        work_alone(order, silent)
    assert sum(tried.values()) == 1


def test_nothing_left_loads_no_model(whole: ShardQueue, monkeypatch: Any) -> None:
    monkeypatch.setattr(worker, "load_model", lambda *_: pytest.fail("loaded"))
    work_alone(whole.staging.scratch / "order.json", silent)


def test_a_lost_device_ends_the_worker_and_no_shard_more(opened: Opened, monkeypatch: Any) -> None:
    order, queue = opened()
    bad = queue.shards[SHARDS[0]][0]
    tried = failing_at(monkeypatch, bad)

    # a device that this build of torch does not have fails as one that is lost does
    monkeypatch.setattr(worker, "check_device", lambda _, check=worker.check_device: check(torch.device("hpu")))
    with pytest.raises(worker.DeviceLost, match="hpu no longer computes"):
        work_alone(order, silent)
    assert tried == {bad: 1}


def test_each_user_is_scored_by_the_adapter_of_the_users_fold(
    whole: ShardQueue, tmp_path: Path, sequences: Path, tiny_folder: Path, tiny_model: Any
) -> None:
    adapters, expected = [], {}
    for fold in range(2):
        adapted = lora_model(copy.deepcopy(tiny_model), seed=fold, r=2)
        adapters.append(str(tmp_path / f"adapter-{fold}"))
        adapted.save_pretrained(adapters[-1])
        order, queue = open_order(tmp_path / f"alone-{fold}", sequences, tiny_folder, adapters=(adapters[-1],))
        work_alone(order, silent)
        expected[fold] = effects(queue)
    order, queue = open_order(tmp_path / "both", sequences, tiny_folder, adapters=tuple(adapters))
    work_alone(order, silent)
    users = {example.example_id: example.user_id for example in read_examples(sequences)}
    assert {fold_of(user, 2) for user in users.values()} == {0, 1}
    assert effects(queue) == {name: expected[fold_of(user, 2)][name] for name, user in users.items()}
    assert expected[0] != expected[1] != effects(whole)


def test_an_adapter_without_safetensors_is_refused(tmp_path: Path, sequences: Path, tiny_folder: Path) -> None:
    (tmp_path / "a").mkdir()
    order, _ = open_order(tmp_path / "s", sequences, tiny_folder, adapters=(str(tmp_path / "a"),))
    with pytest.raises(ModelError, match=r"there is no adapter_model\.safetensors"):
        work_alone(order, silent)


def effects(queue: ShardQueue) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for shard in queue.staging.finished():
        table = pq.read_table(queue.staging.folder / shard.path)
        found.update(zip(table["example_id"].to_pylist(), table["effect"].to_pylist(), strict=True))
    return found
