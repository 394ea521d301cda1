"""The benchmark of orchestration runs, at a size too small for speed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.orchestration import artifacts, fill
from nextquill_core.config import load_config
from nextquill_core.pipeline import freshness
from nextquill_core.pipeline.run import Run
from storage import fingerprint
from tests.conftest import REPO
from tests.nextquill_core.pipeline.test_plan import make_all
from tests.world import small_settings, write_config


def test_a_store_is_filled_with_copies_under_other_fingerprints(small_world: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "config.yaml", small_settings(small_world, tmp_path / "store"))
    run = Run(load_config(config, []))
    make_all(run)
    before = {artifact.ref: artifact for artifact in artifacts(tmp_path / "store")}
    count = len(before) + len(before) // 2
    fill(tmp_path / "store", count)
    after = {artifact.ref: artifact for artifact in artifacts(tmp_path / "store")}
    assert len(after) == count
    assert before.keys() < after.keys()
    for ref in after.keys() - before.keys():
        manifest, originals = after[ref].manifest, [one for one in before if one.content == ref.content]
        assert fingerprint(manifest.identity) == manifest.fingerprint
        assert originals, "each is the copy of an original"
        assert all((after[ref].folder / shard.path).is_file() for shard in manifest.shards)
    assert {freshness(run.store, step).state for step in run.plan.stages} == {"fresh"}


@pytest.mark.flow
@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_benchmark_of_orchestration(small_world: Path, tmp_path: Path) -> None:
    """Both pipelines make the same artifacts, and every command that is timed succeeds."""
    config = write_config(tmp_path / "config.yaml", small_settings(small_world, tmp_path / "unused"))
    command = [sys.executable, "-m", "benchmarks.orchestration", "--config", str(config)]
    small = ["--artifacts", "60", "--looks", "1"]
    done = subprocess.run([*command, *small], capture_output=True, text=True, cwd=REPO, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    pipeline, fresh, status = map(json.loads, done.stdout.splitlines())
    assert pipeline["artifacts"] == pipeline["same_artifacts"] > 15
    assert min(pipeline["time_over_direct"].values()) > 0
    assert min(pipeline["outside"].values()) > 0
    assert min(pipeline["cost_s"].values()) > 0
    assert fresh["seconds"]["alone"] < fresh["seconds"]["watched"], "no flow runs when all is fresh"
    assert status["artifacts"] == 60
    assert set(status["seconds"]) == {"fresh", "changed", "all"}
    assert not (tmp_path / "unused").exists()
