"""The compose file: its shape, and where its passwords come from."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import yaml

from benchmarks.server_rates import environment
from tests.conftest import REPO

COMPOSE = REPO / "deploy" / "compose.yaml"


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())["services"]
    return found


def test_it_is_a_compose_file() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(COMPOSE)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_passwords_come_from_files_that_git_never_sees(services: dict[str, Any]) -> None:
    files = [name for service in services.values() for name in service.get("env_file", [])]
    assert files == ["postgres.env", "server.env"]
    ignored = subprocess.run(["git", "check-ignore", *files], cwd=COMPOSE.parent, capture_output=True, text=True)
    assert ignored.stdout.split() == files
    written = [name for service in services.values() for name in service.get("environment", {})]
    assert not [name for name in written if "PASSWORD" in name or "AUTH" in name]


@pytest.mark.process
def test_prefect_puts_the_password_into_the_url_itself(services: dict[str, Any], tmp_path: Any) -> None:
    settings = services["server"]["environment"]
    url = settings["PREFECT_API_DATABASE_CONNECTION_URL"].replace("$$", "$")  # as compose reads it
    code = (
        "import json; from prefect.settings import get_current_settings as now; from sqlalchemy import make_url;"
        "url = make_url(now().server.database.connection_url.get_secret_value());"
        "vacuum = sorted(now().server.services.db_vacuum.enabled_vacuum_types);"
        "print(json.dumps([url.drivername, url.username, url.password, url.host, url.database, vacuum]))"
    )
    values = settings | {"PREFECT_API_DATABASE_CONNECTION_URL": url, "PREFECT_SERVER_DATABASE_PASSWORD": "s3cret"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(tmp_path, **values), capture_output=True, text=True, check=True
    )
    database = ["postgresql+asyncpg", "prefect", "s3cret", "postgres", "prefect"]
    assert json.loads(done.stdout) == [*database, ["events", "flow_runs", "orphans"]]


def test_only_this_machine_reaches_the_server(services: dict[str, Any]) -> None:
    ports = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert ports == {"server": ["127.0.0.1:4200:4200"]}


def test_each_waits_until_what_it_needs_is_healthy(services: dict[str, Any]) -> None:
    for service in services.values():
        for needed, how in service.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"}
            assert "healthcheck" in services[needed]
