"""The stage `train`: the order for the training processes, and the adapter that they leave."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from nextquill_core.config import TrainConfig
from nextquill_core.config.lora import ALL_LINEAR
from nextquill_core.methods.registry import METHODS
from nextquill_core.orders import TrainOrder
from nextquill_core.pipeline.model_card import adapter_card
from nextquill_core.pipeline.run import Run
from nextquill_core.pipeline.step import Step
from nextquill_core.progress import Progress
from nextquill_core.training import curves
from nextquill_core.training.engines import configured
from nextquill_core.training.lora_targets import check_targets
from storage import Staging, write_text

Launch = Callable[[Path, Path], None]
"""Trains by the order at the first path; all output goes to the log at the second."""

CARD = "adapter/README.md"
LOGS = ("*.jsonl", "*.log", "checkpoints/**/*", "tensorboard/**/*", "wandb/**/*", "mlruns/**/*")
"""Files that describe the training and depend on when checkpoints were due. The result is the adapter alone."""


def build_adapter(run: Run, step: Step, staging: Staging, progress: Progress, *, launch: Launch) -> dict[str, Any]:
    """Train the adapter of a method or of a fold.

    Args:
        run: The run; sequences, base model and, where the method reads them, weights are in its store.
        step: One of `Plan.adapters`.
        staging: Folder of the new artifact.
        progress: Not used; `launch` reports the progress of the processes that it starts.
        launch: Starts the training processes and waits for them.

    Raises:
        ModelError: `train.lora.targets` names layers that the base model does not have.
    """
    name = run.plan.adapter_name(step)
    check_layers(run)
    order = staging.scratch / "order.json"
    train_order(run, name, staging.folder).save(order)
    launch(order, staging.path("train.log"))
    for path in sorted(path for pattern in LOGS for path in staging.folder.glob(pattern) if path.is_file()):
        staging.finish(path.relative_to(staging.folder).as_posix(), log=True)
    stats = _stats(run, name, staging.folder)
    write_text(staging.path(CARD), adapter_card(run, name, stats))
    staging.finish(CARD, log=True)  # it quotes the curves, which are logs too
    return stats


def _stats(run: Run, name: str, folder: Path) -> dict[str, Any]:
    """Return how a training ended, from the curves in its folder."""
    last = curves.read(folder / curves.METRICS)[-1]
    stats: dict[str, Any] = {
        "method": run.plan.recipe(name),
        "steps": last["steps"],
        "final": {key: last[key] for key in ("loss", "normal", "causal")},
        **{key: last[key] for key in ("clipped_share", "left_out_users", "left_out_examples") if key in last},
    }
    if validated := curves.read(folder / curves.VALIDATION):
        best = min(validated, key=curves.val_loss)
        kept = best if run.config.train.keep == "best" else validated[-1]
        stats["validation"] = {key: value for key, value in kept.items() if key != "first_example"}
    return stats


def check_layers(run: Run) -> None:
    """Make sure that the base model has the layers of `train.lora.targets`.

    Raises:
        ModelError: It does not.
        UserError: The base model is made here and has not been made.
    """
    if run.config.train.lora.targets != ALL_LINEAR:  # a base model that is made here may be missing
        check_targets(run.config.train.lora, run.model)


def fold_adapters(run: Run, effects: Step) -> tuple[Path, ...]:
    """Return the PEFT folders that score, by fold: the i-th has seen no example of users u with `fold_of(u, n)` = i.

    Under `effect_source: trained` it is one folder, whose adapter has seen all users.

    Args:
        run: The run.
        effects: The step that scores.

    Returns:
        The folders, none where the base model scores.

    Raises:
        UserError: An adapter has not been trained.
    """
    return tuple(run.artifact(source).folder / "adapter" for source in effects.inputs if source.kind == "train")


def trained_by(run: Run, name: str) -> TrainConfig:
    """Return the `train` section of an adapter: the configured one with the values that belong to its method."""
    training = METHODS[run.plan.recipe(name)].training
    if training is None:
        raise ValueError(f"{name} does not train")
    return training.settings(run.config.train)


def train_order(run: Run, name: str, output: Path) -> TrainOrder:
    """Return the worker's order for one adapter.

    Args:
        run: The configuration and its store.
        name: A key of `Plan.adapters`.
        output: Staging folder of the adapter.
    """
    step = run.plan.adapters[name]
    recipe, fold = step.settings["recipe"], step.settings.get("fold")
    settings = trained_by(run, name)
    return TrainOrder(
        output=output,
        sequences=run.artifact(run.plan.ingest).folder,
        effects=next((run.artifact(source).folder for source in step.inputs if source.kind == "score"), None),
        model=run.model,
        prompt=run.prompt if recipe["history"] else run.prompt.model_copy(update={"max_history": 0}),
        train=settings if recipe["causal"] else settings.model_copy(update={"alpha": 0.0}),
        seed=run.config.seed,
        weighted=recipe["weighted"],
        live_weights=step.settings.get("weights"),
        leave_out=(fold["leave_out"], fold["of"]) if fold else None,
        deepspeed_json=configured(settings, run.model.dtype),
        base=run.base_name,
    )
