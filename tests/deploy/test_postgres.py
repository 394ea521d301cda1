"""Prefect's server on its own PostgreSQL: who may enter, twenty runs at once, what a restart and a kill leave."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.server_rates import (
    POSTGRES_SERVER,
    TINY_FLOW,
    Running,
    create_runs,
    environment,
    public_folder,
    running,
)
from tests.prefect_server import Server
from tests.waiting import wait_for

AT_ONCE = """
import asyncio
from prefect import flow, task
@task
def double(number):
    return 2 * number
@flow
async def tiny(number):
    return double(number)
async def main():
    assert sorted(await asyncio.gather(*(tiny(number) for number in range(20)))) == list(range(0, 40, 2))
asyncio.run(main())
"""

pytestmark = [
    pytest.mark.flow,
    pytest.mark.process,
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which("initdb") or list(Path("/usr/lib").glob("postgresql/*/bin/initdb"))),
        reason="PostgreSQL is not installed: apt-get install postgresql",
    ),
]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with public_folder() as made:
        yield made


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Running]:
    with running("postgres", folder) as started:
        yield started


def python(server: Running, script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script], env=server.environment, capture_output=True, text=True, timeout=300
    )


def runs(server: Running) -> list[dict[str, Any]]:
    return Server(server.api, server.environment).runs()


def states(server: Running) -> list[str]:
    return [run["state_type"] for run in runs(server)]


def prefect_of(server: Running) -> int:
    """The process of Prefect's server, a child of the script's."""
    children = psutil.Process(server.pid).children()
    (found,) = (child.pid for child in children if "prefect" in " ".join(child.cmdline()))
    return int(found)


def postmaster(folder: Path) -> int:
    return int((folder / "postgres" / "data" / "postmaster.pid").read_text().splitlines()[0])


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits to be noticed by its parent does not."""
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


def url_of(server: Running) -> str:
    return str(psutil.Process(prefect_of(server)).environ()["PREFECT_API_DATABASE_CONNECTION_URL"])


def query(server: Running, folder: Path, statement: str, **login: str) -> Any:
    """One value from the database, asked as Prefect's server would."""
    import asyncpg

    async def value() -> Any:
        dsn = url_of(server).replace("+asyncpg", "")
        connection = await asyncpg.connect(dsn, passfile=str(folder / "postgres" / "pgpass"), **login)
        try:
            return await connection.fetchval(statement)
        finally:
            await connection.close()

    return asyncio.run(value())


def test_the_database_is_postgres_and_prefect_made_its_tables_in_it(server: Running, folder: Path) -> None:
    before = query(server, folder, "select count(*) from flow_run")
    done = python(server, TINY_FLOW)
    assert done.returncode == 0, done.stderr
    assert query(server, folder, "select count(*) from flow_run where state_type = 'COMPLETED'") == before + 1
    assert not list((folder / "prefect").glob("*.db"))


def test_nobody_enters_without_the_password(server: Running, folder: Path) -> None:
    import asyncpg

    with pytest.raises(asyncpg.InvalidPasswordError):
        query(server, folder, "select 1", password="a guess")
    assert query(server, folder, "show listen_addresses") == "127.0.0.1"
    assert b"unix_socket_directories=\0" in Path(f"/proc/{postmaster(folder)}/cmdline").read_bytes()
    assert query(server, folder, "select count(*) from pg_roles where rolsuper and rolname = 'prefect'") == 0
    rules = (folder / "postgres" / "data" / "pg_hba.conf").read_text().splitlines()
    assert {line.split()[-1] for line in rules if line and not line.startswith("#")} == {"scram-sha-256"}


def test_passwords_are_in_one_private_file_and_nowhere_else(server: Running, folder: Path) -> None:
    passwords = [line.split(":")[-1] for line in (folder / "postgres" / "pgpass").read_text().splitlines()]
    assert [len(password) for password in passwords] == [48, 48]
    assert len(set(passwords)) == 2
    assert (folder / "postgres" / "pgpass").stat().st_mode & 0o777 == 0o600
    assert (folder / "postgres").stat().st_mode & 0o777 == 0o700
    said = server.log.read_text() + "".join(path.read_text() for path in (folder / "postgres").glob("*.log"))
    for pid in (server.pid, prefect_of(server), postmaster(folder)):
        said += Path(f"/proc/{pid}/cmdline").read_text() + Path(f"/proc/{pid}/environ").read_text()
    assert not any(password in said for password in passwords)


def test_postgres_does_not_run_as_root(server: Running, folder: Path) -> None:
    assert Path(f"/proc/{postmaster(folder)}").stat().st_uid != 0


