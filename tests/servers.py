"""Servers of drafts for tests: a real one on a loopback port, on a small store with adapters of random weights."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from nextquill_core.config import Config
from nextquill_core.pipeline.run import Run
from nextquill_core.pipeline.train import Launch
from nextquill_core.serving.app import make_app
from nextquill_core.serving.deployment import Rollout
from nextquill_core.serving.run import make_rollout
from nextquill_core.serving.settings import ServeSettings
from tests.stages import untrained
from tests.world import small_config

METHODS = ["latestk", "contextsft", "nextquill"]
KETTLE = {"title": "A kettle", "description": "of steel"}


def random_weights(seed: int) -> Launch:
    """Return a launch that writes an adapter with random weights, other ones for each seed."""

    def launch(order: Path, log: Path) -> None:
        untrained(order, log, seed)

    return launch


def served_config(world: Path, store: Path, **changes: Any) -> Config:
    """Return the settings of a server with three methods; `train={"alpha": 0.2}` changes single keys."""
    evaluate = {"methods": METHODS, "max_new_tokens": 12, "paper_max_new_tokens": 12, **changes.pop("evaluate", {})}
    return small_config(world, store, evaluate=evaluate, **changes)


def write_served_store(world: Path, prepared: Path, store: Path) -> None:
    """Fill a store with two adapters, and with the log-likelihoods of the true reviews under one of them."""
    shutil.copytree(prepared, store, dirs_exist_ok=True)
    run = Run(served_config(world, store))
    for seed, name in enumerate(("contextsft", "nextquill")):
        run.make(run.plan.train[name], launch=random_weights(seed))
    run.make(run.plan.evaluation.likelihoods["nextquill"])


def rollout_of(config: Config, **options: Any) -> Rollout:
    """Return the rollout of a configuration; it has not been started."""
    return make_rollout(config, lambda: Run(config, fetch=False), **options)


@contextmanager
def deployed(config: Config, **options: Any) -> Iterator[Rollout]:
    """Start the rollout of a configuration, and close it at the end of the block."""
    found = rollout_of(config, **options)
    found.start()
    try:
        yield found
    finally:
        found.close()


@contextmanager
def listening(app: Any) -> Iterator[str]:
    """Run an app on a free loopback port for the duration of a block, and yield its address."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="off", timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started:
        assert time.monotonic() < deadline, "the server does not start"
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        server.force_exit = True  # does not wait for connections that a client has left open
        thread.join(20)


@contextmanager
def client_of(rollout: Rollout, **settings: Any) -> Iterator[httpx.Client]:
    """Run the server of a rollout for the duration of a block, and yield a client of it."""
    app = make_app(rollout, ServeSettings(**settings))
    with listening(app) as url, httpx.Client(base_url=url, timeout=120, trust_env=False) as client:
        yield client
