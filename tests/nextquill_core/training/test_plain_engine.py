"""Training where DeepSpeed is not installed: one process, the same curve, and a refusal of what only DeepSpeed does."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nextquill_core.errors import UserError
from nextquill_core.model.identity import ModelSpec
from nextquill_core.training.engine import deepspeed_installed, engine_for
from nextquill_core.training.plain_engine import PlainEngine
from nextquill_core.training.spec import TrainSpec
from tasks.ranks.launch import run_ranks
from tests.tasks.ranks.test_launch import adapter, curve, four_users, one_rank, order, same, write_order

__all__ = ["four_users", "one_rank"]  # fixtures


@pytest.fixture
def without_deepspeed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine that does not have it, here and in every process that is started from here."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text("import sys\nsys.modules['deepspeed'] = None\n")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    assert not deepspeed_installed()


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.usefixtures("without_deepspeed")
def test_the_curve_is_that_of_one_deepspeed_rank_and_survives_a_kill(
    tmp_path: Path, tiny_folder: Path, four_users: Path, one_rank: list[tuple[float, float]]
) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert same(curve(whole, 1, tiny_folder, four_users, checkpoint_every=2), one_rank)
    # What a run that was killed behind its second step has left: the checkpoint, and no adapter.
    resumed.mkdir()
    (whole / "scratch").rename(resumed / "scratch")
    (resumed / "metrics.jsonl").write_text("".join((whole / "metrics.jsonl").read_text().splitlines(True)[:2]))
    path = write_order(resumed, tiny_folder, four_users, checkpoint_every=2)
    seen: list[float] = []
    run_ranks(path, resumed / "log", ranks=1, on_step=lambda metrics: seen.append(metrics["step"]))
    assert adapter(resumed) == adapter(whole)
    assert seen[-1] == 3
    assert "step-000002" in {state.name for state in (resumed / "scratch" / "states").iterdir()}


@pytest.mark.usefixtures("without_deepspeed")
@pytest.mark.parametrize(
    ("ranks", "changes", "needs"),
    [
        (2, {}, "several ranks"),
        (1, {"zero_stage": 3}, "ZeRO 3"),
        (1, {"offload": "optimizer"}, "offloading"),
        (1, {"deepspeed": {}}, r"train\.deepspeed\.config"),
    ],
)
def test_what_only_deepspeed_does_is_refused(
    tmp_path: Path, ranks: int, changes: dict[str, object], needs: str
) -> None:
    path = write_order(tmp_path, tmp_path, tmp_path, **changes)
    with pytest.raises(UserError, match=rf"^train: {needs} needs? DeepSpeed, .*pip install 'nextquill\[deepspeed\]'"):
        run_ranks(path, tmp_path / "log", ranks=ranks, on_step=lambda metrics: None)


@pytest.mark.usefixtures("without_deepspeed")
def test_half_precision_is_refused_for_want_of_loss_scaling(tmp_path: Path) -> None:
    spec = replace(TrainSpec.load(order(tmp_path)), model=ModelSpec("m", dtype="float16"))
    module = torch.nn.Linear(1, 1)
    with pytest.raises(UserError, match=r"model\.dtype: float16 needs DeepSpeed"):
        engine_for(module, spec, module.weight)


def test_two_parts_of_a_step_are_clipped_and_stepped_together() -> None:
    """w = 1, loss 3w + w: gradient 4, clipped to 2; plain gradient descent with rate 0.1 leaves 1 - 0.2."""
    module = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(module.weight)
    engine = PlainEngine(module, torch.optim.SGD(module.parameters(), lr=0.1), max_grad_norm=2.0)
    for factor, last in ((3.0, False), (1.0, True)):
        engine.set_gradient_accumulation_boundary(last)
        engine.backward(engine(torch.tensor([[factor]])).sum())
        engine.step()
        assert (float(module.weight) == 1.0) is not last
    assert engine.get_global_grad_norm() == 4.0
    assert float(module.weight) == pytest.approx(0.8, abs=1e-6)
    assert module.weight.grad is None
