"""A flow that is run from the command line: its temporary server, and no heartbeats."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, get_current_settings, temporary_settings

from flows.cli.runner import no_heartbeats
from tests.conftest import REPO
from tests.waiting import wait_for


def heartbeats() -> Any:
    return get_current_settings().flows.heartbeat_frequency


def test_heartbeats_are_off_unless_the_user_has_set_them() -> None:
    assert heartbeats() is not None, "Prefect's default, for which each flow run would wait"
    with no_heartbeats():
        assert heartbeats() is None
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: 45}), no_heartbeats():
        assert heartbeats() == 45


SERVER = """
import os, signal, sys
from flows.cli.runner import quiet_prefect, server_ready
from flows.server.settings import server_settings
quiet_prefect()
with server_ready(server_settings(), meanwhile=["nextquill_core.evaluation.text_metrics"]):
    import prefect
assert ("nextquill_core.evaluation.text_metrics" in sys.modules) is started, "imported only while the server starts"
from prefect.server.api.server import SubprocessASGIServer
server = SubprocessASGIServer()
assert server.running is started, server.running
if started:
    import httpx
    assert httpx.get(f"{server.api_url}/health").json() is True
    process = server.server_process
    @prefect.flow
    def flow():
        assert SubprocessASGIServer().server_process is process, "the flow has started another server"
        return "ran"
    assert os.getsid(process.pid) != os.getsid(0), "Ctrl-C in a terminal would end it with the command"
    print(flow())
    print(process.pid, flush=True)
    if killed:
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def home(prefect_tables: Path, tmp_path: Path) -> Path:
    """Prefect's folder."""
    return shutil.copytree(prefect_tables, tmp_path / "prefect")


def run_beside_a_server(home: Path, *, url: str = "", killed: bool = False) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    environment |= {"PREFECT_HOME": str(home)} | ({"PREFECT_API_URL": url} if url else {})
    code = f"started, killed = {not url}, {killed}\n{SERVER}"
    return subprocess.run([sys.executable, "-c", code], env=environment, cwd=REPO, capture_output=True, text=True)


@pytest.mark.flow
@pytest.mark.parametrize("url", ["", "http://127.0.0.1:9/api"], ids=["none", "one"])
def test_a_temporary_server_starts_only_if_no_server_is_set(home: Path, url: str) -> None:
    done = run_beside_a_server(home, url=url)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:1] == ([] if url else ["ran"])


@pytest.mark.flow
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's signal to orphans")
def test_the_temporary_server_has_its_own_session_and_ends_with_the_command(home: Path) -> None:
    done = run_beside_a_server(home, killed=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    server = int(done.stdout.splitlines()[1])
    wait_for("the end of the server", lambda: not Path("/proc", str(server)).exists(), 30)
