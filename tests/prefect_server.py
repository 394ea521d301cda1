"""A real Prefect server of the tests' own."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from benchmarks.server_rates import environment, running
from tests.forked import Forked

BUSY = 503


@dataclass
class Server:
    """A running server and the environment that points at it."""

    api: str
    environment: dict[str, str]

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a module with its arguments to its end."""
        return self.start(*command).finish()

    def check(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a module with its arguments to its end; it must succeed."""
        done = self.run(*command)
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    def start(self, *command: str) -> Forked:
        """Start a module with its arguments."""
        return Forked(command, self.environment)

    def create_pool(self, name: str) -> None:
        """Create a work pool of processes, as `prefect work-pool create` does, without the seconds of its imports."""
        from prefect.workers.process import ProcessWorker

        template = ProcessWorker.get_default_base_job_template()
        self.post("/work_pools/", name=name, type="process", base_job_template=template)

    def runs(self, **asked: Any) -> list[dict[str, Any]]:
        """Return the newest flow runs, at most 200, the oldest first, each with the name of its flow as `flow`."""
        found = self.post("/flow_runs/filter", sort="START_TIME_DESC", **asked)
        names = {flow["id"]: flow["name"] for flow in self.post("/flows/filter")}
        return [run | {"flow": names[run["flow_id"]]} for run in reversed(found)]

    def flow_run(self, identity: str) -> dict[str, Any]:
        """Return a flow run as the server knows it."""
        found: dict[str, Any] = self.ask("GET", f"/flow_runs/{identity}")
        return found

    def deployment(self, name: str) -> str:
        """Return the id of the deployment of this name."""
        (found,) = self.post("/deployments/filter", deployments={"name": {"any_": [name]}})
        return str(found["id"])

    def schedule(self, deployment: str, **parameters: Any) -> str:
        """Schedule a run of the deployment with this id, to begin now, and return the run's id."""
        asked = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
        return str(self.post(f"/deployments/{deployment}/create_flow_run", **asked)["id"])

    def post(self, path: str, **body: Any) -> Any:
        """Send a request with values in JSON, and return the answer."""
        return self.ask("POST", path, **body)

    def ask(self, method: str, path: str, **body: Any) -> Any:
        """What the server answers; asked again while its database is busy, as Prefect's own client does."""
        for pause_s in (1, 2, 4, 8):
            try:
                return self._asked(method, path, body)
            except urllib.error.HTTPError as error:
                if error.code != BUSY:
                    raise
                time.sleep(pause_s)
        return self._asked(method, path, body)

    def _asked(self, method: str, path: str, body: dict[str, Any]) -> Any:
        data = None if method == "GET" else json.dumps(body).encode()
        request = urllib.request.Request(  # noqa: S310 - a loopback address
            f"{self.api}{path}", data=data, headers={"Content-Type": "application/json"}, method=method
        )
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            return json.loads(answer.read() or "null")


def make_tables(home: Path) -> None:
    """Make Prefect's database in a folder; a server does this at its first start, which takes most of that start."""
    done = Forked(("prefect", "server", "database", "upgrade", "--yes"), environment(home)).finish(180)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def server(prefect_tables: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    shutil.copytree(prefect_tables, folder / "prefect")
    with running("sqlite", folder) as started:
        yield Server(started.api, started.environment)
