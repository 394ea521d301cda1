"""Number of flow runs that a Prefect server handles, on SQLite and on PostgreSQL.

    python -m benchmarks.server_rates

Prints one line of JSON per measurement. Each server is started for it, with a new database in a temporary folder, and
stopped afterwards; everything stays on this machine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tasks.ranks.placement import free_port

REPO = Path(__file__).resolve().parent.parent
POSTGRES_SERVER = REPO / "scripts" / "server-postgres"

LOG_LINES = 10
"""Number of log lines that each flow run sends, in one request."""
BUSY = 503
"""HTTP status of Prefect's server when SQLite is locked by another request (SQLITE_BUSY)."""
TRIES = 6
"""Number of times that Prefect's client makes a request to a busy server."""

TINY_FLOW = """
from prefect import flow
@flow(log_prints=True)
def tiny():
    print("here")
if __name__ == "__main__":
    tiny()
"""


@dataclass(frozen=True)
class Running:
    """A running server.

    Attributes:
        api: The URL of its API.
        environment: Environment variables of a process that uses it.
        pid: Id of its process, or of the script that runs it.
        log: The file with its output.
    """

    api: str
    environment: dict[str, str]
    pid: int
    log: Path


def environment(home: Path, **more: str) -> dict[str, str]:
    """Return the environment of a Prefect process with a separate home that makes no calls to other hosts."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    private = {"PREFECT_HOME": str(home), "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
    return inherited | private | {"NO_COLOR": "1", "COLUMNS": "160"} | more


@contextlib.contextmanager
def public_folder() -> Iterator[Path]:
    """Yield a temporary folder that all users can pass through, because PostgreSQL's user must reach a folder in it."""
    folder = Path(tempfile.mkdtemp(prefix="server-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def running(database: str, folder: Path, **settings: str) -> Iterator[Running]:
    """Run a server on `sqlite` or `postgres` until the block ends; its database in `folder` stays.

    Args:
        database: `sqlite`, Prefect's default, or `postgres`, through scripts/server-postgres.
        folder: Folder for the database, and for Prefect's folder with the log; for `postgres` other users must be able
            to pass through it.
        **settings: More environment variables for the server.

    Raises:
        RuntimeError: The server ends, or does not answer within two minutes; the message has the end of its log.
    """
    home = folder / "prefect"
    home.mkdir(exist_ok=True)
    port = free_port()
    api = f"http://127.0.0.1:{port}/api"
    options = ["--host", "127.0.0.1", "--port", str(port)]
    if database == "sqlite":
        command = [sys.executable, "-m", "prefect", "server", "start", *options]
    else:
        command = [str(POSTGRES_SERVER), str(folder / "postgres"), *options]
        settings = {"POSTGRES_PORT": str(free_port())} | settings
    log = home / "server.log"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    own = environment(home, PATH=path, PREFECT_API_URL=api, **settings)  # links in alerts begin with this address
    with log.open("a") as output:
        process = subprocess.Popen(command, env=own, stdout=output, stderr=output, cwd=REPO)
    try:
        _wait_until_healthy(api, process, log)
        yield Running(api, environment(home, PREFECT_API_URL=api), process.pid, log)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(timeout=90)


def _wait_until_healthy(api: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{api}/health", timeout=2):  # noqa: S310
            return
        time.sleep(0.25)
    raise RuntimeError(f"the server does not answer: {log.read_text()[-2000:]}")


async def create_runs(api: str, runs: int, clients: int) -> dict[str, Any]:
    """Create flow runs from several clients at once, each through its states: created, running, logs, completed.

    A request that is answered with 503 (SQLite is busy, see `BUSY`), or whose connection breaks, is repeated as
    Prefect's own client does: up to five times, after 2, 4, 8... seconds, a fifth more or less.

    Args:
        api: The URL of the server's API.
        runs: Number of flow runs in total.
        clients: Number of clients at once.

    Returns:
        The measurements: seconds; completed runs, in total and per second; the median and the 95th percentile of the
        milliseconds until a request succeeded, including waits and repetitions; the number of answers by error; and
        the number of requests that failed after all repetitions.
    """
    left = iter(range(runs))
    milliseconds: list[float] = []
    errors: Counter[str] = Counter()
    completed = failed = 0

    async def post(client: httpx.AsyncClient, path: str, body: Any) -> Any:
        nonlocal failed
        began = time.perf_counter()
        for tries in range(1, TRIES + 1):
            try:
                answer = await client.post(f"{api}{path}", json=body)
                if answer.is_success:
                    milliseconds.append((time.perf_counter() - began) * 1000)
                    return answer.json() if answer.content else {}
                errors[str(answer.status_code)] += 1
                if answer.status_code != BUSY:
                    break
            except httpx.TransportError as error:
                errors[type(error).__name__] += 1
            if tries < TRIES:
                await asyncio.sleep(2**tries * random.uniform(0.8, 1.2))
        failed += 1
        return None

    async def client_loop(client: httpx.AsyncClient, flow_id: str) -> None:
        nonlocal completed
        for number in left:
            made = await post(client, "/flow_runs/", {"flow_id": flow_id, "name": f"run-{number}"})
            if made is None:
                continue
            path = f"/flow_runs/{made['id']}/set_state"
            await post(client, path, {"state": {"type": "RUNNING"}})
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            line = {"name": "rates", "level": 20, "message": "a line", "timestamp": now, "flow_run_id": made["id"]}
            await post(client, "/logs/", [line] * LOG_LINES)
            ended = await post(client, path, {"state": {"type": "COMPLETED"}})
            completed += ended is not None  # counted after the wait, during which other clients count too

    async with httpx.AsyncClient(timeout=60) as client:
        flow = await post(client, "/flows/", {"name": "rates"})
        milliseconds.clear()
        errors.clear()
        began = time.perf_counter()
        await asyncio.gather(*(client_loop(client, flow["id"]) for _ in range(clients)))
        seconds = time.perf_counter() - began
    cuts = statistics.quantiles(milliseconds, n=20)
    return {
        "clients": clients,
        "seconds": round(seconds, 2),
        "completed": completed,
        "completed_per_second": round(completed / seconds, 1),
        "request_ms_median": round(cuts[9], 1),
        "request_ms_p95": round(cuts[18], 1),
        "requests": 4 * runs,
        "errors": dict(errors),
        "failed": failed,
    }


def without_a_server(folder: Path, processes: int) -> dict[str, Any]:
    """Start several programs at once, each with a flow and a temporary server, all on one SQLite file.

    Args:
        folder: An empty folder for the shared PREFECT_HOME.
        processes: Number of programs.

    Returns:
        How many failed, how many found the database locked, and the seconds until the last one ended.
    """
    script = folder / "tiny.py"
    script.write_text(TINY_FLOW)
    home = folder / "prefect"
    home.mkdir()
    patient = environment(home, PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS="300")
    # One run beforehand makes the file and its tables.
    subprocess.run([sys.executable, script], env=patient, check=True, capture_output=True)
    began = time.perf_counter()
    started = []
    for number in range(processes):
        with (folder / f"{number}.log").open("w") as log:
            started.append(subprocess.Popen([sys.executable, script], env=patient, stdout=log, stderr=log))
    codes = [process.wait(timeout=600) for process in started]
    said = [(folder / f"{number}.log").read_text() for number in range(processes)]
    return {
        "programs": processes,
        "seconds": round(time.perf_counter() - began, 1),
        "failed": sum(code != 0 for code in codes),
        "database_is_locked": sum("database is locked" in text for text in said),
    }


def compare(runs: int, clients: list[int], rounds: int) -> Iterator[dict[str, Any]]:
    """Measure both databases in turns, so that other load of the machine affects both.

    Args:
        runs: Number of flow runs per measurement.
        clients: Numbers of clients at once to measure with.
        rounds: Number of measurements of each database with each number of clients; the median by rate counts.

    Yields:
        The measurements of a database with a number of clients; requests and errors are those of all rounds.
    """
    with contextlib.ExitStack() as stack:
        servers = {}
        for database in ("sqlite", "postgres"):
            servers[database] = stack.enter_context(running(database, stack.enter_context(public_folder())))
            asyncio.run(create_runs(servers[database].api, 20, 4))  # the first requests load code and fill caches
        for at_once in clients:
            measured: dict[str, list[dict[str, Any]]] = {database: [] for database in servers}
            for _ in range(rounds):
                for database, server in servers.items():
                    measured[database].append(asyncio.run(create_runs(server.api, runs, at_once)))
            for database in servers:
                found = sorted(measured[database], key=lambda each: each["completed_per_second"])
                errors = sum((Counter(each["errors"]) for each in found), Counter())
                failed = sum(each["failed"] for each in found)
                requests = sum(each["requests"] for each in found)
                middle = found[rounds // 2]
                yield {"database": database} | middle | {"requests": requests, "errors": dict(errors), "failed": failed}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100, help="flow runs per measurement (100)")
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 8, 32], help="clients at once (1 8 32)")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each; the median counts (3)")
    parser.add_argument("--programs", type=int, default=8, help="programs without a server, at once (8); 0 for none")
    arguments = parser.parse_args()
    for line in compare(arguments.runs, arguments.clients, arguments.rounds):
        print(json.dumps(line), flush=True)
    if arguments.programs:
        with public_folder() as folder:
            print(json.dumps({"database": "sqlite", **without_a_server(folder, arguments.programs)}), flush=True)


if __name__ == "__main__":
    main()
