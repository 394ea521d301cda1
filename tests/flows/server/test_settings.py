"""A Prefect server that is set and cannot be used is one line, before anything starts."""

from __future__ import annotations

import threading
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from flows.server import local
from flows.server.settings import LOOPBACK, bypass_proxy_for_loopback, require_server, server_settings
from storage import UserError
from tests.flows.cli.test_main import refused
from tests.world import small_settings, write_config

PREFECT = {"/api/health": b"true", "/api/admin/version": b'"3.8.8"'}
OLD = PREFECT | {"/api/admin/version": b'"2.20.1"'}
NOWHERE = "http://127.0.0.1:9/api"
CLOUD = "https://api.prefect.cloud/api/accounts/a/workspaces/b"


class Site(ThreadingHTTPServer):
    """Answers known paths with their bytes, and all others with a page."""

    daemon_threads = True

    def __init__(self, pages: dict[str, bytes], status: int, password: str = "") -> None:
        super().__init__(("127.0.0.1", 0), Page)
        self.pages, self.status, self.password = pages, status, password
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()


class Page(BaseHTTPRequestHandler):
    server: Site

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        refused = self.server.password and self.headers["Authorization"] != self.server.password
        self.send_response(401 if refused else self.server.status)
        self.end_headers()
        self.wfile.write(self.server.pages.get(self.path, b"<html>Welcome</html>"))


@pytest.fixture
def site() -> Iterator[Callable[..., str]]:
    started: list[Site] = []

    def start(pages: dict[str, bytes], status: int = 200, password: str = "") -> str:
        started.append(Site(pages, status, password))
        return started[-1].url

    yield start
    for one in started:
        one.shutdown()
        one.server_close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "")  # so that the old value is restored
        monkeypatch.delenv(name)


def fault(tmp_path: Path, **environment: str) -> str:
    """Return what `require_server` refuses in an environment without profiles, or ""."""
    try:
        require_server(server_settings({"PREFECT_HOME": str(tmp_path), **environment}))
    except UserError as error:
        return str(error)
    return ""


def test_without_a_url_nothing_is_checked(tmp_path: Path) -> None:
    assert fault(tmp_path) == ""


def test_a_prefect_server_is_accepted(tmp_path: Path, site: Callable[..., str]) -> None:
    url = site(PREFECT)
    assert fault(tmp_path, PREFECT_API_URL=f"{url}/api") == fault(tmp_path, PREFECT_API_URL=f"{url}/api/") == ""


@pytest.mark.parametrize(
    ("pages", "status", "path", "message"),
    [
        ({}, 200, "/api", "no Prefect server answers at URL/api (another program); start one (`nextquill up`)"),
        ({}, 404, "/api", "no Prefect server answers at URL/api (HTTP 404); start one (`nextquill up`)"),
        ({}, 502, "/api", "no Prefect server answers at URL/api (HTTP 502)"),
        (PREFECT, 200, "", "no Prefect server answers at URL (another program); set it to URL/api"),
        (OLD, 200, "/api", "the server at URL/api is Prefect 2.20.1, and Prefect 3 is needed"),
    ],
)
def test_an_answer_of_another_program_is_refused(
    tmp_path: Path, site: Callable[..., str], pages: Any, status: int, path: str, message: str
) -> None:
    url = site(pages, status)
    said = fault(tmp_path, PREFECT_API_URL=url + path)
    assert said.startswith(f"PREFECT_API_URL: {message.replace('URL', url)}")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (NOWHERE, "no Prefect server answers at http://127.0.0.1:9/api"),
        ("http://nowhere.invalid/api", "no Prefect server answers at http://nowhere.invalid/api"),
        ("127.0.0.1:4200/api", "'127.0.0.1:4200/api' is not the URL of a Prefect server; write it with http://"),
        ("http://[::1/api", "'http://[::1/api' is not the URL of a Prefect server"),
        ("localhost", "'localhost' is not the URL of a Prefect server"),
    ],
)
def test_no_answer_or_no_url_is_refused(tmp_path: Path, url: str, message: str) -> None:
    said = fault(tmp_path, PREFECT_API_URL=url)
    assert message in said
    assert said.endswith("or unset PREFECT_API_URL")
    assert "secret" not in said


