"""Scoring workers on Ray, as the tasks of a subflow that Ray places on machines."""

from __future__ import annotations

import importlib.util
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from nextquill_core.causal.shard_queue import ScoringProgress, ShardQueue
from nextquill_core.environment import set_torch_variables
from nextquill_core.errors import UserError, first_line
from nextquill_core.orders import ScoreOrder
from nextquill_core.pipeline.score import Launch
from nextquill_core.progress import Progress
from storage.masked_output import mask_errors

LOOK_EVERY_S = 0.5
OWN_RAY = {"include_dashboard": False, "log_to_driver": False}
CLUSTER = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Environment variable of Ray that holds for Linux too: with 0, Ray listens on loopback addresses only."""


@task(name="score-worker", cache_policy=NO_CACHE, persist_result=False, task_run_name="worker {number}")
def score_worker(job: str, number: int) -> None:
    """Score shards on the device that this worker sees, until none is left.

    Args:
        job: Path of the job's file; nothing larger than a path travels between machines.
        number: Number of the worker.
    """
    set_torch_variables()  # on this machine, before torch is imported
    from nextquill_core.causal.worker import work

    logging.getLogger("nextquill_core").setLevel(logging.INFO)
    with mask_errors():
        work(ScoreOrder.load(Path(job)), str(number))


def ray_launch(address: str | None, workers: int | str, options: Mapping[str, Any] | None = None) -> Launch:
    """Return a launch that shares a job among workers on Ray. All machines must see the store under the same path.

    Args:
        address: A running Ray, such as `ray://head:10001`; None starts one on this machine.
        workers: Number of workers; `auto` is one for each GPU of the cluster, or for each machine if it has none.
        options: Further arguments of `ray.init`.

    Raises:
        UserError: prefect-ray is not installed.
    """
    if importlib.util.find_spec("prefect_ray") is None or importlib.util.find_spec("ray") is None:
        raise UserError("prefect-ray is not installed", "score.launcher: ray", "pip install 'nextquill[ray]'")
    if address is None:
        os.environ.setdefault(CLUSTER, "0")  # before Ray is imported
    import ray
    from prefect_ray import RayTaskRunner
    from prefect_ray.context import remote_options

    own = OWN_RAY if address is None else {}
    runner: Any = RayTaskRunner(address=address or "local", init_kwargs={**own, **(options or {})})

    def launch(job: Path, progress: Progress) -> None:
        queue = ShardQueue.of(ScoreOrder.load(job))
        shown = ScoringProgress(queue, progress)

        @flow(name="score-workers", task_runner=runner, persist_result=False)
        def score_workers(job: str, workers: int | str) -> None:
            """Submit the workers, show their progress, and raise the error that ended one of them."""
            count, needs = placement(workers)
            get_run_logger().info("score: %d worker(s) on Ray, each with %s", count, needs)
            with remote_options(**needs):
                futures: list[Any] = [score_worker.submit(job, number) for number in range(count)]
            running = {future.wrapped_future: future for future in futures}
            lost = None
            try:
                while running:
                    ready, _ = ray.wait(list(running), timeout=LOOK_EVERY_S)
                    shown.show(queue.reports())
                    for reference in ready:
                        lost = _lost(running.pop(reference)) or lost
            finally:
                for reference in running:
                    ray.cancel(reference, force=True)
            if lost and not queue.all_settled():
                raise lost

        score_workers(str(job), workers)

    return launch


def placement(workers: int | str) -> tuple[int, dict[str, float]]:
    """Return the number of workers, and what each requests from the connected Ray: a GPU, or its share of the cores."""
    import ray

    have = ray.cluster_resources()
    gpus, machines = int(have.get("GPU", 0)), sum(node["Alive"] for node in ray.nodes())
    count = (gpus or machines) if workers == "auto" else int(workers)
    if gpus:
        return count, {"num_gpus": 1 / math.ceil(count / gpus)}
    return count, {"num_cpus": max(1, int(have.get("CPU", 1)) // count)}


def _lost(ended: Any) -> BaseException | None:
    """Return the error of a worker whose process was killed or whose device was lost; the others take its shards.

    Raises:
        Exception: The worker ended with another error, which the others would meet as well.
    """
    from nextquill_core.causal.worker import DeviceLost

    ended.wait()
    try:
        ended.result()
    except Exception as error:
        if not ended.state.is_crashed() and not isinstance(error, DeviceLost):
            raise
        get_run_logger().warning("score: a worker was lost (%s); the others continue", first_line(error))
        return error
    return None
