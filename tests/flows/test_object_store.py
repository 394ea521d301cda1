"""All stages with their artifacts in an object store, and a second machine that finds them there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.prefect_server import Server
from tests.s3 import environment, new_store, s3_server
from tests.world import small_settings, write_config

pytestmark = [pytest.mark.flow, pytest.mark.timeout(600)]


@pytest.mark.ranks
@pytest.mark.slow
def test_the_whole_pipeline_leaves_its_artifacts_in_the_store(
    server: Server, small_world: Path, tmp_path: Path
) -> None:
    with s3_server() as address:
        settings = small_settings(small_world, tmp_path) | {"store": new_store(address)}
        config = str(write_config(tmp_path / "config.yaml", settings))
        here = Server(server.api, server.environment | environment(address, tmp_path / "here"))
        here.check("flows", "run", "--config", config)
        there = Server(server.api, server.environment | environment(address, tmp_path / "there"))
        again = there.check("flows", "run", "--config", config)
        assert again.stderr.count("reused, fresh at") == 6, "the other machine computes nothing"
        mine, theirs = (
            Path(machine.run("flows", "path", "evaluate", "--config", config).stdout.strip())
            for machine in (here, there)
        )
        assert (tmp_path / "here", tmp_path / "there") == (mine.parents[3], theirs.parents[3])
        files = {path.relative_to(mine): path.read_bytes() for path in mine.rglob("*") if path.is_file()}
        assert {path.relative_to(theirs): path.read_bytes() for path in theirs.rglob("*") if path.is_file()} == files
        metrics = json.loads(files[Path("metrics.json")])
        assert {row["method"] for row in metrics["rows"]} == {"qwen", "contextsft", "nextquill"}
