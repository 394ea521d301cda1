"""A study under a real Prefect server: interrupted, resumed, written again, refused."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from flows.names import run_name
from nextquill_core.studies.study.spec import parse_study
from tests.prefect_server import Server
from tests.world import small_settings, write_config

SPEC: dict[str, Any] = {
    "name": "small",
    "title": "The smallest study",
    "settings": {"evaluate": {"control": "likelihood"}, "train": {"launcher": {"processes": 1}}},
    "seeds": [42],
    "decoding": [],
    "parts": {"by": "log_likelihood", "not_below": []},
    "variants": {"by": "log_likelihood", "candidates": {"ε = 0.5": {"weights.low": 0.5}}},
    "bootstrap_samples": 200,
}


def written(folder: Path, world: Path, prepared: Path) -> Path:
    """Write a study of a store that has everything before training."""
    store = shutil.copytree(prepared, folder / "store")
    base = write_config(folder / "base.yaml", small_settings(world, store))
    return write_config(folder / "study.yaml", SPEC | {"base": str(base)})


def study(server: Server, config: Path, *arguments: str) -> tuple[int, str, str]:
    done = server.run("flows", "study", "--config", str(config), *arguments)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.flow
@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_an_interrupted_study_resumes_and_ends_in_the_same_page(
    server: Server, small_world: Path, prepared_store: Path, tmp_path: Path
) -> None:
    folders = [tmp_path / "interrupted", tmp_path / "whole"]
    for folder in folders:
        folder.mkdir()
    broken, whole = (written(folder, small_world, prepared_store) for folder in folders)
    process = server.start("flows", "study", "--config", str(broken))
    deadline = time.monotonic() + 900
    while not list((folders[0] / "store").glob("train/*/manifest.json")):
        assert process.poll() is None, "it ended before a training"
        assert time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    trained = {path: path.stat().st_mtime_ns for path in (folders[0] / "store").glob("train/*/manifest.json")}
    code, plan, err = study(server, broken, "--plan")
    assert code == 0, err
    assert "to make: " in plan.splitlines()[-1]
    for config, folder in zip((broken, whole), folders, strict=True):
        code, out, err = study(server, config, "--output", str(folder / "out"))
        assert code == 0, err
        assert str(folder / "out" / "RESULTS.md") in out
    assert all(path.stat().st_mtime_ns == before for path, before in trained.items()), "nothing was trained again"
    pages = [{path.relative_to(folder / "out"): path.read_bytes() for path in (folder / "out").rglob("*.*")}
             for folder in folders]  # fmt: skip
    assert pages[0] == pages[1]
    document = json.loads(pages[0][Path("results.json")])
    assert document["studies"][0]["missing"] == []
    assert len(list((folders[0] / "store").glob("train/*/manifest.json"))) == 3, "contextsft, and nextquill with two ε"

    code, out, err = study(server, broken)
    assert code == 0, err
    assert "made in" not in err
    assert "RESULTS.md" in out
    assert study(server, broken, "--plan")[1].splitlines()[-1] == "  everything is up to date"
    numbers, again = folders[0] / "out" / "results.json", tmp_path / "again"
    done = server.run("flows", "study", "--from", str(numbers), "--output", str(again))
    assert done.returncode == 0, done.stderr
    assert {path.relative_to(again): path.read_bytes() for path in again.rglob("*.*")} == pages[0]
    assert "study" in {artifact["key"] for artifact in server.post("/artifacts/filter")}


@pytest.mark.flow
def test_what_is_wrong_is_one_line_before_anything_starts(
    server: Server, small_world: Path, prepared_store: Path, tmp_path: Path
) -> None:
    config = written(tmp_path, small_world, prepared_store)
    nothing = "nextquill: study: nothing has been measured yet; run `nextquill study` without --write-only\n"
    assert study(server, config, "--write-only") == (2, "", nothing)
    code, out, err = study(server, config, "--set", "train.alfa=1")
    assert (code, out) == (2, "")
    assert err == "nextquill: study small: unknown config key `train.alfa`; did you mean `train.alpha`?\n"
    damaged = tmp_path / "results.json"
    damaged.write_text('{"studies": [{"name": 1}]}')
    code, out, err = study(server, config, "--from", str(damaged))
    assert (code, out, len(err.splitlines())) == (2, "", 1)


def test_a_flow_run_is_named_by_its_data() -> None:
    spec = parse_study(SPEC | {"base": "demo"}, "the test")
    config = spec.config({}, methods=spec.rows, split="test", seed=42, decoding=())
    assert run_name("study", {"configs": [config.model_dump(mode="json")], "questions": None}, {}) == "study Demo"
