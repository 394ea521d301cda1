"""A study under a real Prefect server: interrupted, resumed, written again, refused."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from flows.names import run_name
from nextquill_core.studies.study.spec import parse_study
from tests.flows.cli.test_main import refused
from tests.prefect_server import Server
from tests.waiting import wait_for
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


def written(folder: Path, world: Path) -> Path:
    """Write a study whose store is in the same folder."""
    base = write_config(folder / "base.yaml", small_settings(world, folder / "store"))
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
        shutil.copytree(prepared_store, folder / "store")
    broken, whole = (written(folder, small_world) for folder in folders)
    process = server.start("flows", "study", "--config", str(broken))
    trainings = lambda: list((folders[0] / "store").glob("train/*/manifest.json"))  # noqa: E731
    wait_for("a training", lambda: trainings() or process.poll() is not None, 900)
    assert process.poll() is None, "it ended before a training"
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    trained = {path: path.stat().st_mtime_ns for path in trainings()}
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
    assert len(trainings()) == 3, "contextsft, and nextquill with two ε"

    code, out, err = study(server, broken)
    assert code == 0, err
    assert "made in" not in err
    assert "RESULTS.md" in out
    assert study(server, broken, "--plan")[1].splitlines()[-1] == "  everything is up to date"
    numbers, again = folders[0] / "out" / "results.json", tmp_path / "again"
    server.check("flows", "study", "--from", str(numbers), "--output", str(again))
    assert {path.relative_to(again): path.read_bytes() for path in again.rglob("*.*")} == pages[0]
    assert "study" in {artifact["key"] for artifact in server.post("/artifacts/filter")}


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (["--write-only"], "study: nothing has been measured yet; run `nextquill study` without --write-only\n"),
        (["--set", "train.alfa=1"], "study small: unknown config key `train.alfa`; did you mean `train.alpha`?\n"),
        (["--from", "results.json"], "results.json: "),
    ],
)
def test_what_is_wrong_is_one_line_before_anything_starts(
    monkeypatch: Any, capsys: Any, small_world: Path, tmp_path: Path, option: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("results.json").write_text('{"studies": [{"name": 1}]}')
    line = refused(monkeypatch, capsys, "study", "--config", written(tmp_path, small_world), *option)
    assert line.startswith(f"nextquill: {said}")


def test_a_flow_run_is_named_by_its_data() -> None:
    spec = parse_study(SPEC | {"base": "demo"}, "the test")
    config = spec.config({}, methods=spec.rows, split="test", seed=42, decoding=())
    assert run_name("study", {"configs": [config.model_dump(mode="json")], "questions": None}, {}) == "study Demo"
