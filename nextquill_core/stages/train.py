"""Training: an order for the worker, and what is kept of its work."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nextquill_core.plan import FOLD_METHOD, Step
from nextquill_core.stages.run import Outcome, Run
from nextquill_core.training.spec import LoraSpec, PromptSpec, TrainSpec
from storage import Staging

Launch = Callable[[Path, Path], None]
"""Runs the order at the first path to its end; its output goes to the log at the second."""


def train(run: Run, name: str, launch: Launch, *, force: bool = False) -> Outcome:
    """The adapter of one method, or of one fold that scores.

    Args:
        run: The configuration and its store.
        name: A key of `Plan.adapters`: a method that trains, or `fold-0`, ...
        launch: Starts the ranks and waits for them.
        force: Train anew even if the adapter is fresh.
    """
    step = run.plan.adapters[name]

    def build(staging: Staging) -> dict[str, Any]:
        order = staging.scratch / "order.json"
        train_spec(run, step, staging.folder).save(order)
        launch(order, staging.path("train.log"))
        for file in ("metrics.jsonl", "train.log"):
            staging.finish(file, log=True)
        curve = (staging.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        last = json.loads(curve[-1])
        return {
            "method": FOLD_METHOD if name in run.plan.folds else name,
            "steps": last["steps"],
            "final": {key: last[key] for key in ("loss", "normal", "causal")},
            **{key: last[key] for key in ("left_out_users", "left_out_examples") if key in last},
        }

    return run.make(step, build, force=force)


def fold_adapters(run: Run) -> tuple[str, ...]:
    """The PEFT folders that score, by fold: the i-th has seen no example of users u with `fold_of(u, n)` = i.

    Returns:
        Empty under `score.effect_source: initial`.

    Raises:
        UserError: One has not been trained.
    """
    return tuple(str(run.artifact(step).folder / "adapter") for step in run.plan.folds.values())


def train_spec(run: Run, step: Step, output: Path) -> TrainSpec:
    """The worker's order for one train step: the same loop for all, told apart by the step's recipe and fold."""
    recipe = step.settings["recipe"]
    fold = step.settings.get("fold")
    config = run.config
    settings = config.train
    prompt = run.prompt_settings | ({} if recipe["history"] else {"max_history": 0})
    return TrainSpec(
        output=str(output),
        sequences=str(run.artifact(run.plan.ingest).folder),
        effects=str(run.artifact(run.plan.score).folder) if recipe["weighted"] else None,
        model=run.model_spec,
        prompt=PromptSpec(**prompt),
        lora=LoraSpec(**settings.lora.model_dump()),
        alpha=settings.alpha if recipe["causal"] else 0.0,
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
        leave_out=(fold["leave_out"], fold["of"]) if fold else None,
    )
