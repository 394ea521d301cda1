"""Starting ranks: errors are told in full, progress is followed line by line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nextquill_core.model.identity import ModelSpec
from nextquill_core.training.spec import LoraSpec, PromptSpec, TrainSpec
from storage import UserError
from tasks.launch import Follower, RanksFailed, launch_command, run_ranks
from tasks.processes import process_count


def order(tmp_path: Path, model: str = "./nowhere", sequences: str = "nowhere") -> Path:
    spec = TrainSpec(
        output=str(tmp_path), sequences=sequences, effects=None, model=ModelSpec(model),
        prompt=PromptSpec(2, 512, 96, "plain"), lora=LoraSpec(4, 8, 0.0, "all-linear"), alpha=0.05,
        normalization="sequence", epochs=1, learning_rate=1e-3, weight_decay=0.0, warmup_ratio=0.0, max_grad_norm=1.0,
        global_batch=4, batch_tokens=1000, gradient_checkpointing=False, checkpoint_every=10, keep_checkpoints=1,
        zero_stage=2, seed=0,
    )  # fmt: skip
    path = tmp_path / "order.json"
    spec.save(path)
    assert TrainSpec.load(path) == spec
    return path


@pytest.mark.ranks
def test_a_rank_that_refuses_its_input_says_so_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^\./nowhere: cannot load it"):
        run_ranks(order(tmp_path), tmp_path / "log", ranks=1, on_step=lambda metrics: None)


@pytest.mark.ranks
def test_training_on_nothing_is_refused(tmp_path: Path, tiny_folder: Path) -> None:
    with pytest.raises(UserError, match="there is no train example"):
        run_ranks(order(tmp_path, str(tiny_folder)), tmp_path / "log", ranks=1, on_step=lambda metrics: None)


@pytest.mark.ranks
def test_a_rank_that_fails_leaves_its_last_lines(tmp_path: Path) -> None:
    broken = order(tmp_path)
    broken.write_text(broken.read_text().replace('"sequences"', '"sequence"'))
    with pytest.raises(RanksFailed, match=r"(?s)exit code 1; the log is .*unexpected keyword argument 'sequence'"):
        run_ranks(broken, tmp_path / "log", ranks=1, on_step=lambda metrics: None)


def test_the_command_names_ranks_and_order(tmp_path: Path) -> None:
    command = launch_command(tmp_path / "order.json", 3)
    assert command[1:3] == ["-m", "deepspeed.launcher.launch"]
    assert command[-3:] == ["--module", "nextquill_core.training.worker", str(tmp_path / "order.json")]


def test_auto_is_one_rank_without_accelerators() -> None:
    import torch

    assert process_count("auto") == max(1, torch.accelerator.device_count())
    assert process_count(3) == 3


def test_follower_hands_over_whole_lines_once_and_starts_over_when_the_file_shrinks(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    follower = Follower(path)
    seen: list[float] = []
    follow = lambda: follower.follow(lambda line: seen.append(line["step"]))  # noqa: E731
    follow()
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    follow()
    assert seen == [1, 2]
    with path.open("a") as file:
        file.write('ep": 3}\n')
    follow()
    follow()
    assert seen == [1, 2, 3]
    path.write_text(json.dumps({"step": 1}) + "\n")
    follow()
    assert seen == [1, 2, 3, 1]
