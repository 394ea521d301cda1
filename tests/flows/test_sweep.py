"""Sweeps under a real Prefect server: in turn, side by side, and with a point that fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.prefect_server import Server
from tests.world import small_settings, write_config

pytestmark = [pytest.mark.flow, pytest.mark.ranks, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def config(small_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    settings = small_settings(small_world, folder / "store")
    settings["evaluate"] |= {"methods": ["contextsft", "nextquill"], "decoding": ["sane"], "split": "test"}
    return write_config(folder / "config.yaml", settings)


def sweep(server: Server, config: Path, *arguments: str) -> tuple[int, str, str]:
    done = server.run("flows", "sweep", "--config", str(config), *arguments)
    return done.returncode, done.stdout, done.stderr


def run_names(server: Server, flow: str) -> list[str]:
    return [run["name"] for run in server.runs() if run["flow"] == flow]


def document(store: Path, points: int) -> dict[str, object]:
    found = [json.loads(path.read_text()) for path in store.glob("sweep/*/metrics.json")]
    chosen = [each for each in found if len(each["points"]) == points]
    assert len(chosen) == 1
    return dict(chosen[0])


def test_two_points_in_turn_and_one_table_of_val(server: Server, config: Path) -> None:
    code, out, err = sweep(server, config, "train.alpha=0.0,0.5")
    assert code == 0, err
    assert "all measured on val; the test split is not used" in err
    assert "Small, sane decoding, val, n = 20" in out
    assert out.count("nextquill ") == 2
    assert out.count("contextsft ") == 1, "a method that α does not touch has one line"
    assert "any" in out
    store = config.parent / "store"
    assert document(store, 2)["split"] == "val"
    trained = list(store.glob("train/*/manifest.json"))
    assert len(trained) == 3, "contextsft once, nextquill twice"
    identities = [json.loads(path.read_text())["identity"] for path in store.glob("predictions/*/manifest.json")]
    assert {identity["split"] for identity in identities} == {"val"}
    assert run_names(server, "nextquill")[-2:] == ["pipeline Small α=0", "pipeline Small α=0.5"]
    assert run_names(server, "sweep")[-1] == "sweep Small α=0,0.5"
    assert "sweep-small" in {artifact["key"] for artifact in server.post("/artifacts/filter")}


def test_more_points_side_by_side_and_what_is_there_is_reused(server: Server, config: Path) -> None:
    arguments = ["train.alpha=0.0,0.5", "weights.high=0.9,0.7", "--parallel", "2"]
    code, out, err = sweep(server, config, *arguments)
    assert code == 0, err
    assert err.count(": reused") == 2
    assert err.count(": started, log") == 2
    assert err.count(": done") == 2
    store = config.parent / "store"
    assert len(list(store.glob("train/*/manifest.json"))) == 5
    assert not list(store.glob("sweep/.points-*")), "logs of points that went well are not kept"
    assert sorted(run_names(server, "nextquill")[-2:]) == [
        "pipeline Small λ=0.7 α=0",
        "pipeline Small λ=0.7 α=0.5",
    ]
    assert len(document(store, 4)["points"]) == 4  # type: ignore[arg-type]
    again = server.check("flows", "sweep", "--config", str(config), *arguments)
    assert again.stdout == out
    assert "started" not in again.stderr


@pytest.mark.parametrize("parallel", ["1", "2"])
def test_a_point_that_fails_is_named_and_keeps_nobody_else(server: Server, config: Path, parallel: str) -> None:
    alpha = f"0.{parallel}"
    arguments = ["train.learning_rate=1.0e+30,1.0e-3", f"train.alpha={alpha}", "--parallel", parallel]
    code, out, err = sweep(server, config, *arguments, "--set", "evaluate.methods=[nextquill]")
    assert code == 2, err
    last = err.splitlines()[-1]
    assert last.startswith(f"nextquill: sweep train.learning_rate=1e+30 train.alpha={alpha}: 1 of 2 points failed")
    assert "loss" in last.partition("the first with")[2]
    assert out == ""
    store = config.parent / "store"
    manifests = [json.loads(path.read_text()) for path in store.glob("evaluate/*/manifest.json")]
    assert [m["config"]["train"]["learning_rate"] for m in manifests if m["config"]["train"]["alpha"] == float(alpha)]