@pytest.mark.parametrize("user", ["me:s3cr3tpart", ":s3cr3tpart", "s3cr3tpart"])
def test_a_password_in_the_url_is_refused(tmp_path: Path, user: str) -> None:
    said = fault(tmp_path, PREFECT_API_URL=f"http://{user}@127.0.0.1:9/api")
    assert said.startswith("PREFECT_API_URL: the URL holds a name or password")
    assert "set PREFECT_API_AUTH_STRING=" in said
    assert "s3cr3tpart" not in said


def test_the_message_names_the_profile_with_the_url(tmp_path: Path) -> None:
    profile = f'active = "work"\n[profiles.work]\nPREFECT_API_URL = "{NOWHERE}"\n[profiles.local]\n'
    (tmp_path / "profiles.toml").write_text(profile)
    said = fault(tmp_path)
    assert said.startswith("PREFECT_API_URL of the Prefect profile `work`: no Prefect server answers")
    assert said.endswith("start one (`nextquill up`) or `prefect config unset PREFECT_API_URL`")
    assert fault(tmp_path, PREFECT_PROFILE="local") == ""
    assert fault(tmp_path, PREFECT_API_URL=NOWHERE).startswith("PREFECT_API_URL: ")


def test_prefect_cloud_needs_a_key(tmp_path: Path) -> None:
    assert fault(tmp_path, PREFECT_API_URL=CLOUD).startswith(
        f"PREFECT_API_KEY: {CLOUD} is Prefect Cloud and no API key"
    )


def test_a_password_is_sent_as_prefect_sends_it(tmp_path: Path, site: Callable[..., str]) -> None:
    url = site(PREFECT, password="Basic YWRtaW46cGFzcw==") + "/api"
    assert "refuses access (HTTP 401); set PREFECT_API_KEY" in fault(tmp_path, PREFECT_API_URL=url)
    assert fault(tmp_path, PREFECT_API_URL=url, PREFECT_API_AUTH_STRING="admin:pass") == ""


def test_a_proxy_that_does_not_answer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://me:secret@127.0.0.1:9")
    said = fault(tmp_path, PREFECT_API_URL="http://prefect.example:4200/api")
    assert "through the proxy http://127.0.0.1:9 (HTTP_PROXY; NO_PROXY=prefect.example goes around it)" in said


@pytest.mark.parametrize("address", ["htp://me:pass@word@host/api", "me:word@host:4200/api"])
def test_no_part_of_a_password_is_shown(tmp_path: Path, address: str) -> None:
    said = fault(tmp_path, PREFECT_API_URL=address)
    assert "host" in said
    assert "word" not in said


def test_a_server_on_this_machine_is_reached_without_a_proxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, site: Callable[..., str]
) -> None:
    url = site(PREFECT)
    for name, value in (("http_proxy", NOWHERE), ("NO_PROXY", ""), ("no_proxy", "")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(urllib.request, "_opener", None)  # reads the proxies once
    assert not local._healthy(url)
    local.stop(tmp_path / "nowhere")
    assert local._healthy(url)


def test_the_temporary_server_is_reached_without_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setenv("NO_PROXY", "intranet, 127.0.0.1")
    monkeypatch.setenv("no_proxy", "")
    bypass_proxy_for_loopback()
    bypass_proxy_for_loopback()
    assert os.environ["NO_PROXY"] == "intranet,127.0.0.1,localhost"
    assert os.environ["no_proxy"] == ",".join(LOOPBACK)


@pytest.mark.parametrize("command", ["run", "ingest"])
def test_a_command_reports_it_in_one_line(
    monkeypatch: Any, capsys: Any, small_world: Path, tmp_path: Path, command: str
) -> None:
    config = write_config(tmp_path / "config.yaml", small_settings(small_world, tmp_path / "store"))
    monkeypatch.setenv("PREFECT_API_URL", NOWHERE)
    said = refused(monkeypatch, capsys, command, "--config", config)
    assert said.startswith("nextquill: PREFECT_API_URL: no Prefect server answers at http://127.0.0.1:9/api (")
    assert said.endswith("start one (`nextquill up`) or unset PREFECT_API_URL\n")
