"""A real Prefect server of the tests' own."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

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

    def start(self, *command: str) -> Forked:
        """Start a module with its arguments."""
        return Forked(command, self.environment)

    def create_pool(self, name: str) -> None:
        """Create a work pool of processes, as `prefect work-pool create` does, without the seconds of its imports."""
        from prefect.workers.process import ProcessWorker

        template = ProcessWorker.get_default_base_job_template()
        self.post("/work_pools/", json.dumps({"name": name, "type": "process", "base_job_template": template}))

    def post(self, path: str, body: str = "{}") -> Any:
        return self.ask("POST", path, body)

    def ask(self, method: str, path: str, body: str) -> Any:
        """What the server answers; asked again while its database is busy, as Prefect's own client does."""
        for pause_s in (1, 2, 4, 8):
            try:
                return self._asked(method, path, body)
            except urllib.error.HTTPError as error:
                if error.code != BUSY:
                    raise
                time.sleep(pause_s)
        return self._asked(method, path, body)

    def _asked(self, method: str, path: str, body: str) -> Any:
        request = urllib.request.Request(  # noqa: S310 - a loopback address
            f"{self.api}{path}", data=body.encode(), headers={"Content-Type": "application/json"}, method=method
        )
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            return json.loads(answer.read() or "null")


def make_tables(home: Path) -> None:
    """Make Prefect's database in a folder; a server does this at its first start, which takes most of that start."""
    environment = os.environ | {"PREFECT_HOME": str(home)}
    environment.pop("PREFECT_API_URL", None)
    done = Forked(("prefect", "server", "database", "upgrade", "--yes"), environment).finish(180)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def server(prefect_tables: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = shutil.copytree(prefect_tables, tmp_path_factory.mktemp("server") / "prefect")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "NO_COLOR": "1",
        "COLUMNS": "160",
    }
    log = (home / "server.log").open("w")
    process = subprocess.Popen(
        [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)],
        env=environment,
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        _wait_until_healthy(environment["PREFECT_API_URL"], process, Path(log.name))
        yield Server(environment["PREFECT_API_URL"], environment)
    finally:
        process.terminate()
        process.wait(timeout=30)
        log.close()


def _wait_until_healthy(api: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(f"{api}/health", timeout=2):  # noqa: S310
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(log.read_text())
