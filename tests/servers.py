"""Servers of drafts for tests: a real one on a loopback port, on a small store with adapters of random weights."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from benchmarks.serve import listening as listening
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
    return partial(untrained, seed=seed)


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
def client_of(rollout: Rollout, **settings: Any) -> Iterator[httpx.Client]:
    """Run the server of a rollout for the duration of a block, and yield a client of it."""
    app = make_app(rollout, ServeSettings(**settings))
    with listening(app) as url, httpx.Client(base_url=url, timeout=120, trust_env=False) as client:
        yield client
