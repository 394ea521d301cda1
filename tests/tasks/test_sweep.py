"""Slots of a sweep: whose devices are whose, and which points may run side by side."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from nextquill_core.config import LauncherConfig
from nextquill_core.pipeline.run import Run
from nextquill_core.pipeline.sweep_points import Point, open_points
from nextquill_core.studies.sweep import parse_grid
from tasks.ranks.node import launcher_command
from tasks.sweep import shared_missing, slot_environment, slots, startable
from tests.world import small_config


def give_devices(monkeypatch: pytest.MonkeyPatch, count: int, named: str | None = None) -> None:
    """As many CUDA devices as a machine could have; this one need not have any."""
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: count)
    if named is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)


@pytest.mark.parametrize(
    ("count", "named", "parallel", "expected"),
    [
        (8, None, 4, ["0,1", "2,3", "4,5", "6,7"]),
        (4, "4,5,6,7", 2, ["4,5", "6,7"]),
        (2, "GPU-a,GPU-b", 3, ["GPU-a", "GPU-b", "GPU-a"]),
        (3, None, 2, ["0", "1"]),
    ],
)
def test_slots_share_the_devices_out(
    monkeypatch: Any, count: int, named: str | None, parallel: int, expected: list[str]
) -> None:
    give_devices(monkeypatch, count, named)
    found = [slot_environment(slot, parallel)["CUDA_VISIBLE_DEVICES"] for slot in range(parallel)]
    assert found == expected


def test_without_a_device_only_cores_are_shared(monkeypatch: Any) -> None:
    give_devices(monkeypatch, 0)
    assert "CUDA_VISIBLE_DEVICES" not in slot_environment(0, 2)
    assert int(slot_environment(0, 1000)["OMP_NUM_THREADS"]) == 1


def test_a_group_of_accelerators_takes_one_point(monkeypatch: Any) -> None:
    give_devices(monkeypatch, 8)
    assert slots(LauncherConfig()) == 1, "auto uses all of them for one training"
    assert slots(LauncherConfig(processes=2)) == 4
    assert slots(LauncherConfig(kind="slurm")) == 1
    give_devices(monkeypatch, 0)
    assert slots(LauncherConfig(processes=2)) == 1


def world_of(command: list[str]) -> Any:
    [info] = [part.partition("=")[2] for part in command if part.startswith("--world_info=")]
    return json.loads(base64.urlsafe_b64decode(info))


def test_ranks_stay_on_the_devices_of_their_slot(monkeypatch: Any) -> None:
    give_devices(monkeypatch, 2, "6,7")
    assert world_of(launcher_command(Path("order"), {"localhost": 2}, 0, "127.0.0.1", 1)) == {"localhost": ["6", "7"]}
    assert world_of(launcher_command(Path("order"), {"a": 2, "b": 1}, 1, "a", 1)) == {"a": [0, 1], "b": ["6"]}
    give_devices(monkeypatch, 0)
    assert world_of(launcher_command(Path("order"), {"localhost": 2}, 0, "127.0.0.1", 1)) == {"localhost": [0, 1]}


def test_points_wait_for_what_another_one_makes(small_world: Path, tmp_path: Path) -> None:
    grid = parse_grid(["train.alpha=0.1,0.2", "weights.high=0.7,0.9"])
    points: list[Point] = open_points(small_config(small_world, tmp_path), grid, Run)
    assert startable(points, [0, 1, 2, 3], []) == [0], "all need the same sequences first"
    assert startable(points, [1, 2, 3], [0]) == []
    assert shared_missing(points)


def test_points_that_share_nothing_missing_start_together(small_world: Path, tmp_path: Path) -> None:
    alone = {"methods": ["nextquill"], "decoding": ["paper"]}  # what `sane` is would be chosen for all points together
    config = small_config(small_world, tmp_path, evaluate=alone)
    points = open_points(config, parse_grid(["train.alpha=0.1,0.2", "weights.high=0.7,0.9"]), Run)
    run, plan = points[0].run, points[0].run.plan
    assert plan.model is not None
    for step in (*plan.scans.values(), plan.ingest, plan.model, plan.effects):  # what all of them share
        run.make(step, lambda staging: {})
    assert not shared_missing(points)
    assert startable(points, [0, 1, 2, 3], []) == [0, 1], "2 and 3 need the weights that 0 and 1 derive"
    assert startable(points, [2, 3], [0]) == [3]
