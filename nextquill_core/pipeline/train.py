"""Training: an order for the worker, and what is kept of its work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from nextquill_core.config import TrainConfig
from nextquill_core.methods.registry import METHODS
from nextquill_core.pipeline.model_card import adapter_card
from nextquill_core.pipeline.run import Outcome, Run
from nextquill_core.training import curves
from nextquill_core.training.deepspeed_config import configured
from nextquill_core.training.lora_targets import ALL_LINEAR, check_targets
from nextquill_core.training.spec import LoraSpec, PromptSpec, TrainSpec
from storage import Staging, write_text

Launch = Callable[[Path, Path], None]
"""Runs the order at the first path to its end; its output goes to the log at the second."""

CARD = "adapter/README.md"
LOGS = ("*.jsonl", "*.log", "checkpoints/**/*", "tensorboard/**/*", "wandb/**/*", "mlruns/**/*")
"""What tells how training went, and depends on when checkpoints were due; the adapter alone is what was made."""


def train(run: Run, name: str, launch: Launch, *, force: bool = False) -> Outcome:
    """The adapter of one method, or of one fold that scores.

    Args:
        run: The configuration and its store.
        name: A key of `Plan.adapters`: a method that trains, or `fold-0`, `task-0`, ...
        launch: Starts the ranks and waits for them.
        force: Train anew even if the adapter is fresh.
    """
    step = run.plan.adapters[name]

    def build(staging: Staging) -> dict[str, Any]:
        check_layers(run)
        order = staging.scratch / "order.json"
        train_spec(run, name, staging.folder).save(order)
        launch(order, staging.path("train.log"))
        for path in sorted(path for pattern in LOGS for path in staging.folder.glob(pattern) if path.is_file()):
            staging.finish(path.relative_to(staging.folder).as_posix(), log=True)
        last: dict[str, Any] = curves.read(staging.folder / curves.METRICS)[-1]
        stats: dict[str, Any] = {
            "method": run.plan.recipe(name),
            "steps": last["steps"],
            "final": {key: last[key] for key in ("loss", "normal", "causal")},
            **{key: last[key] for key in ("clipped_share", "left_out_users", "left_out_examples") if key in last},
        }
        if validated := curves.read(staging.folder / curves.VALIDATION):
            best = min(validated, key=lambda line: line["loss"])
            kept = best if run.config.train.keep == "best" else validated[-1]
            stats["validation"] = {key: value for key, value in kept.items() if key != "first_example"}
        write_text(staging.path(CARD), adapter_card(run, name, stats))
        staging.finish(CARD, log=True)  # tells of the training, as its curves do
        return stats

    return run.make(step, build, force=force)


def check_layers(run: Run) -> None:
    """Refuse `train.lora.targets` that the base model has not.

    Raises:
        ModelError: As `check_targets`.
        UserError: The offline base model is missing.
    """
    targets = run.config.train.lora.targets
    if targets != ALL_LINEAR:
        check_targets(targets, run.model_spec)


def fold_adapters(run: Run) -> tuple[str, ...]:
    """The PEFT folders that score, by fold: the i-th has seen no example of users u with `fold_of(u, n)` = i.

    Returns:
        Empty under `score.effect_source: initial`.

    Raises:
        UserError: One has not been trained.
    """
    return tuple(str(run.artifact(step).folder / "adapter") for step in run.plan.folds.values())


def trained_by(run: Run, name: str) -> TrainConfig:
    """The `train` section that an adapter is trained by: the configured one, with what belongs to its method."""
    training = METHODS[run.plan.recipe(name)].training
    if training is None:
        raise ValueError(f"{name} does not train")
    return training.settings(run.config.train)


def train_spec(run: Run, name: str, output: Path) -> TrainSpec:
    """The worker's order for one adapter: the same loop for all, told apart by the method's settings and the fold.

    Args:
        run: The configuration and its store.
        name: A key of `Plan.adapters`.
        output: Staging folder of the adapter.
    """
    step = run.plan.adapters[name]
    recipe = step.settings["recipe"]
    fold = step.settings.get("fold")
    config = run.config
    settings = trained_by(run, name)
    prompt = run.prompt_settings | ({} if recipe["history"] else {"max_history": 0})
    return TrainSpec(
        output=str(output),
        sequences=str(run.artifact(run.plan.ingest).folder),
        effects=next((str(run.artifact(source).folder) for source in step.inputs if source.kind == "score"), None),
        weighted=recipe["weighted"],
        model=run.model_spec,
        prompt=PromptSpec(**prompt),
        lora=LoraSpec(**settings.lora.model_dump()),
        alpha=settings.alpha if recipe["causal"] else 0.0,
        counterfactual_grad=settings.causal_loss.counterfactual_grad,
        causal_target=settings.causal_loss.target,
        causal_weighted=settings.causal_loss.weighted,
        live_weights=step.settings.get("weights"),
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
        checkpoint_minutes=settings.checkpoint_minutes,
        max_loss_ratio=settings.max_loss_ratio,
        val_every=settings.val_every,
        val_examples=settings.val_examples,
        keep=settings.keep,
        report_to=settings.report_to,
        zero_stage=settings.deepspeed.zero_stage,
        seed=config.seed,
        leave_out=(fold["leave_out"], fold["of"]) if fold else None,
        offload=settings.deepspeed.offload,
        deepspeed=configured(settings, run.model_spec.dtype),
        base=run.base_name,
    )
