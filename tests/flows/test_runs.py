"""Configurations are opened once in a command, and again in the next one."""

from __future__ import annotations

from pathlib import Path

from flows.runs import open_run, shared_runs
from tests.world import small_config


def test_a_command_opens_a_configuration_once(small_world: Path, tmp_path: Path) -> None:
    config = small_config(small_world, tmp_path)
    with shared_runs():
        reader = open_run(config, fetch=False)
        run = open_run(config)
        assert run is not reader, "a run that only reads cannot make artifacts"
        with shared_runs():  # as a flow within a command
            assert open_run(config.model_copy(), fetch=False) is open_run(config) is run
        other = open_run(small_config(small_world, tmp_path, train={"alpha": 0.1}))
        assert other is not run
        assert other.cache is run.cache is reader.cache is not None, "they share a store"
        assert open_run(small_config(small_world, tmp_path / "elsewhere")).cache is not run.cache
    assert open_run(config) is not run
    assert open_run(config).cache is None


def test_the_next_command_sees_raw_files_that_changed(small_world: Path, tmp_path: Path) -> None:
    for name in ("reviews.jsonl", "items.jsonl"):
        (tmp_path / name).write_bytes((small_world / name).read_bytes())
    config = small_config(tmp_path, tmp_path / "store")
    fingerprints = []
    for _ in range(2):
        with shared_runs():
            fingerprints.append(open_run(config).plan.ingest.fingerprint)
        with (tmp_path / "reviews.jsonl").open("a") as file:
            file.write("\n")
    assert fingerprints[0] != fingerprints[1]
