"""A run of the small configuration with all its artifacts, made once for all tests that need one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from nextquill_core.pipeline.run import Run
from tests.conftest import made_once
from tests.stages import make
from tests.world import small_config


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
