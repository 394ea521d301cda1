"""Scoring by adapters under a real Prefect server: what has to be trained first is, once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.prefect_server import Server
from tests.world import small_settings, write_config

pytestmark = [pytest.mark.flow, pytest.mark.ranks, pytest.mark.timeout(600)]


@pytest.mark.slow
def test_score_trains_the_adapters_that_score_and_reuses_them(
    server: Server, small_world: Path, tmp_path: Path
) -> None:
    settings = small_settings(small_world, tmp_path / "store") | {"score": {"effect_source": "adapter"}}
    config = str(write_config(tmp_path / "config.yaml", settings))
    for stage in ("ingest", "model", "score"):
        done = server.check("flows", stage, "--config", config)
    made = [line.split("  ", 1)[1].partition(":")[0] for line in done.stderr.splitlines() if ": made in" in line]
    assert made == ["train fold-0", "train fold-1", "effects", "score"]

    changed = ["--config", config, "--set", "weights.delta=0.1"]
    again = server.check("flows", "score", *changed)
    assert "score: made in" in again.stderr
    assert again.stderr.count(": made in") == 1, "what is fresh is neither trained nor scored again"
    rows = json.loads(server.run("flows", "status", *changed, "--json").stdout)
    standings = {row["stage"]: row["state"] for row in rows}
    assert [standings[name] for name in ("train:fold-0", "train:fold-1", "score", "train")] == [
        "fresh", "fresh", "fresh", "missing",
    ]  # fmt: skip
