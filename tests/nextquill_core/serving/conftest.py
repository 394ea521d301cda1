"""One server for all tests that do not change it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest

from nextquill_core.ingest.reader import read_examples
from nextquill_core.pipeline.run import Run
from nextquill_core.serving.app import make_app
from nextquill_core.serving.deployment import Rollout
from nextquill_core.serving.settings import ServeSettings
from tests.conftest import made_once
from tests.servers import deployed, listening, served_config, write_served_store


@pytest.fixture(scope="session")
def served_store(small_world: Path, prepared_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store with adapters; tests must not change it."""
    return made_once(tmp_path_factory, "served", partial(write_served_store, small_world, prepared_store))


@pytest.fixture
def own_store(served_store: Path, tmp_path: Path) -> Path:
    """Return a copy that a test may change."""
    return shutil.copytree(served_store, tmp_path / "store")


@pytest.fixture(scope="session")
def run(small_world: Path, served_store: Path) -> Run:
    """Return the run that is served."""
    return Run(served_config(small_world, served_store))


@pytest.fixture(scope="session")
def users(run: Run) -> list[str]:
    """Return the users of the store, in the order of their ids."""
    folder = run.artifact(run.plan.ingest).folder
    return sorted({example.user_id for example in read_examples(folder)})


@pytest.fixture(scope="session")
def rollout(run: Run) -> Iterator[Rollout]:
    """Return what is served."""
    with deployed(run.config) as found:
        yield found


@pytest.fixture(scope="session")
def address(rollout: Rollout) -> Iterator[str]:
    """Return the address of the server."""
    with listening(make_app(rollout, ServeSettings())) as url:
        yield url


@pytest.fixture(scope="session")
def client(address: str) -> Iterator[httpx.Client]:
    """Return a client of the server."""
    with httpx.Client(base_url=address, timeout=120, trust_env=False) as found:
        yield found
