"""Train: one adapter a method or fold, by ranks that the DeepSpeed launcher starts."""

from __future__ import annotations

from pathlib import Path

from prefect.logging import get_run_logger

from nextquill_core.pipeline import freshness, train
from nextquill_core.pipeline.run import Outcome, Run
from nextquill_core.pipeline.train import trained_by
from nextquill_core.training.stability import clipping_warning
from nextquill_core.training.trackers import progress_note
from tasks.definition import our_task
from tasks.gpu_lock import training_place
from tasks.progress import ShownProgress
from tasks.ranks.launch import run_ranks
from tasks.ranks.placement import placement


@our_task(task_run_name="train {name}")
def train_adapter(run: Run, name: str, force: bool) -> Outcome:
    """The adapter of a method or fold, by its name in `Plan.adapters`."""
    fresh = not force and freshness(run.store, run.plan.adapters[name]).state == "fresh"
    waits = not fresh and run.config.train.launcher.kind != "slurm"  # which has a queue of its own
    with training_place(f"train {name}", needed=waits), ShownProgress(f"train {name}") as progress:
        settings = trained_by(run, name)
        warned = False
        latest: dict[str, float] = {}

        def show_phase(done: float, total: float, note: str = "", *, phase: str = "") -> None:
            if phase:
                progress(done, total, note, phase=phase)
            elif latest:  # it has ended: back to the steps
                progress(latest["step"], latest["steps"], progress_note(latest))

        def show(metrics: dict[str, float]) -> None:
            nonlocal warned
            latest.update(metrics)
            progress(metrics["step"], metrics["steps"], progress_note(metrics))
            warning = clipping_warning(metrics, settings.max_grad_norm, settings.normalization)
            if warning and not warned:
                get_run_logger().warning("train %s: %s", name, warning)
                warned = True

        def launch(order: Path, log: Path) -> None:
            ranks = placement(run.config.train.launcher)
            where = f"{ranks} rank(s) on this machine" if isinstance(ranks, int) else str(ranks)
            get_run_logger().info("train %s: %s, log %s", name, where, log)
            progress(0, 0, phase=f"starting {where}")
            run_ranks(order, log, ranks=ranks, on_step=show, on_phase=show_phase)

        outcome = train.train(run, name, launch, force=force)
        if not outcome.reused:
            stats = outcome.artifact.manifest.stats
            get_run_logger().info(
                "train %s: %d steps, last loss %.4g, gradients of %s of the steps clipped to norm %g",
                name,
                stats["steps"],
                stats["final"]["loss"],
                f"{stats['clipped_share']:.0%}",
                settings.max_grad_norm,
            )
        return outcome