def test_twenty_runs_at_once_all_complete(server: Running) -> None:
    before = len(states(server))
    done = python(server, AT_ONCE)
    assert done.returncode == 0, done.stderr
    assert states(server).count("COMPLETED") == before + 20


def test_eight_clients_at_once_meet_no_error(server: Running, folder: Path) -> None:
    before = query(server, folder, "select count(*) from flow_run where state_type = 'COMPLETED'")
    logs = query(server, folder, "select count(*) from log")
    measured = asyncio.run(create_runs(server.api, 40, 8))
    assert measured["errors"] == {}
    assert query(server, folder, "select count(*) from flow_run where state_type = 'COMPLETED'") == before + 40
    assert query(server, folder, "select count(*) from log") == logs + 400


def test_a_folder_has_one_server(server: Running, folder: Path) -> None:
    second = subprocess.run([POSTGRES_SERVER, folder / "postgres"], capture_output=True, text=True, timeout=60)
    assert second.returncode == 2
    assert second.stderr == f"nextquill: another server-postgres runs in {folder / 'postgres'}\n"


def test_runs_survive_a_restart_and_nothing_stays_behind() -> None:
    with public_folder() as folder:
        with running("postgres", folder) as server:
            asyncio.run(create_runs(server.api, 5, 2))
            processes = [server.pid, prefect_of(server), postmaster(folder)]
            password = (folder / "postgres" / "pgpass").read_text()
        assert not any(alive(pid) for pid in processes)

        with running("postgres", folder) as server:
            assert states(server) == ["COMPLETED"] * 5
            assert (folder / "postgres" / "pgpass").read_text() == password
            killed = postmaster(folder)
            asyncio.run(create_runs(server.api, 5, 2))
            os.kill(server.pid, signal.SIGKILL)  # the script has no time to stop anything
            wait_for("the end of the server", lambda: not answers(server), 30)
            assert alive(killed)

        with running("postgres", folder) as server:
            assert states(server) == ["COMPLETED"] * 10
            assert not alive(killed)


def answers(server: Running) -> bool:
    try:
        with urllib.request.urlopen(f"{server.api}/health", timeout=2):  # noqa: S310
            return True
    except OSError:
        return False


@pytest.mark.parametrize(
    ("arguments", "settings", "said"),
    [
        ([], {}, "Run Prefect's server on PostgreSQL until Ctrl-C"),
        (["FOLDER"], {"POSTGRES_PORT": "http"}, "nextquill: POSTGRES_PORT is not a port number: http"),
        (["FOREIGN"], {}, "nextquill: FOREIGN holds other files; name a new folder"),
    ],
)
def test_wrong_input_is_one_clear_line(
    arguments: list[str], settings: dict[str, str], said: str, tmp_path: Path
) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("")
    names = {"FOLDER": str(tmp_path / "new"), "FOREIGN": str(foreign)}
    command = [str(POSTGRES_SERVER), *(names[argument] for argument in arguments)]
    done = subprocess.run(command, env=environment(tmp_path, **settings), capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith(said.replace("FOREIGN", str(foreign)))
    assert (foreign.stat().st_mode & 0o777, foreign.stat().st_uid) == (0o755, os.getuid())


def test_a_taken_port_is_one_clear_line_and_leaves_nothing_running() -> None:
    with public_folder() as folder, socket.create_server(("127.0.0.1", 0)) as taken:
        settings = {"POSTGRES_PORT": str(taken.getsockname()[1])}
        done = subprocess.run(
            [POSTGRES_SERVER, folder / "postgres"],
            env=environment(folder, **settings),
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 2
        assert f"PostgreSQL does not start on port {settings['POSTGRES_PORT']}" in done.stderr
        assert not (folder / "postgres" / "data" / "postmaster.pid").exists()


def test_the_server_removes_old_runs_and_their_logs_when_told_to() -> None:
    vacuum = {
        "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
        "PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD": "7200",
        "PREFECT_SERVER_SERVICES_DB_VACUUM_LOOP_SECONDS": "1",
    }
    with public_folder() as folder, running("postgres", folder, **vacuum) as server:
        asyncio.run(create_runs(server.api, 6, 2))
        old = "update flow_run set end_time = now() - interval '3 hours' where name in ('run-0', 'run-1', 'run-2')"
        query(server, folder, old)
        wait_for("the removal of runs", lambda: len(states(server)) <= 3, 30)
        assert sorted(run["name"] for run in runs(server)) == ["run-3", "run-4", "run-5"]
        logs = "select count(*) from log where flow_run_id not in (select id from flow_run)"
        wait_for("the removal of logs", lambda: query(server, folder, logs) == 0, 30)
        assert query(server, folder, "select count(*) from log") == 30
