"""The pipeline under a real Prefect server: killed, resumed, reused, refused, deployed."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from nextquill_core.config import load_config, parse_config
from nextquill_core.pipeline import lineage
from nextquill_core.pipeline.run import Run
from tests.conftest import REPO
from tests.prefect_server import Server
from tests.tasks.processes import workers_of
from tests.waiting import wait_for
from tests.world import small_settings, write_config

pytestmark = [pytest.mark.flow, pytest.mark.timeout(600)]
STAGES = {"ingest", "model", "score", "train", "evaluate"}


@pytest.fixture(scope="module")
def config(small_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    settings = small_settings(small_world, folder / "store")
    settings["evaluate"]["methods"] = ["qwen", "nextquill"]  # one training; the tutorial's run does two
    settings["model"]["tiny"]["steps"] = 100  # more than a second, so that its progress is worth showing
    return write_config(folder / "config.yaml", settings)


def states(server: Server) -> list[tuple[str, str]]:
    """(flow run's flow, state), the newest run of each flow last."""
    return [(run["flow"], run["state"]["name"]) for run in server.runs()]


@pytest.mark.ranks
def test_killed_in_training_the_same_command_completes(server: Server, config: Path) -> None:
    store = config.parent / "store"
    process = server.start("flows", "run", "--config", str(config))
    trains = lambda: list(store.glob("train/.staging-*/metrics.jsonl"))  # noqa: E731
    wait_for("training", lambda: trains() or process.poll() is not None, 400)
    assert process.poll() is None, "it ended before training"
    process.kill()
    process.wait()
    wait_for("the end of the ranks", lambda: not workers_of(store), 10)
    scored = next(store.glob("score/*/manifest.json")).stat().st_mtime_ns

    done = server.check("tests.flows.counted", "run", "--config", str(config))
    assert "score: reused, fresh at" in done.stderr
    counted = json.loads(done.stderr.splitlines()[-1])
    assert counted["plans"] == 1, "a command opens its configuration once, whatever stages it runs"
    plan = Run(load_config(config)).plan
    assert plan.evaluation.clusters
    steps = (*lineage(plan.evaluate), plan.evaluation.clusters)  # which the report shows, and no number depends on
    assert counted["lookups"] == {step.name: 1 for step in steps}, "a command looks up the state of each step once"
    assert "train nextquill: made in" in done.stderr
    assert "Small, paper decoding" in done.stdout
    assert done.stdout.index(" users") < done.stdout.index("Small, gain by history"), "the verdict comes first"
    *_, report = (line for line in done.stdout.splitlines() if line.startswith("report: "))
    assert Path(report.removeprefix("report: ")).is_file()
    commands = done.stdout[done.stdout.index("Next:") :].splitlines()[2::2]
    assert [line.split()[:2] for line in commands] == [["nextquill", name] for name in ("explain", "status", "promote")]
    assert all(f"--config {config}" in line for line in commands)
    rows = ("ingest", "model", "score", "train nextquill", "evaluate")
    numbers = re.findall(rf"  (\[\d/5\]) ({'|'.join(rows)}): (?:made|reused)", done.stderr)
    assert numbers == [(f"[{place}/5]", name) for place, name in enumerate(rows, 1)]
    assert next(store.glob("score/*/manifest.json")).stat().st_mtime_ns == scored


@pytest.mark.ranks
def test_tables_report_and_progress_are_in_the_ui(server: Server, config: Path) -> None:
    artifacts = {artifact["key"]: artifact for artifact in server.post("/artifacts/latest/filter")}
    assert {"ingest-account-small", "score-effects-small", "effects-small"} <= set(artifacts)
    rows = json.loads(artifacts["evaluation-small"]["data"])
    assert {row["method"] for row in rows} == {"qwen", "nextquill"}
    assert "## Small, paper decoding, n = " in artifacts["report-small"]["data"]
    assert "| train | " in artifacts["why-evaluate-small"]["data"]
    assert any(key.startswith("progress-") for key in artifacts)
    runs = {run["name"]: run for run in server.runs()}
    shown = artifacts["pipeline-small"]
    assert shown["flow_run_id"] == runs["pipeline Small"]["id"], "on the page of the pipeline's own run"
    assert "## Small, paper decoding, n = " in shown["data"]
    assert "](data:image/png;base64,iVBOR" in shown["data"], "with the figures of the report"
    for stage, how in (("evaluate", "made"), ("ingest", "reused")):
        run = re.escape(f"[{stage}](../../runs/flow-run/{runs[f'{stage} Small']['id']})")
        assert re.search(rf"^\| {run} \| [^|]*\| {how} \|", shown["data"], re.MULTILINE), "after what it shows"


@pytest.mark.ranks
def test_runs_are_named_and_tagged_by_what_they_are_about(server: Server, config: Path) -> None:
    made = ["category:Small", "stage:train", "method:nextquill", "made"]
    assert [run["name"] for run in server.runs(flow_runs={"tags": {"all_": made}})] == ["train nextquill Small"]
    pipelines = server.runs(flow_runs={"tags": {"all_": ["pipeline"]}})
    assert {(run["name"], *run["tags"]) for run in pipelines} == {("pipeline Small", "pipeline", "category:Small")}
    server.check("flows", "ingest", "--config", str(config), "--set", "ingest.max_bad_share=0.5")
    (newest,) = server.runs(limit=1)
    assert newest["name"] == "ingest Small max_bad_share=0.5"


@pytest.mark.ranks
def test_all_fresh_is_reused_and_says_so(server: Server, config: Path) -> None:
    server.check("flows", "run", "--config", str(config))
    newest = dict(states(server))
    assert {newest[stage] for stage in STAGES} == {"Reused"}
    assert newest["nextquill"] == "Completed"
    alone = server.environment | {"PREFECT_API_URL": ""}
    quick = Server("", alone).check("flows", "run", "--config", str(config))
    assert quick.stderr.count("reused, fresh at") == 5, "without a server to show it in, none is started to reuse"


@pytest.mark.ranks
def test_a_deleted_artifact_is_made_again_and_what_depends_on_it_stays(server: Server, config: Path) -> None:
    folder = server.run("flows", "path", "ingest", "--config", str(config)).stdout.strip()
    shutil.rmtree(folder)
    done = server.check("flows", "run", "--config", str(config))
    assert "ingest: made in" in done.stderr
    assert done.stderr.count("reused, fresh at") == 4, "the same bytes came out, so nothing else is made again"


def test_one_stage_alone_and_bad_data_found_inside_it(server: Server, small_world: Path, tmp_path: Path) -> None:
    settings = small_settings(small_world, tmp_path / "store")
    config = str(write_config(tmp_path / "config.yaml", settings))
    done = server.run("flows", "ingest", "--config", config, "--set", "ingest.protocol.min_user_reviews=400")
    *_, scanned, error = done.stderr.splitlines()
    assert done.returncode == 2
    assert "scan Small: made in" in scanned, "what does not depend on the thresholds is not made again"
    assert "min_user_reviews" in error
    assert dict(states(server))["ingest"] == "Failed"
    status = server.run("flows", "status", "--config", config, "--set", "ingest.protocol.min_user_reviews=400")
    assert "failed" in status.stdout


def test_every_deployment_is_accepted(server: Server) -> None:
    for pool in ("cpu", "gpu"):
        server.create_pool(pool)
    server.check("prefect", "--no-prompt", "deploy", "--all")
    found = {deployment["name"]: deployment for deployment in server.post("/deployments/filter")}
    assert set(found) >= STAGES | {"pipeline", "sweep", "reproduce", "promote"}
    form = found["pipeline"]["parameter_openapi_schema"]["definitions"]
    assert form["WeightsConfig"]["properties"]["delta"]["description"]
    assert form["TinyModelConfig"]["title"] == "Tiny Model"
    assert found["pipeline"]["parameters"]["config"]["ingest"]["inputs"][0]["category"] == "Demo"


def test_the_deployed_parameters_are_the_demo_s() -> None:
    import yaml

    project = yaml.safe_load((REPO / "prefect.yaml").read_text())
    for deployment in project["deployments"]:
        parameters = deployment["parameters"]
        for config in parameters.get("configs") or [parameters["config"]]:
            assert parse_config(config, deployment["name"]) == load_config(REPO / "configs" / "demo.yaml")
