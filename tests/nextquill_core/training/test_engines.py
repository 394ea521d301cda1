"""Training without DeepSpeed, and DeepSpeed's configuration: what is ordered, over what the user's own JSON says."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from nextquill_core.config import TrainConfig
from nextquill_core.errors import UserError
from nextquill_core.training.engines import (
    PlainEngine,
    configured,
    connect,
    deepspeed_config,
    deepspeed_installed,
    engine_for,
)
from tasks.ranks.launch import run_ranks
from tests.orders import changed, train_order
from tests.tasks.ranks.test_launch import adapter, curve, four_users, one_rank, same, write_order

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


@pytest.mark.usefixtures("without_deepspeed")
def test_a_torch_for_cuda_trains_on_the_cpu_where_there_is_no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    def of_such_a_torch(check_available: bool = False) -> torch.device | None:
        return None if check_available else torch.device("cuda")

    monkeypatch.setattr(torch.accelerator, "current_accelerator", of_such_a_torch)
    try:
        assert connect() == torch.device("cpu")
    finally:
        torch.distributed.destroy_process_group()


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
        (1, {"deepspeed": {"zero_stage": 3}}, "ZeRO 3"),
        (1, {"deepspeed": {"offload": "optimizer"}}, "offloading"),
        (1, {"deepspeed_json": {}}, r"train\.deepspeed\.config"),
    ],
)
def test_what_only_deepspeed_does_is_refused(
    tmp_path: Path, ranks: int, changes: dict[str, object], needs: str
) -> None:
    path = write_order(tmp_path, tmp_path, tmp_path, **changes)
    with pytest.raises(UserError, match=rf"^train: {needs} needs? DeepSpeed, .*pip install 'nextquill\[deepspeed\]'"):
        run_ranks(path, tmp_path / "log", ranks=ranks, on_step=lambda metrics: None)


@pytest.mark.usefixtures("without_deepspeed")
def test_float16_is_refused_without_loss_scaling(tmp_path: Path) -> None:
    order = changed(train_order(tmp_path), model={"dtype": "float16"})
    module = torch.nn.Linear(1, 1)
    with pytest.raises(UserError, match=r"model\.dtype: float16 needs DeepSpeed"):
        engine_for(module, order, module.weight)


def test_two_parts_of_a_step_are_clipped_and_stepped_together() -> None:
    """With w = 1 and loss 3w + w: gradient 4, clipped to 2; plain gradient descent with rate 0.1 leaves 1 - 0.2."""
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


def read(path: Path, document: Any, **changes: Any) -> dict[str, Any]:
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    own = configured(TrainConfig(deepspeed={"config": str(path), **changes}), "bfloat16")
    assert own is not None
    return own


def test_the_micro_batches_are_ours_and_so_is_clipping(tmp_path: Path) -> None:
    config = deepspeed_config(changed(train_order(tmp_path), max_grad_norm=0.3, model={"dtype": "bfloat16"}))
    assert (config["train_micro_batch_size_per_gpu"], config["gradient_accumulation_steps"]) == (1, 1)
    assert config["gradient_clipping"] == 0.3
    assert (config["bf16"]["enabled"], config["fp16"]["enabled"]) == (True, False)
    assert config["zero_optimization"] == {"stage": 2}


@pytest.mark.parametrize(
    ("offload", "sections"),
    [("none", set()), ("optimizer", {"offload_optimizer"}), ("parameters", {"offload_optimizer", "offload_param"})],
)
def test_offloading_is_to_the_host_unless_the_file_names_another_place(
    tmp_path: Path, offload: str, sections: set[str]
) -> None:
    order = train_order(tmp_path, deepspeed={"zero_stage": 3, "offload": offload})
    zero = deepspeed_config(order)["zero_optimization"]
    assert zero == {"stage": 3, **{section: {"device": "cpu"} for section in sections}}
    own = {"zero_optimization": {"offload_param": {"device": "nvme", "nvme_path": "/disk"}}}
    zero = deepspeed_config(changed(order, deepspeed_json=own))["zero_optimization"]
    assert zero["offload_param"] == {"device": "nvme", "nvme_path": "/disk"}


def test_a_file_as_transformers_users_have_it_is_laid_under_ours(tmp_path: Path) -> None:
    own = read(
        tmp_path / "ds.json",
        {
            "train_batch_size": "auto",
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
            "gradient_clipping": 1.0,
            "bf16": {"enabled": "auto"},
            "zero_optimization": {"stage": 2, "reduce_bucket_size": "auto", "overlap_comm": True},
            "wall_clock_breakdown": True,
        },
    )
    assert own == {"zero_optimization": {"stage": 2, "overlap_comm": True}, "wall_clock_breakdown": True}
    config = deepspeed_config(train_order(tmp_path, deepspeed_json=own))
    assert config["zero_optimization"] == own["zero_optimization"]
    assert config["wall_clock_breakdown"] is True
    assert config["gradient_accumulation_steps"] == 1


@pytest.mark.parametrize(
    ("document", "changes", "named"),
    [
        ({"optimizer": {"type": "Lamb"}, "scheduler": {}}, {}, "optimizer, scheduler"),
        ({"gradient_accumulation_steps": 4}, {}, "gradient_accumulation_steps"),
        ({"train_batch_size": 32}, {}, "train_batch_size"),
        ({"gradient_clipping": 0.5}, {}, "gradient_clipping"),
        ({"fp16": {"enabled": True}}, {}, "fp16.enabled"),
        ({"zero_optimization": {"stage": 3}}, {}, "zero_optimization.stage"),
        ({"zero_optimization": {"zero_quantized_weights": True}}, {}, "zero_optimization.zero_quantized_weights"),
        ({"zero_optimization": True}, {}, "zero_optimization"),
        ({"zero_optimisation": {}}, {}, "zero_optimisation"),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "none"}}},
            {"offload": "optimizer"},
            "zero_optimization.offload_optimizer.device",
        ),
        (
            {"zero_optimization": {"offload_optimizer": None}},
            {"offload": "optimizer"},
            "zero_optimization.offload_optimizer",
        ),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    tmp_path: Path, document: Any, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path / "ds.json", document, **changes)
    assert str(caught.value).startswith(f"{tmp_path}/ds.json: cannot honour {named}; ")


@pytest.mark.parametrize(("document", "fault"), [("{", "cannot read it: "), ("[]", "it is not a JSON object")])
def test_a_file_that_is_no_json_object(tmp_path: Path, document: str, fault: str) -> None:
    with pytest.raises(UserError, match=rf"ds\.json: {fault}.*; check train\.deepspeed\.config"):
        read(tmp_path / "ds.json", document)
