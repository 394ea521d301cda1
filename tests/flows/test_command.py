"""How a flow is run from the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, get_current_settings, temporary_settings

from flows.command import no_heartbeats
from tests.conftest import REPO


def heartbeats() -> Any:
    return get_current_settings().flows.heartbeat_frequency


def test_heartbeats_are_left_out_unless_somebody_has_set_them() -> None:
    assert heartbeats() is not None, "Prefect's own; each flow run would wait for them"
    with no_heartbeats():
        assert heartbeats() is None
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: 45}), no_heartbeats():
        assert heartbeats() == 45


SERVER = """
import sys
from flows.command import quiet_prefect, server_ready
quiet_prefect()
with server_ready(meanwhile=["nextquill_core.evaluation.rouge"]):
    import prefect
assert ("nextquill_core.evaluation.rouge" in sys.modules) is started, "only while there is something to wait for"
from prefect.server.api.server import SubprocessASGIServer
server = SubprocessASGIServer()
assert server.running is started, server.running
if started:
    import httpx
    assert httpx.get(f"{server.api_url}/health").json() is True
    process = server.server_process
    @prefect.flow
    def flow():
        assert SubprocessASGIServer().server_process is process, "the flow has started another one"
        return "ran"
    print(flow())
"""


@pytest.mark.flow
@pytest.mark.parametrize("url", ["", "http://127.0.0.1:9/api"], ids=["none", "one"])
def test_a_server_is_there_when_libraries_are_and_only_where_none_is_named(tmp_path: Path, url: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    environment |= {"PREFECT_HOME": str(tmp_path)} | ({"PREFECT_API_URL": url} if url else {})
    code = f"started = {not url}\n{SERVER}"
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ("" if url else "ran\n")
