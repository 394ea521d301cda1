"""Stages for real and without Prefect: a step is made after everything that it is made from."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from nextquill_core.orders import TrainOrder
from nextquill_core.pipeline import Step, lineage
from nextquill_core.pipeline.run import Build, Outcome, Run
from nextquill_core.pipeline.train import Launch
from storage import Staging


def make(run: Run, *steps: Step | None, launch: Launch | None = None) -> Outcome:
    """Make steps and their inputs in this process, and return the outcome of the last one.

    Args:
        run: The run.
        steps: The steps; None, for a base model that the configuration does not train, is left out.
        launch: Trains adapters; by default `plain`.
    """
    options: dict[str, dict[str, Any]] = {"train": {"launch": launch or plain}}
    outcomes = [run.make(step, **options.get(step.kind, {})) for step in lineage(*filter(None, steps))]
    return outcomes[-1]


def table(*values: int) -> Build:
    """Return a function that builds a stand-in for any artifact: one table with these values."""

    def build(staging: Staging) -> dict[str, Any]:
        staging.write_table("0.parquet", pa.table({"x": list(values)}))
        return {}

    return build


def plain(order: Path, log: Path) -> None:
    """Train in this process, as a machine without DeepSpeed does; a rank's process needs ten seconds of imports."""
    import torch

    from nextquill_core.training import engines
    from nextquill_core.training.worker import train

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines, "deepspeed_installed", lambda: False)
        try:
            train(TrainOrder.load(order))
        finally:
            torch.distributed.destroy_process_group()


def untrained(order: Path, log: Path, seed: int = 0) -> None:
    """Write an adapter with random weights in both of LoRA's matrices, in place of training."""
    import torch
    from peft import LoraConfig, get_peft_model

    from nextquill_core.model.loading import load_model
    from nextquill_core.training.checkpoints import write_adapter

    given = TrainOrder.load(order)
    torch.manual_seed(seed)
    lora = LoraConfig(
        r=given.train.lora.r, lora_alpha=given.train.lora.alpha, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    model = get_peft_model(load_model(given.model, torch.device("cpu")), lora)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    output = given.output
    write_adapter(model, output / "adapter", given.base)
    line = {"step": 3, "steps": 3, "loss": 2.5, "normal": 2.25, "causal": 0.25, "seconds": 1.0}
    (output / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    measured = [{"step": step, "loss": loss, "nll": 4.5, "examples": 20} for step, loss in ((2, 2.0), (3, 2.75))]
    (output / "val.jsonl").write_text("".join(json.dumps(found) + "\n" for found in measured))
    log.write_text("")


def ranks(count: int) -> Launch:
    """Return a launch that trains with this number of ranks of this machine."""
    from tasks.ranks.launch import run_ranks

    return partial(run_ranks, ranks=count, on_step=lambda metrics: None)
