"""Train: one adapter a method or fold, by ranks that the DeepSpeed launcher starts."""

from __future__ import annotations

from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from nextquill_core.stages import train
from nextquill_core.stages.run import Outcome, Run
from tasks.launch import run_ranks
from tasks.processes import process_count
from tasks.progress import ShownProgress


@task(cache_policy=NO_CACHE, persist_result=False, task_run_name="train {name}")
def train_adapter(run: Run, name: str, force: bool) -> Outcome:
    """The adapter of a method or fold, by its name in `Plan.adapters`.

    Call it directly: a submitted task outlives the signal that ends its flow.
    """
    ranks = process_count(run.config.train.launcher.processes)
    with ShownProgress(f"train {name}") as progress:

        def show(metrics: dict[str, float]) -> None:
            note = f"loss {metrics['loss']:.3f}  {metrics['tokens_per_second']:,.0f} tokens/s"
            progress(metrics["step"], metrics["steps"], note)

        def launch(order: Path, log: Path) -> None:
            get_run_logger().info("train %s: %d rank(s), log %s", name, ranks, log)
            run_ranks(order, log, ranks=ranks, on_step=show)

        return train.train(run, name, launch, force=force)
