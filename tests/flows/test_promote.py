"""Promotion as a flow: states in Prefect, exit codes for scripts; measured by stand-ins, so nothing is trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from nextquill_core.pipeline.methods import split_examples
from nextquill_core.registry.promote import decide
from tests.nextquill_core.registry.test_promote import (  # noqa: F401 (fixtures)
    METHOD,
    candidate,
    flat,
    ingested,
    store,
    world,
)
from tests.prefect_server import Server
from tests.world import small_settings, write_config

pytestmark = [pytest.mark.flow, pytest.mark.timeout(600)]


def test_refused_is_exit_code_3_and_a_state_of_its_own(
    server: Server,
    world: Path,  # noqa: F811
    store: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    first = candidate(world, store, flat(-2.0))
    assert split_examples(first, "val")
    decide(first, METHOD, METHOD)
    candidate(world, store, flat(-2.5), train={"alpha": 0.2})
    candidate(world, store, flat(-1.5), train={"alpha": 0.3})
    config = str(write_config(tmp_path / "config.yaml", small_settings(world, store)))
    refused = server.run("flows", "promote", "--config", config, "--set", "train.alpha=0.2")
    assert refused.returncode == 3, refused.stderr
    assert refused.stdout.startswith("refused: log_likelihood on val -0.5000 [-0.5000, -0.5000]")
    done = server.check("flows", "promote", "--config", config, "--set", "train.alpha=0.3")
    assert done.stdout.startswith("accepted: log_likelihood on val +0.5000 [0.5000, 0.5000]")
    states = [run["state"] for run in server.runs() if run["state"]["name"] in ("Accepted", "Rejected")]
    assert [(state["type"], state["name"]) for state in states] == [
        ("COMPLETED", "Rejected"), ("COMPLETED", "Accepted"),
    ]  # fmt: skip
    path = server.run("flows", "path", "accepted", "--config", config)
    assert Path(path.stdout.strip()).parent == store / "train"
    server.check("flows", "promote", "--back", "--config", config)
    back = server.run("flows", "path", "accepted", "--config", config)
    assert back.stdout.strip() == str(first.artifact(first.plan.train[METHOD]).folder)
    assert path.stdout != back.stdout
