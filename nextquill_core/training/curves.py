"""Training curves: JSON lines in the run's folder, and TensorBoard, Weights & Biases or MLflow beside them.

A curve has one line per measured step. It is cut back to the checkpoint when a run resumes. It also shows whether the
loss runs away, and how often gradients are clipped.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from nextquill_core.errors import UserError, first_line
from storage.files import write_text
from storage.stored_json import read_lines

logger = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
VALIDATION = "val.jsonl"
COUNTERS = frozenset({"step", "steps", "examples", "left_out_users", "left_out_examples", "first_example"})

Log = Callable[[Mapping[str, float], int], None]
"""Logs named numbers of a step."""


class Step(TypedDict):
    """What a report reads of a line of metrics.jsonl: one optimizer step."""

    step: int
    loss: float
    normal: float
    causal: float
    seconds: float
    tokens: float


def append(path: Path, line: Mapping[str, Any]) -> None:
    """Add a line to a curve."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """Return the complete lines of a curve; one that a killed run left half written is skipped."""
    return read_lines(path, dict[str, Any], "run the stage with --force") if path.is_file() else []


def cut(path: Path, last: int) -> None:
    """Remove the lines of steps after `last`."""
    kept = [line for line in read(path) if line["step"] <= last]
    write_text(path, "".join(json.dumps(line) + "\n" for line in kept))


def val_loss(line: Mapping[str, Any]) -> float:
    """Return the loss in a line of val.jsonl by which the best adapter is chosen; infinite where it is not a number."""
    loss: float = line["loss"]
    return math.inf if math.isnan(loss) else loss


def progress_note(metrics: Mapping[str, float]) -> str:
    """Return a step's metrics in a few words for a progress bar."""
    minutes, seconds = divmod(round(metrics["remaining_seconds"]), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"loss {metrics['loss']:.3f}  {metrics['tokens_per_second']:,.0f} tokens/s  "
        f"{metrics['memory_gb']:.1f} GB  {hours}:{minutes:02d}:{seconds:02d} left"
    )


def check_packages(report_to: Sequence[str]) -> None:
    """Check that the packages of all trackers are installed, before a run begins.

    Raises:
        UserError: A package is missing.
    """
    for name in report_to:
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"{name} is not installed",
                "train.report_to",
                f"install it (pip install {name}), or remove it from the list",
            )


class Trackers:
    """Logs the numbers of each step to the trackers of `train.report_to`; exists on rank 0 alone.

    No tracker needs a network: Weights & Biases runs offline unless WANDB_MODE says otherwise, and MLflow writes to a
    folder unless MLFLOW_TRACKING_URI names a server. A tracker that fails later gets a warning and no more numbers,
    and training continues.

    Args:
        report_to: Names of trackers, out of `MAKERS`.
        output: The run's folder.
        settings: Settings of the run, which Weights & Biases and MLflow record.
        first: Step after which the run resumes, 0 for a new one.

    Raises:
        UserError: A tracker cannot be started.
    """

    def __init__(self, report_to: Sequence[str], output: Path, settings: Mapping[str, Any], first: int) -> None:
        self._open: dict[str, tuple[Log, Callable[[], None]]] = {}
        for name in report_to:
            try:
                self._open[name] = MAKERS[name](output, settings, first)
            except Exception as error:  # another package may raise anything
                what = f"{name} cannot be started: {first_line(error)}"
                raise UserError(what, "train.report_to", "fix it, or remove it from the list") from error

    def log(self, line: Mapping[str, Any], step: int, group: str) -> None:
        """Log a line of a curve.

        Args:
            line: Numbers by name; counters are left out.
            step: Step that the line belongs to.
            group: `train` or `val`; a number is logged as `group/NAME`.
        """
        numbers = {f"{group}/{key}": float(value) for key, value in line.items() if key not in COUNTERS}
        self._each(lambda log, _: log(numbers, step))

    def close(self) -> None:
        """Flush and close all trackers."""
        self._each(lambda _, close: close())

    def _each(self, use: Callable[[Log, Callable[[], None]], None]) -> None:
        for name, tracker in list(self._open.items()):
            try:
                use(*tracker)
            except Exception as error:  # such as a server that no longer answers
                del self._open[name]
                what = first_line(error)
                logger.warning("%s failed and gets no more numbers, which the run's folder has: %s", name, what)


