"""`nextquill up` and `down`: one real server for this module, started and ended by the commands themselves."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from flows.server.processes import MARK
from flows.stage import timeout_variable as variable
from tasks.gpu_lock import HELD, LEASE_S
from tasks.ranks.placement import free_port
from tests.conftest import REPO
from tests.forked import Forked
from tests.prefect_server import Server
from tests.waiting import wait_for

pytestmark = [pytest.mark.flow, pytest.mark.timeout(600)]


@dataclass
class Local:
    """A server that `up` has started."""

    home: Path
    port: int
    printed: str
    server: Server

    def command(self, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return nextquill(*words, "--home", str(self.home), **options)

    def processes(self) -> dict[str, int]:
        known = json.loads((self.home / "state.json").read_text())
        return {entry["name"]: entry["pid"] for entry in known["processes"]}

    def get(self, path: str) -> Any:
        return self.server.post(path)

    def patch(self, path: str, **body: Any) -> None:
        self.server.ask("PATCH", path, **body)

    def toy(self, *words: str, **environment: str) -> Forked:
        shows_logs = {"PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "INFO"}
        return Forked(("tests.flows.toys", *words), self.server.environment | shows_logs | environment)


def nextquill(*words: str, cwd: Path = REPO, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flows", *words],
        env=plain_environment() | environment | {"PYTHONPATH": str(REPO)},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
    )


def plain_environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "NEXTQUILL_"))}
    # The slot that a killed run held is released within seconds; all other settings are those of a real server.
    quick = {
        "PREFECT_SERVER_SERVICES_REPOSSESSOR_LOOP_SECONDS": "1",
        "PREFECT_SERVER_CONCURRENCY_MAXIMUM_CONCURRENCY_SLOT_WAIT_SECONDS": "1",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
    }
    return kept | quick | {"NO_COLOR": "1", "COLUMNS": "160"}


def marked(home: Path) -> list[str]:
    """Return the command line of every process that was started from a home."""
    running = psutil.process_iter(["environ", "cmdline"])
    return [" ".join(one.info["cmdline"]) for one in running if (one.info["environ"] or {}).get(MARK) == str(home)]


def slots(local: Local) -> int:
    """Return how many trainings hold the GPU lock."""
    limits = {one["name"]: one["active_slots"] for one in local.get("/v2/concurrency_limits/filter")}
    return int(limits["training-gpu"])


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Local]:
    home, port = tmp_path_factory.mktemp("up") / "home", free_port()
    done = nextquill("up", "--port", str(port), "--home", str(home))
    api = f"http://127.0.0.1:{port}/api"
    environment = plain_environment() | {"PREFECT_API_URL": api, "PREFECT_HOME": str(home)}
    found = Local(home, port, done.stdout, Server(api, environment))
    try:
        assert done.returncode == 0, done.stdout + done.stderr
        yield found
    finally:
        found.command("down")


def test_up_creates_pools_limits_deployments_and_workers(local: Local) -> None:
    assert f"The UI: http://127.0.0.1:{local.port}\n" in local.printed
    assert "schedules: all paused" in local.printed
    deployments = {one["name"]: one for one in local.get("/deployments/filter")}
    declared = yaml.safe_load((REPO / "prefect.yaml").read_text())["deployments"]
    assert set(deployments) == {one["name"] for one in declared}
    (weekly,) = deployments["pipeline"]["schedules"]
    assert (weekly["slug"], weekly["active"], weekly["schedule"]["cron"]) == ("weekly", False, "0 3 * * 0")
    for one in deployments.values():
        assert one["global_concurrency_limit"]["limit"] == 1
        assert one["concurrency_options"]["collision_strategy"] == "ENQUEUE"
        assert "nextquill" in one["tags"]
        assert one["enforce_parameter_schema"]
    limits = {one["name"]: one["limit"] for one in local.get("/v2/concurrency_limits/filter")}
    assert limits["training-gpu"] == 1
    assert {pool["name"]: pool["type"] for pool in local.get("/work_pools/filter")} == {
        "cpu": "process",
        "gpu": "process",
    }
    for pool in ("cpu", "gpu"):
        workers = local.get(f"/work_pools/{pool}/workers/filter")
        assert [(one["name"], one["status"]) for one in workers] == [(f"worker {pool}", "ONLINE")]


def test_a_deployed_stage_runs_to_its_end(local: Local, small_world: Path, tmp_path: Path) -> None:
    deployment = next(one for one in local.get("/deployments/filter") if one["name"] == "ingest")
    config = deployment["parameters"]["config"]
    config["store"] = str(tmp_path / "store")
    config["ingest"]["inputs"] = [
        {"category": "Demo", "reviews": str(small_world / "reviews.jsonl"), "items": str(small_world / "items.jsonl")}
    ]
    run = local.server.schedule(deployment["id"], config=config)

    def ended() -> str | None:
        state = local.server.flow_run(run)["state"]
        return state["name"] if state["type"] in ("COMPLETED", "FAILED", "CRASHED") else None

    assert wait_for("the run", ended, 120) == "Completed"
    assert list((tmp_path / "store").glob("ingest/*/manifest.json"))


def test_a_second_up_starts_nothing_and_keeps_the_user_s_settings(local: Local) -> None:
    before = local.processes()
    done = local.command("up")
    assert done.returncode == 0, done.stderr
    assert "started" not in done.stdout
    assert "created" not in done.stdout
    assert local.processes() == before

    pipeline = next(one for one in local.get("/deployments/filter") if one["name"] == "pipeline")
    (weekly,) = pipeline["schedules"]
    local.patch(f"/deployments/{pipeline['id']}/schedules/{weekly['id']}", active=True)
    local.patch("/v2/concurrency_limits/training-gpu", limit=2)
    state = local.home / "state.json"
    known = json.loads(state.read_text())
    state.write_text(json.dumps(known | {"deployed": "something older"}))
    os.kill(before["worker cpu"], signal.SIGKILL)
    done = local.command("up")
    assert done.returncode == 0, done.stderr
    assert "deployments: 9" in done.stdout
    assert "schedules: pipeline on" in done.stdout
    assert json.loads(state.read_text())["deployed"] == known["deployed"]
    after = local.processes()
    assert {name for name in before if before[name] != after[name]} == {"worker cpu"}
    limits = {one["name"]: one["limit"] for one in local.get("/v2/concurrency_limits/filter")}
    assert limits["training-gpu"] == 2
    local.patch("/v2/concurrency_limits/training-gpu", limit=1)


def test_another_port_is_refused_while_a_server_runs(local: Local) -> None:
    done = local.command("up", "--port", str(free_port()))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "nextquill down" in done.stderr


def test_trainings_take_turns(local: Local) -> None:
    wait_for("the GPU lock", lambda: slots(local) == 0)
    first = local.toy("hold", "300")
    second = None
    try:
        wait_for("the first training", lambda: slots(local) == 1)
        second = waiting = local.toy("hold", "1")
        waits = "waits, another training is running (limit training-gpu)"
        wait_for("the second training", lambda: waits in waiting.stdout + waiting.stderr)
        of_a_sweep = local.toy("hold", "0", **{HELD: "training-gpu"}).finish(60)
        assert "held" in of_a_sweep.stdout, "a point of a sweep whose process holds the lock does not wait for it"
        assert second.poll() is None
        assert slots(local) == 1
        ended = time.time()
        first.terminate()
        printed = second.finish(60).stdout
        assert float(printed.split("held ")[1].split()[0]) > ended
        assert first.wait(timeout=30) != 0
        wait_for("its release", lambda: slots(local) == 0)
        elsewhere = local.toy("hold", "0", NEXTQUILL_TRAINING_LIMIT="training-gpu-b").finish(60)
        assert "held" in elsewhere.stdout, "without a limit nothing waits"
    finally:
        for process in filter(None, (first, second)):
            process.kill()
            process.wait()


@pytest.mark.slow
def test_a_killed_training_releases_the_gpu_lock(local: Local) -> None:
    wait_for("the GPU lock", lambda: slots(local) == 0)
    first = local.toy("hold", "300")
    wait_for("the training", lambda: slots(local) == 1)
    first.kill()
    first.wait()
    second = local.toy("hold", "0").finish(LEASE_S + 40)
    assert "held" in second.stdout


def test_a_run_beyond_its_time_is_ended_with_its_processes(local: Local) -> None:
    # The limit of a flow itself, of a stage inside a pipeline with a limit, and of the pipeline around a stage.
    running = {}
    for toy, limited in (("hang", "train"), ("hang-inside", "train"), ("hang-inside", "pipeline")):
        limit = str(20 / 3600)  # long enough for the child to start on a busy machine
        hours = {variable("train"): "1", variable("pipeline"): "1", variable(limited): limit}
        running[toy, limited] = local.toy(toy, **hours)
    for process in running.values():
        done = process.finish(120)
        assert done.returncode != 0
        child = int(done.stdout.split("child ")[1].split()[0])
        assert not Path("/proc", str(child)).exists(), "the child outlived the run"
    runs = local.server.runs(limit=5)
    ended = [run["flow"] for run in runs if run["state"]["name"] == "TimedOut"]
    assert len(ended) >= 3, "a flow whose subflow timed out may end as TimedOut, too, or as Failed"
    assert set(ended) == {"hang", "hang-inside"}


def test_only_temporary_errors_are_retried(local: Local) -> None:
    done = local.toy("retry").finish(90)
    assert [line for line in done.stdout.splitlines() if line.startswith("tried")] == [
        "tried network 3 times: Completed",
        "tried input 1 times: Failed",
        "tried network by force 1 times: Failed",
    ], done.stderr


def test_down_ends_runs_and_leaves_no_process(local: Local, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    flow = local.server.post("/flows/", name="hang")["id"]
    here = {"prefect.deployments.steps.set_working_directory": {"directory": str(REPO)}}
    toy = {"name": "toy", "flow_id": flow, "entrypoint": "tests/flows/toys.py:hang", "work_pool_name": "cpu"}
    deployment = local.server.post("/deployments/", **toy, pull_steps=[here], parameters={"note": str(note)})["id"]
    local.server.schedule(deployment)
    wait_for("the run", note.exists, 60)
    child = int(note.read_text())
    pids = local.processes()
    assert len(marked(local.home)) > len(pids)

    done = local.command("down")
    assert done.returncode == 0, done.stderr
    assert "flow runs: 1 cancelled" in done.stdout
    assert {line.split(":")[0] for line in done.stdout.splitlines()} >= {"worker cpu", "worker gpu", "server"}
    assert marked(local.home) == []
    assert not Path("/proc", str(child)).exists()
    assert local.processes() == {}

    again = local.command("down")
    assert (again.returncode, again.stdout) == (0, f"nothing runs in {local.home}\n")


def test_a_taken_port_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = nextquill("up", "--port", str(port), "--home", str(tmp_path / "home"))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"another program listens at 127.0.0.1:{port}" in done.stderr
    assert marked(tmp_path / "home") == []


def test_a_server_that_does_not_come_up_is_reported_with_its_log(tmp_path: Path) -> None:
    home = tmp_path / "home"
    broken = {"PREFECT_SERVER_DATABASE_CONNECTION_URL": "sqlite+aiosqlite:////nowhere/at/all.db"}
    done = nextquill("up", "--port", str(free_port()), "--home", str(home), **broken)
    assert done.returncode == 1
    assert "the server does not come up" in done.stderr
    assert "Traceback (most recent call last)" not in done.stderr.splitlines()[0]
    assert len(done.stderr.splitlines()) > 3, "the log's last lines"
    assert json.loads((home / "state.json").read_text())["processes"] == []
    assert marked(home) == []


def test_down_without_a_server_changes_nothing(tmp_path: Path) -> None:
    done = nextquill("down", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "nothing runs: there is no .nextquill\n")
    assert list(tmp_path.iterdir()) == []
