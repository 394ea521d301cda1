"""The key of the pseudonyms from a Secret block of a real server, and users taken out by the command line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.nextquill_core.ingest.test_privacy import everything
from tests.prefect_server import Server
from tests.world import small_settings, write_config

pytestmark = pytest.mark.flow
KEY = "kept by the Prefect server alone"


def users(store: Path) -> list[str]:
    (folder,) = (path.parent for path in store.glob("ingest/*/manifest.json"))
    return [name for path in folder.glob("sequences/*") for name in pq.read_table(path)["user_id"].to_pylist()]


def ingest(tmp_path: Path, settings: dict[str, Any]) -> tuple[str, ...]:
    """Return the command that ingests under these settings."""
    return "flows", "ingest", "--config", str(write_config(tmp_path / "config.yaml", settings))


def test_the_key_comes_from_a_secret_block_and_is_nowhere_else(
    server: Server, small_world: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    settings = small_settings(small_world, store) | {"privacy": {"pseudonymize": True, "key_secret": "pseudonyms"}}
    done = server.run(*ingest(tmp_path, settings))
    assert done.returncode == 2, done.stderr
    assert "there is no Secret block `pseudonyms`" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr

    code = f"from prefect.blocks.system import Secret; Secret(value={KEY!r}).save('pseudonyms')"
    subprocess.run([sys.executable, "-c", code], env=server.environment, check=True, capture_output=True)
    done = server.check(*ingest(tmp_path, settings))
    assert all(re.fullmatch("[0-9a-f]{32}", name) for name in users(store))
    told = done.stdout + done.stderr + everything(store)
    for path in ("/flow_runs/filter", "/task_runs/filter", "/artifacts/filter"):
        told += json.dumps(server.post(path))
    told += json.dumps(server.post("/logs/filter", limit=200))
    assert KEY not in told


def test_a_user_is_forgotten_by_name(server: Server, small_world: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    settings = small_settings(small_world, store)
    server.check(*ingest(tmp_path, settings))
    user, *others = users(store)
    (tmp_path / "forget.txt").write_text(user)
    done = server.check(*ingest(tmp_path, settings | {"privacy": {"forget": str(tmp_path / "forget.txt")}}))
    assert done.stderr.count("forget: removed") == 2, "the scan and the sequences"
    assert "forgotten_user" in done.stdout
    assert user not in everything(store)
    assert set(users(store)) <= set(others)
