"""Scoring workers on Ray: a flow of its own whose tasks are the workers."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.logging import get_run_logger

from nextquill_core.causal.job import ScoreJob
from nextquill_core.causal.shard_queue import Board
from nextquill_core.causal.tally import Tally
from nextquill_core.errors import UserError, first_line
from nextquill_core.pipeline.score import Launch
from nextquill_core.progress import Progress
from tasks.ray import score_worker

LOOK_EVERY_S = 0.5
OWN_RAY = {"include_dashboard": False, "log_to_driver": False}
CLUSTER = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Ray's variable, which despite its name holds for Linux too: 0 has a Ray listen on loopback addresses alone."""


def ray_launch(address: str | None, workers: int | str, options: Mapping[str, Any] | None = None) -> Launch:
    """A launch that shares a job among workers on Ray. All machines must see the store under the same path.

    Args:
        address: A running Ray, such as `ray://head:10001`; None for one of its own on this machine.
        workers: How many; `auto` is one a GPU of the cluster, or one a machine where it has none.
        options: More for `ray.init`.

    Raises:
        UserError: prefect-ray is not installed.
    """
    if importlib.util.find_spec("prefect_ray") is None or importlib.util.find_spec("ray") is None:
        raise UserError("prefect-ray is not installed", "score.launcher: ray", "pip install 'nextquill[ray]'")
    if address is None:
        os.environ.setdefault(CLUSTER, "0")  # before Ray is imported
    import ray
    from prefect_ray import RayTaskRunner

    own = OWN_RAY if address is None else {}
    runner: Any = RayTaskRunner(address=address or "local", init_kwargs={**own, **(options or {})})

    def launch(job: Path, progress: Progress) -> None:
        board = Board.of(ScoreJob.load(job))
        tally = Tally(board, progress)

        @flow(name="score-workers", task_runner=runner, persist_result=False)
        def score_workers(job: str, workers: int | str) -> None:
            """Submit the workers, show how far they are, and pass on what ended one of them."""
            count, needs = placement(workers)
            get_run_logger().info("score: %d worker(s) on Ray, each with %s", count, needs)
            running = {future.wrapped_future: future for future in _submit(job, count, needs)}
            lost = None
            try:
                while running:
                    ready, _ = ray.wait(list(running), timeout=LOOK_EVERY_S)
                    tally.show(board.reports())
                    for reference in ready:
                        lost = _lost(running.pop(reference)) or lost
            finally:
                for reference in running:
                    ray.cancel(reference, force=True)
            if lost and not all(board.settled(number) for number in board.shards):
                raise lost

        score_workers(str(job), workers)

    return launch


def placement(workers: int | str) -> tuple[int, dict[str, float]]:
    """How many workers, and what each asks of the Ray that is connected: a GPU, or its part of the processor cores."""
    import ray

    have = ray.cluster_resources()
    gpus, machines = int(have.get("GPU", 0)), sum(node["Alive"] for node in ray.nodes())
    count = (gpus or machines) if workers == "auto" else int(workers)
    if gpus:
        return count, {"num_gpus": 1 / math.ceil(count / gpus)}
    return count, {"num_cpus": max(1, int(have.get("CPU", 1)) // count)}


def _lost(ended: Any) -> BaseException | None:
    """What ended a worker whose process was killed or whose device was lost: the others take its shards over.

    Raises:
        Exception: The worker ended with an error of its own, which the others would run into as well.
    """
    from nextquill_core.causal.worker import DeviceLost

    ended.wait()
    try:
        ended.result()
    except Exception as error:
        if not ended.state.is_crashed() and not isinstance(error, DeviceLost):
            raise
        get_run_logger().warning("score: a worker was lost (%s); the others go on", first_line(error))
        return error
    return None


def _submit(job: str, count: int, needs: dict[str, float]) -> list[Any]:
    from prefect_ray.context import remote_options

    with remote_options(**needs):
        return [score_worker.submit(job, number) for number in range(count)]