def _tensorboard(output: Path, settings: Mapping[str, Any], first: int) -> tuple[Log, Callable[[], None]]:
    from torch.utils.tensorboard import SummaryWriter

    # Later steps that a killed run wrote are hidden.
    writer = SummaryWriter(str(output / "tensorboard"), purge_step=first + 1 if first else None)

    def log(numbers: Mapping[str, float], step: int) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)

    return log, writer.close


def _wandb(output: Path, settings: Mapping[str, Any], first: int) -> tuple[Log, Callable[[], None]]:
    import wandb

    folder = output / "wandb"
    folder.mkdir(exist_ok=True)  # otherwise wandb writes to the system's temporary folder
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


MAKERS = {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow}
"""What starts each tracker, by the name of its package."""
"""Functions that start a tracker."""

WINDOW = 20
"""Number of steps that are averaged, and for which the average has to stay too high."""

FLOOR = 0.1
"""Lowest best average, as a share of the first average: near zero, ratios are noise."""

NEARLY_ALL = 0.9
"""Share of clipped steps from which on a run is warned about."""


class RunawayLoss:
    """Detects a loss that runs away and does not come back.

    The loss is averaged over the last `WINDOW` steps. It has run away if the average was more than `ratio` times the
    best average for `WINDOW` consecutive steps.

    Args:
        ratio: Ratio of the average to the best average; None never detects anything.
        losses: Losses of the steps before a resumed run.
    """

    def __init__(self, ratio: float | None, losses: Iterable[float] = ()) -> None:
        self.ratio = ratio
        self.average = self.best = self.floor = math.inf
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self._above = 0
        self._last = 0.0
        for loss in losses:
            self.add(loss)

    def add(self, loss: float) -> None:
        """Add the loss of a step."""
        self._last = loss
        self._recent.append(loss)
        if len(self._recent) < WINDOW:
            return
        first = math.isinf(self.average)
        self.average = sum(self._recent) / WINDOW
        if first:
            self.floor = FLOOR * self.average
        self._above = self._above + 1 if self.average > self.limit else 0
        self.best = max(self.floor, min(self.best, self.average))

    @property
    def limit(self) -> float:
        """Highest average that is accepted; infinite before the first average."""
        return math.inf if self.ratio is None else self.ratio * self.best

    @property
    def suspected(self) -> bool:
        """Whether the loss is too high now, so that the last checkpoint is better than a new one."""
        return self._above > 0 or self._last > self.limit

    @property
    def found(self) -> bool:
        """Whether the loss has run away."""
        return self._above >= WINDOW


class Clipping:
    """Counts the optimizer steps whose gradient was scaled down to `train.max_grad_norm`.

    Args:
        limit: Largest gradient norm that is not scaled down.
        norms: Gradient norms of the steps before a resumed run.
    """

    def __init__(self, limit: float, norms: Iterable[float] = ()) -> None:
        self.limit = limit
        self.clipped = self.steps = 0
        for norm in norms:
            self.add(norm)

    def add(self, norm: float) -> None:
        """Add a step's gradient norm before clipping; one that is not finite was skipped under float16, not clipped."""
        self.steps += 1
        self.clipped += math.isfinite(norm) and norm > self.limit

    @property
    def share(self) -> float:
        """Share of the steps that were clipped."""
        return self.clipped / self.steps if self.steps else 0.0


def clipping_warning(metrics: Mapping[str, float], limit: float, normalization: str) -> str:
    """Return a warning if nearly all of the first `WINDOW` steps, or of all steps of a shorter run, were clipped.

    Args:
        metrics: A line of the training curve.
        limit: `train.max_grad_norm`.
        normalization: `train.normalization`.

    Returns:
        A sentence on the effect and what to set; empty where there is nothing to warn about.
    """
    if metrics["step"] < min(WINDOW, metrics["steps"]) or metrics["clipped_share"] < NEARLY_ALL:
        return ""
    remedy = "set train.normalization to weight or sample_weight, or " if normalization == "sequence" else ""
    return (
        f"{metrics['clipped_share']:.0%} of the steps so far had a gradient norm above train.max_grad_norm {limit:g} "
        f"(the last one {metrics['grad_norm']:.3g}) and were scaled down to it, so every step has the same length; "
        f"{remedy}raise train.max_grad_norm if that is not meant (see docs/explanation/training.md)"
    )
