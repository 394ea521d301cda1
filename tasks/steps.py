"""The tasks that make artifacts: they start the processes that score and train, and show the progress."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from prefect.logging import get_run_logger

from nextquill_core.config import ScoreConfig
from nextquill_core.pipeline import Step, score
from nextquill_core.pipeline.run import Outcome, Run
from nextquill_core.pipeline.train import Launch, trained_by
from nextquill_core.progress import Progress
from nextquill_core.registry import forget_users as registry
from nextquill_core.training.curves import clipping_warning, progress_note
from nextquill_core.training.ranks import stored_budget
from tasks.definition import our_task
from tasks.gpu_lock import gpu_lock
from tasks.progress import ShownProgress
from tasks.ranks.launch import run_ranks
from tasks.ranks.placement import placement
from tasks.ranks.processes import process_count
from tasks.ranks.scoring_workers import run_workers


@our_task()
def forget_users(run: Run) -> None:
    """Remove from the store what earlier runs left of the users in `privacy.forget`."""
    for removed in registry.forget_users(run):
        get_run_logger().info(f"forget: removed {removed}")


@our_task(task_run_name="{step.name}")
def make_step(run: Run, step: Step, force: bool) -> Outcome:
    """Reuse the artifact of a step, or make it.

    Args:
        run: The run; the inputs of the step are in its store.
        step: The step.
        force: Whether to make it even if it is up to date.
    """
    title = run.plan.title(step)
    with gpu_lock(title, needed=_trains(run, step, force)), ShownProgress(title) as progress:
        outcome = run.make(step, progress=progress, force=force, **_options(run, step, progress))
    if step.kind == "train" and not outcome.reused:
        log_training(run, title, outcome)
    return outcome


def _trains(run: Run, step: Step, force: bool) -> bool:
    """Return whether making a step trains on this machine; Slurm has its own queue."""
    if step.kind not in ("train", "personal") or (step.kind == "train" and run.config.train.launcher.kind == "slurm"):
        return False
    return force or run.freshness(step).state != "fresh"


def _options(run: Run, step: Step, progress: Progress) -> dict[str, Any]:
    """Return what the function that builds a step needs besides: how to start its processes."""
    if step.kind == "effects":
        return {"launch": scoring_launch(run.config.score)}
    if step.kind == "train":
        return {"launch": training_launch(run, step, progress)}
    return {}


def scoring_launch(settings: ScoreConfig) -> score.Launch:
    """Return what starts the workers that `score.launcher` and `score.workers` ask for.

    Raises:
        UserError: They are to run on Ray, and prefect-ray is not installed.
    """
    if settings.launcher == "ray":
        from tasks.ray import ray_launch

        return ray_launch(settings.ray_address, settings.workers)
    return partial(run_workers, workers=process_count(settings.workers))


def training_launch(run: Run, step: Step, progress: Progress) -> Launch:
    """Return what trains an adapter: ranks on the machines that `train.launcher` names, their progress shown.

    Args:
        run: The run.
        step: The step that trains the adapter.
        progress: Receives the steps that are done, and phases such as validation.
    """
    title, settings = run.plan.title(step), trained_by(run, run.plan.adapter_name(step))
    warned = said = False
    folder = Path()
    latest: dict[str, float] = {}

    def show_phase(done: float, total: float, note: str = "", *, phase: str = "") -> None:
        if phase:
            progress(done, total, note, phase=phase)
        elif latest:  # the phase has ended: show the steps again
            progress(latest["step"], latest["steps"], progress_note(latest))

    def show(metrics: dict[str, float]) -> None:
        nonlocal warned, said
        if not said and (budget := stored_budget(folder)):
            get_run_logger().info("%s: %s", title, budget.account)
        said = True
        latest.update(metrics)
        progress(metrics["step"], metrics["steps"], progress_note(metrics))
        warning = clipping_warning(metrics, settings.max_grad_norm, settings.normalization)
        if warning and not warned:
            get_run_logger().warning("%s: %s", title, warning)
            warned = True

    def launch(order: Path, log: Path) -> None:
        nonlocal folder
        folder = log.parent
        ranks = placement(run.config.train.launcher)
        where = f"{ranks} rank(s) on this machine" if isinstance(ranks, int) else str(ranks)
        get_run_logger().info("%s: %s, log %s", title, where, log)
        progress(0, 0, phase=f"starting {where}")
        run_ranks(order, log, ranks=ranks, on_step=show, on_phase=show_phase)

    return launch


def log_training(run: Run, title: str, outcome: Outcome) -> None:
    """Log how a training ended.

    Args:
        run: The run.
        title: Name of the step in messages.
        outcome: The outcome of the step.
    """
    stats = outcome.artifact.manifest.stats
    get_run_logger().info(
        "%s: %d steps, last loss %.4g, gradients of %s of the steps clipped to norm %g",
        title,
        stats["steps"],
        stats["final"]["loss"],
        f"{stats['clipped_share']:.0%}",
        trained_by(run, stats["method"]).max_grad_norm,
    )
