"""Training: an order for the worker, and what is kept of its work."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nextquill_core.evaluation.methods import METHODS
from nextquill_core.stages.run import Outcome, Run
from nextquill_core.training.spec import LoraSpec, PromptSpec, TrainSpec
from storage import Staging

Launch = Callable[[Path, Path], None]
"""Runs the order at the first path to its end; its output goes to the log at the second."""


def train(run: Run, method: str, launch: Launch, *, force: bool = False) -> Outcome:
    """The adapter of one method.

    Args:
        run: The configuration and its store.
        method: A method that trains.
        launch: Starts the ranks and waits for them.
        force: Train anew even if the adapter is fresh.
    """
    step = run.plan.train[method]

    def build(staging: Staging) -> dict[str, Any]:
        order = staging.scratch / "order.json"
        train_spec(run, method, staging.folder).save(order)
        launch(order, staging.path("train.log"))
        for name in ("metrics.jsonl", "train.log"):
            staging.finish(name, log=True)
        curve = (staging.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        last = json.loads(curve[-1])
        return {
            "method": method,
            "steps": last["steps"],
            "final": {key: last[key] for key in ("loss", "normal", "causal")},
        }

    return run.make(step, build, force=force)


def train_spec(run: Run, method: str, output: Path) -> TrainSpec:
    """The worker's order for one method: the same loop for all, four settings."""
    row = METHODS[method]
    training = row.training
    if training is None:
        raise ValueError(f"{method} does not train")
    config = run.config
    settings = config.train
    prompt = run.prompt_settings | ({} if row.history else {"max_history": 0})
    return TrainSpec(
        output=str(output),
        sequences=str(run.artifact(run.plan.ingest).folder),
        effects=str(run.artifact(run.plan.score).folder) if training.weighted else None,
        model=run.model_spec,
        prompt=PromptSpec(**prompt),
        lora=LoraSpec(**settings.lora.model_dump()),
        alpha=settings.alpha if training.causal else 0.0,
        normalization=settings.normalization,
        epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        warmup_ratio=settings.warmup_ratio,
        max_grad_norm=settings.max_grad_norm,
        global_batch=settings.global_batch,
        batch_tokens=settings.batch_tokens,
        gradient_checkpointing=settings.gradient_checkpointing,
        checkpoint_every=settings.checkpoint_every,
        keep_checkpoints=settings.keep_checkpoints,
        zero_stage=settings.deepspeed.zero_stage,
        seed=config.seed,
    )
