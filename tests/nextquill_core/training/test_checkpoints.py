"""A killed run resumes as if it had never been stopped, on any number of ranks and any ZeRO stage.

A full disk costs no checkpoint.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from nextquill_core.config import LoraSettings
from nextquill_core.errors import ModelError, UserError
from nextquill_core.model.loading import ADAPTER_FILE
from nextquill_core.orders import TrainOrder
from nextquill_core.training.checkpoints import Checkpoints, check_loads, example_loss, holds_weights, save_adapter
from nextquill_core.training.engines import PlainEngine
from nextquill_core.training.losses import Denominators, PreferenceLoss
from nextquill_core.training.ranks import Writer
from tasks.ranks.launch import RanksFailed
from tests.models import lora_model, small_model
from tests.nextquill_core.training import runs
from tests.nextquill_core.training.runs import Kill, adapter, checkpoints, curve, losses, sequences, train, weights
from tests.nextquill_core.training.test_losses import EXAMPLES, ORDER
from tests.orders import changed
from tests.tasks.processes import workers_of

STEPS = 20


def ordered(folder: Path, model: Path, source: Path, **changes: Any) -> TrainOrder:
    return runs.ordered(folder, model, source, **{"epochs": STEPS // 2, **changes})


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sequences(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def whole(tiny_folder: Path, source: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainOrder:
    # A run that nothing has stopped: two ranks, ZeRO-2.
    order = ordered(tmp_path_factory.mktemp("whole"), tiny_folder, source)
    train(order)
    return order


def broken_off(order: TrainOrder, victim: str = "rank") -> int:
    """Start a run and kill it; returns the step that its newest checkpoint was made at."""
    kill = Kill(order, victim)
    with pytest.raises(RanksFailed):
        train(order, on_step=kill)
    deadline = time.monotonic() + 10
    while workers_of(order.output) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not workers_of(order.output), "a process outlived the run"
    newest = Path(order.output, "scratch", "states", "latest").read_text()
    assert 0 < kill.at < STEPS
    return int(newest.removeprefix("step-"))


@pytest.mark.ranks
@pytest.mark.slow
def test_every_step_stands_once_and_the_newest_checkpoints_stay(whole: TrainOrder) -> None:
    lines = curve(whole)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert checkpoints(whole) == ["step-000010", "step-000015"]
    assert all(line["memory_gb"] > 0.05 for line in lines)
    assert lines[-1]["remaining_seconds"] == 0 < lines[0]["remaining_seconds"]
    assert not list(whole.output.rglob("*.bin")) + list(whole.output.rglob("*.pt")), "nothing is pickled"


@pytest.mark.ranks
@pytest.mark.parametrize("victim", ["rank", pytest.param("launcher", marks=pytest.mark.slow)])
def test_killed_and_resumed_is_as_if_never_stopped(
    whole: TrainOrder, tiny_folder: Path, source: Path, tmp_path: Path, victim: str
) -> None:
    order = ordered(tmp_path, tiny_folder, source)
    newest = broken_off(order, victim)
    # A kill during writing leaves a half-made checkpoint, half a line and a state that `latest` does not name.
    for leftover in ("checkpoints/.step-000019.unfinished", "scratch/states/.step-000019.unfinished"):
        (tmp_path / leftover).mkdir()
    shutil.copytree(tmp_path / "scratch/states" / f"step-{newest:06d}", tmp_path / "scratch/states/step-000019")
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3')
    train(order)
    assert losses(order) == losses(whole)
    assert [line["step"] for line in curve(order)] == list(range(1, STEPS + 1))
    assert adapter(order) == adapter(whole)
    assert checkpoints(order) == checkpoints(whole)
    assert not list(tmp_path.rglob("*.unfinished"))


@pytest.mark.ranks
@pytest.mark.slow
def test_time_makes_checkpoints_too(tiny_folder: Path, source: Path, tmp_path: Path) -> None:
    order = ordered(tmp_path, tiny_folder, source, epochs=2, checkpoint_every=1000, checkpoint_minutes=1e-6)
    train(order)
    assert checkpoints(order) == ["step-000002", "step-000003"], "after every step; the end needs none"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.ranks
@pytest.mark.slow
def test_a_full_disk_ends_the_run_in_one_line_and_costs_no_checkpoint(
    whole: TrainOrder, tiny_folder: Path, source: Path, small_disk: Path
) -> None:
    order = ordered(small_disk / "run", tiny_folder, source)
    filler = small_disk / "filler"

    def fill(line: dict[str, float]) -> None:
        if checkpoints(order) and not filler.exists():
            free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
            filler.write_bytes(b"x" * (free - 20_000))

    with pytest.raises(UserError) as caught:
        train(order, on_step=fill)
    kept = checkpoints(order)
    newest = int(kept[-1].removeprefix("step-"))
    message = str(caught.value)
    assert message.startswith(f"{order.output}: cannot write a checkpoint, which needs 0.")
    assert message.endswith(
        " MB: No space left on device; free space there and run the same command again; "
        f"training resumes after step {newest}"
    )
    assert not list(small_disk.rglob("*.unfinished"))
    filler.unlink()
    train(order)
    assert adapter(order) == adapter(whole)
    assert losses(order) == losses(whole)


class Loaded:
    """A small PEFT model with its own weights, in an engine of one process."""

    def __init__(self, folder: Path, targets: Any) -> None:
        layers = LoraSettings(targets=targets).target_modules
        model = lora_model(small_model("qwen2"), target_modules=layers, lora_dropout=0.5)
        module = PreferenceLoss(model, ORDER, "plain")
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.engine = PlainEngine(module, torch.optim.AdamW(trained), max_grad_norm=1.0)
        self.engine.train()
        self.folder = folder
        self.expected = example_loss(self.engine, EXAMPLES[0])
        save_adapter(self.engine, folder, Writer(folder.parent, "cpu"))

    def check(self) -> None:
        check_loads(self.engine, self.folder, EXAMPLES[0], self.expected)

    def rewrite(self, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
        tensors = load_file(self.folder / ADAPTER_FILE)
        change(tensors)
        save_file(tensors, self.folder / ADAPTER_FILE)


def test_the_newest_checkpoints_stay_after_a_million_steps_too(alone: None, tmp_path: Path) -> None:
    engine = Loaded(tmp_path / "adapter", "q_proj").engine
    written = Checkpoints(engine, Writer(tmp_path, "cpu"), keep=2)
    written.resume(lambda: None)
    engine.backward(engine((EXAMPLES[0],), Denominators(1.0, 1.0)).loss)
    engine.step()  # an optimizer that has stepped has a state to store
    for step in (999_998, 999_999, 1_000_000):
        written.write(step)
    assert sorted(path.name for path in written.adapters.iterdir()) == ["step-1000000", "step-999999"]
    assert written.resume(lambda: None) == 1_000_000
    (written.states / "latest").write_text("?")
    with pytest.raises(UserError, match=r"/latest: the stored value has an unexpected form .*--force$"):
        written.resume(lambda: None)


REGEX = r".*\.(q_proj|v_proj)"


@pytest.mark.parametrize("targets", [REGEX, ("v_proj", "q_proj"), "q_proj", "all-linear"])
def test_an_adapter_is_loaded_back_whatever_its_targets(alone: None, tmp_path: Path, targets: Any) -> None:
    loaded = Loaded(tmp_path / "adapter", targets)
    loaded.check()
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    if targets != "all-linear":
        assert config["target_modules"] == LoraSettings(targets=targets).target_modules
    assert example_loss(loaded.engine, EXAMPLES[0]) == pytest.approx(loaded.expected, rel=1e-5)


def letters(folder: Path) -> None:
    """What was once written of a regular expression: the list of its letters."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"target_modules": sorted(set(REGEX))}))


