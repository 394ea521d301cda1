"""Runs of the small configuration, made once for all tests that need one."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from nextquill_core.config import Config
from nextquill_core.pipeline.run import Run
from tests.conftest import made_once
from tests.stages import make, untrained
from tests.world import small_config

Configured = Callable[..., Config]


@pytest.fixture
def configured(small_world: Path, tmp_path: Path) -> Configured:
    """Return what gives the small configuration, with changed sections, and a store of the test's own."""
    return functools.partial(small_config, small_world, tmp_path)


@pytest.fixture(scope="session")
def whole(small_world: Path, prepared_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return the run; tests may add artifacts to its store, and never change or remove one."""

    def evaluate(store: Path) -> None:
        shutil.copytree(prepared_store, store, dirs_exist_ok=True)
        run = Run(small_config(small_world, store))
        make(run, run.plan.evaluate)

    store = shutil.copytree(
        made_once(tmp_path_factory, "whole", evaluate), tmp_path_factory.mktemp("whole-copy") / "store"
    )
    return Run(small_config(small_world, store))


@pytest.fixture(scope="session")
def predicted(small_world: Path, prepared_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a run with predictions of two methods, one of them with a random adapter; tests must not change it."""

    def config(store: Path) -> Config:
        return small_config(small_world, store, evaluate={"methods": ["qwen", "nextquill"]})

    def predict(store: Path) -> None:
        shutil.copytree(prepared_store, store, dirs_exist_ok=True)
        run = Run(config(store))
        run.make(run.plan.train["nextquill"], launch=untrained)
        make(run, *(planned.step for planned in run.plan.evaluation.predictions.values()))

    return Run(config(made_once(tmp_path_factory, "predicted", predict)))
