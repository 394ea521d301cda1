"""The command `serve` as a process: it starts, answers, ends on a signal, survives a kill, and refuses in one line."""

from __future__ import annotations

import os
import shutil
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from nextquill_core.pipeline.run import Run
from tests.flows.cli.test_main import refused
from tests.forked import Forked
from tests.servers import KETTLE
from tests.stages import untrained
from tests.waiting import wait_for
from tests.world import small_config, small_settings, write_config

START_S = 120.0
ONE = {"evaluate": {"methods": ["nextquill"], "max_new_tokens": 200}}


@pytest.fixture(scope="module")
def config(small_world: Path, prepared_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the settings of a run whose adapter has random weights."""
    folder = tmp_path_factory.mktemp("serve")
    store = shutil.copytree(prepared_store, folder / "store")
    run = Run(small_config(small_world, store, **ONE))
    run.make(run.plan.train["nextquill"], launch=untrained)
    settings = small_settings(small_world, store)
    settings["evaluate"] |= ONE["evaluate"]
    return write_config(folder / "config.yaml", settings)


@contextmanager
def process(config: Path, *arguments: str) -> Iterator[Forked]:
    command = ("flows", "serve", "--config", str(config), "--drain", "60", *arguments)
    started = Forked(command, dict(os.environ))
    try:
        yield started
    finally:
        started.kill()
        started.wait(30)


def address(server: Forked) -> str:
    """Wait for the line with the address and return it."""
    wait_for("the address", lambda: "\n" in server.stdout or server.poll() is not None, START_S)
    assert "\n" in server.stdout, server.stderr
    return server.stdout.partition(": nextquill (")[0]


def draft(url: str, **body: Any) -> dict[str, Any]:
    answer = httpx.post(f"{url}/v1/drafts", json={"item": KETTLE, **body}, timeout=60, trust_env=False)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


@pytest.mark.process
@pytest.mark.pipeline
def test_a_signal_lets_requests_in_flight_end_and_a_kill_loses_nothing(config: Path) -> None:
    with process(config, "--port", "0") as server:
        url = address(server)
        first = draft(url, decoding="greedy")
        with ThreadPoolExecutor() as pool:
            waiting = [pool.submit(draft, url, decoding="greedy") for _ in range(4)]
            while "nextquill_in_flight 4.0" not in httpx.get(f"{url}/metrics", trust_env=False).text:
                assert not all(one.done() for one in waiting), "the signal comes too late to interrupt anything"
            server.terminate()
            assert server.wait(90) == 0, server.stderr
            assert [one.result()["text"] for one in waiting] == [first["text"]] * 4
        assert '"message": "ended"' in server.stderr
    port = url.rpartition(":")[2]
    with process(config, "--port", port) as server:
        assert address(server) == url
        server.kill()
        assert server.wait(20) == -signal.SIGKILL
    with process(config, "--port", port) as server:
        assert address(server) == url, "the port is free at once"
        assert draft(url, decoding="greedy") == first
        server.send_signal(signal.SIGINT)
        assert server.wait(90) == 0, server.stderr


@pytest.mark.pipeline
def test_a_port_that_is_taken_is_one_line_before_a_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], config: Path
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        message = refused(monkeypatch, capsys, "serve", "--config", config, "--port", str(port))
    assert f"127.0.0.1:{port}: cannot listen there (Address already in use)" in message


@pytest.mark.pipeline
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--method", "contextsft"), "this config trains no `contextsft`"),
        (("--method", "nextquil"), "did you mean `nextquill`?"),
        (("--host", "no.such.host.invalid"), "no such address"),
        (("--host", "a..b"), "--host a..b: no such address (not a host name)"),
        (("--api-key-env", "NO_SUCH_VARIABLE"), "NO_SUCH_VARIABLE: this variable is not set"),
        (("--set", "evaluate.engine=openai", "--set", "evaluate.server.url=http://127.0.0.1:9/v1"),
         "the server does not list its models"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    config: Path,
    arguments: tuple[str, ...],
    words: str,
) -> None:
    assert words in refused(monkeypatch, capsys, "serve", "--config", config, "--port", "0", *arguments)
