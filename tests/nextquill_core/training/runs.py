"""Training runs by real ranks on four users, and what they leave."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from nextquill_core.orders import TrainOrder
from tasks.ranks.launch import run_ranks
from tests.nextquill_core.ingest.world import World, plain_category
from tests.orders import changed, train_order
from tests.tasks.processes import workers_of

STEPS = 40
SETTINGS: dict[str, Any] = {
    "epochs": STEPS // 2, "global_batch": 2, "checkpoint_every": 5, "keep_checkpoints": 2, "learning_rate": 1e-2,
    "lora": {"dropout": 0.1},
}  # fmt: skip


def sequences(folder: Path, change: Callable[[dict[str, Any]], None] = lambda row: None) -> Path:
    """The ingest artifact of four users with one example a split, each raw review changed."""
    reviews, items = plain_category()
    for row in reviews:
        change(row)
    folder.mkdir(parents=True, exist_ok=True)
    world = World(folder)
    world.ingest(reviews, items)
    return world.out


def ordered(folder: Path, model: Path, source: Path, **changes: Any) -> TrainOrder:
    # Return an order of 40 steps in `folder`; two runs of it are equal to the last bit.
    folder.mkdir(parents=True, exist_ok=True)
    return changed(train_order(folder, str(model), source, **SETTINGS), **changes)


def train(
    order: TrainOrder, *, ranks: int = 2, on_step: Callable[[dict[str, float]], None] = lambda line: None
) -> None:
    # Run an order to its end, or resume it.
    folder = order.output
    (folder / "scratch").mkdir(exist_ok=True)
    order.save(folder / "scratch" / "order.json")
    run_ranks(folder / "scratch" / "order.json", folder / "train.log", ranks=ranks, on_step=on_step)


def adapter(order: TrainOrder) -> bytes:
    return Path(order.output, "adapter", "adapter_model.safetensors").read_bytes()


def weights(order: TrainOrder) -> Any:
    """All weights of the adapter in one vector."""
    tensors = load_file(Path(order.output, "adapter", "adapter_model.safetensors"))
    return np.concatenate([tensors[name].ravel() for name in sorted(tensors)])


def curve(order: TrainOrder, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(order.output, name).read_text().splitlines()]


def losses(order: TrainOrder) -> list[float]:
    return [line["loss"] for line in curve(order)]


def checkpoints(order: TrainOrder) -> list[str]:
    return sorted(path.name for path in Path(order.output, "checkpoints").glob("step-*"))


def processes(order: TrainOrder) -> tuple[int, list[int]]:
    """The launcher and its ranks."""
    found = workers_of(order.output)
    launchers = [pid for pid in found if "launcher" in Path(f"/proc/{pid}/cmdline").read_text()]
    return launchers[0], sorted(set(found) - set(launchers))


class Kill:
    """SIGKILLs a process of a run once there is a checkpoint; give it to `train` as `on_step`."""

    def __init__(self, order: TrainOrder, victim: str) -> None:
        self.order = order
        self.victim = victim
        self.at = 0.0

    def __call__(self, line: dict[str, float]) -> None:
        if not self.at and Path(self.order.output, "scratch", "states", "latest").is_file() and line["step"] < STEPS:
            launcher, ranks = processes(self.order)
            self.at = line["step"]
            os.kill(launcher if self.victim == "launcher" else ranks[-1], signal.SIGKILL)
