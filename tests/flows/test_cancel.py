"""Cancelling a training as the Prefect UI does ends its ranks, and the same deployment then resumes."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.prefect_server import Server
from tests.tasks.processes import workers_of
from tests.world import small_settings, write_config

pytestmark = [pytest.mark.flow, pytest.mark.ranks, pytest.mark.slow, pytest.mark.timeout(600)]

PROMISED_S = 30.0


def wait_until(what: str, holds: Any, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"{what} took more than {seconds:g} s"
        time.sleep(0.2)


def state_of(server: Server, run: str) -> str:
    return str(server.post("/flow_runs/filter", json.dumps({"flow_runs": {"id": {"any_": [run]}}}))[0]["state_type"])


def test_a_cancelled_training_leaves_no_rank_and_a_checkpoint(
    server: Server, small_world: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    settings = small_settings(small_world, store)
    settings["train"] |= {"epochs": 2000, "global_batch": 4, "checkpoint_every": 1}  # minutes, unless it is ended
    settings["evaluate"] |= {"methods": ["nextquill"], "decoding": ["paper"]}
    config = write_config(tmp_path / "config.yaml", settings)
    for stage in ("ingest", "model", "score"):
        done = server.run("flows", stage, "--config", str(config))
        assert done.returncode == 0, done.stderr
    for command in (
        ("work-pool", "create", "cancelled", "--type", "process"),
        ("--no-prompt", "deploy", "flows/train.py:train", "--name", "cancelled", "--pool", "cancelled"),
    ):
        done = server.run("prefect", *command)
        assert done.returncode == 0, done.stdout + done.stderr
    worker = server.start("prefect", "worker", "start", "--pool", "cancelled")
    try:
        deployment = server.post("/deployments/filter", json.dumps({"deployments": {"name": {"any_": ["cancelled"]}}}))
        asked = {"parameters": {"config": settings}, "state": {"type": "SCHEDULED"}}
        run = server.post(f"/deployments/{deployment[0]['id']}/create_flow_run", json.dumps(asked))["id"]
        checkpoints = lambda: list((store / "train").glob(".staging-*/checkpoints/step-*"))  # noqa: E731
        wait_until("the first checkpoint", lambda: checkpoints() and workers_of(store), 240)
        server.post(f"/flow_runs/{run}/set_state", json.dumps({"state": {"type": "CANCELLING"}}))
        wait_until("ending the ranks", lambda: not workers_of(store), PROMISED_S)
        wait_until("the state", lambda: state_of(server, run) == "CANCELLED", 60)
        assert checkpoints(), "what was trained stays for the next run"
    finally:
        worker.send_signal(signal.SIGINT)
        worker.wait(timeout=60)
