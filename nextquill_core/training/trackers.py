"""Where a run can be watched besides its own files: TensorBoard, Weights & Biases, MLflow."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nextquill_core.errors import UserError

PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}
COUNTERS = frozenset({"step", "steps", "examples", "left_out_users", "left_out_examples", "first_example"})

Log = Callable[[Mapping[str, float], int], None]
"""Takes named numbers and the step they belong to."""


def check_packages(report_to: Sequence[str]) -> None:
    """Refuse a run that could not be watched as asked, before it has begun.

    Raises:
        UserError: A package is missing.
    """
    for name in report_to:
        if importlib.util.find_spec(PACKAGES[name]) is None:
            raise UserError(
                f"{name} is not installed", "train.report_to", f"pip install {PACKAGES[name]}, or take it out"
            )


class Watchers:
    """Hands the numbers of each step on; made on rank 0 alone.

    Nothing needs a network: Weights & Biases runs offline unless WANDB_MODE says otherwise, MLflow writes to a folder
    unless MLFLOW_TRACKING_URI names a server.

    Args:
        report_to: Names of `PACKAGES`.
        output: The run's folder.
        settings: What the run was ordered to do.
        first: The step to go on after.
    """

    def __init__(self, report_to: Sequence[str], output: Path, settings: Mapping[str, Any], first: int) -> None:
        makers = {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow}
        opened = [makers[name](output, settings, first) for name in report_to]
        self._logs: list[Log] = [log for log, _ in opened]
        self._closers = [close for _, close in opened]

    def log(self, line: Mapping[str, Any], step: int, group: str) -> None:
        """Hand a line of a curve on, its numbers named `group/NAME`."""
        numbers = {f"{group}/{key}": float(value) for key, value in line.items() if key not in COUNTERS}
        for log in self._logs:
            log(numbers, step)

    def close(self) -> None:
        """Write what is still held back."""
        for close in self._closers:
            close()


def progress_note(metrics: Mapping[str, float]) -> str:
    """A step's metrics in a few words, as a progress bar shows them."""
    minutes, seconds = divmod(round(metrics["remaining_seconds"]), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"loss {metrics['loss']:.3f}  {metrics['tokens_per_second']:,.0f} tokens/s  "
        f"{metrics['memory_gb']:.1f} GB  {hours}:{minutes:02d}:{seconds:02d} left"
    )


def _tensorboard(output: Path, settings: Mapping[str, Any], first: int) -> tuple[Log, Callable[[], None]]:
    from torch.utils.tensorboard import SummaryWriter

    # What a killed run wrote of later steps is hidden.
    writer = SummaryWriter(str(output / "tensorboard"), purge_step=first + 1 if first else None)

    def log(numbers: Mapping[str, float], step: int) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)

    return log, writer.close


def _wandb(output: Path, settings: Mapping[str, Any], first: int) -> tuple[Log, Callable[[], None]]:
    import wandb

    folder = output / "wandb"
    folder.mkdir(exist_ok=True)  # otherwise it would go to the system's temporary folder
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", "nextquill"),
        mode=os.environ.get("WANDB_MODE", "offline"),
        dir=str(folder),
        config=dict(settings),
    )
    return lambda numbers, step: run.log(dict(numbers), step=step), run.finish


def _mlflow(output: Path, settings: Mapping[str, Any], first: int) -> tuple[Log, Callable[[], None]]:
    import mlflow

    if "MLFLOW_TRACKING_URI" not in os.environ:
        mlflow.set_tracking_uri((output / "mlruns").resolve().as_uri())
    mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", "nextquill"))
    mlflow.start_run()
    mlflow.log_params({key: str(value)[:500] for key, value in settings.items()})
    return lambda numbers, step: mlflow.log_metrics(dict(numbers), step=step), mlflow.end_run
