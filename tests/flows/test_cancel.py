"""Cancelling a training as the Prefect UI does ends its ranks, and the same deployment then resumes."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.prefect_server import Server
from tests.tasks.processes import workers_of
from tests.waiting import wait_for
from tests.world import small_settings, write_config

pytestmark = [pytest.mark.flow, pytest.mark.ranks, pytest.mark.slow, pytest.mark.timeout(600)]

PROMISED_S = 30.0


def test_a_cancelled_training_leaves_no_rank_and_a_checkpoint(
    server: Server, small_world: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    settings = small_settings(small_world, store)
    settings["train"] |= {"epochs": 2000, "global_batch": 4, "checkpoint_every": 1}  # minutes, unless it is ended
    settings["evaluate"] |= {"methods": ["nextquill"], "decoding": ["paper"]}
    config = write_config(tmp_path / "config.yaml", settings)
    for stage in ("ingest", "model", "score"):
        server.check("flows", stage, "--config", str(config))
    server.create_pool("cancelled")
    named = ("--name", "cancelled", "--pool", "cancelled")
    server.check("prefect", "--no-prompt", "deploy", "flows/train.py:train", *named)
    worker = server.start("prefect", "worker", "start", "--pool", "cancelled")
    try:
        run = server.schedule(server.deployment("cancelled"), config=settings)
        checkpoints = lambda: list((store / "train").glob(".staging-*/checkpoints/step-*"))  # noqa: E731
        wait_for("the first checkpoint", lambda: checkpoints() and workers_of(store), 240)
        server.post(f"/flow_runs/{run}/set_state", state={"type": "CANCELLING"})
        wait_for("ending the ranks", lambda: not workers_of(store), PROMISED_S)
        wait_for("the state", lambda: server.flow_run(run)["state_type"] == "CANCELLED", 60)
        assert checkpoints(), "what was trained stays for the next run"
    finally:
        worker.send_signal(signal.SIGINT)
        worker.wait(timeout=60)