def test_an_adapter_that_does_not_come_back_as_it_was_is_refused(alone: None, tmp_path: Path) -> None:
    loaded = Loaded(tmp_path / "a", REGEX)
    assert holds_weights(loaded.engine.module.model, tmp_path / "a")
    letters(tmp_path / "a")
    with pytest.raises(ModelError, match=r"/a: PEFT cannot load the adapter \(.*Target modules .* not found"):
        loaded.check()
    other = Loaded(tmp_path / "b", REGEX)
    other.rewrite(lambda tensors: [tensor.zero_() for name, tensor in tensors.items() if "lora_B" in name])
    with pytest.raises(ModelError, match=r"/b: as PEFT loads it, .* has log-likelihood -[\d.]+; in training -[\d.]+;"):
        other.check()


def test_weights_that_are_missing_empty_or_changed_are_seen(alone: None, tmp_path: Path) -> None:
    def empty(tensors: dict[str, torch.Tensor]) -> None:  # as ZeRO-3 leaves what it has not gathered
        tensors[next(iter(tensors))] = torch.empty(0)

    for number, change in enumerate((lambda tensors: tensors.popitem(), empty, lambda t: t[next(iter(t))].add_(1e-3))):
        loaded = Loaded(tmp_path / str(number), "all-linear")
        model = loaded.engine.module.model
        assert holds_weights(model, loaded.folder)
        loaded.rewrite(change)
        assert not holds_weights(model, loaded.folder)


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "dtype"), [(0, "float32"), (1, "float32"), (3, "float32"), (0, "bfloat16"), (2, "bfloat16")]
)
def test_every_zero_stage_resumes_exactly(
    tiny_folder: Path, source: Path, tmp_path: Path, stage: int, dtype: str
) -> None:
    steady, broken = (ordered(tmp_path / name, tiny_folder, source, deepspeed={"zero_stage": stage}) for name in "ab")
    steady, broken = (changed(order, model={"dtype": dtype}) for order in (steady, broken))
    train(steady)
    broken_off(broken)
    train(broken)
    assert losses(broken) == losses(steady)
    assert adapter(broken) == adapter(steady)


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "stage"), [(1, 2), (3, 3), (1, 0)])
def test_a_run_resumes_under_another_number_of_ranks_and_zero_stage(
    tiny_folder: Path, source: Path, tmp_path: Path, ranks: int, stage: int
) -> None:
    # Without dropout, whose masks follow the micro-batches, so that only rounding is left.
    steady, broken = (ordered(tmp_path / name, tiny_folder, source, lora={"dropout": 0.0}) for name in "ab")
    train(steady)
    newest = broken_off(broken)
    train(changed(broken, deepspeed={"zero_stage": stage}), ranks=ranks)
    assert losses(broken)[:newest] == losses(steady)[:newest]
    assert losses(broken) == pytest.approx(losses(steady), rel=1e-3)
    difference = np.abs(weights(broken) - weights(steady)).max()
    assert difference < 1e-3 < np.abs(weights(steady)).max()
