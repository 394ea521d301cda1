"""`nextquill up` and `down`: a Prefect server with everything of ours on it, on this machine, for a first look."""

from __future__ import annotations

import errno
import os
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.server.processes import Home, Process, alive, tail
from storage.errors import UserError

if TYPE_CHECKING:
    from flows.server.deployments import Project

PORT = 4200
HOST = "127.0.0.1"
SERVER = "server"
HEALTHY_WITHIN_S = 180.0
POLLING_WITHIN_S = 120.0
RUNS_S, WORKERS_S, SERVER_S = 30.0, 15.0, 20.0
"""Seconds that flow runs, workers and the server have for ending in their own way."""
INTERRUPTED_S = 3.0
"""Seconds that what has been started has for ending after Ctrl-C."""
LEASES = "prefect.server.concurrency.lease_storage.filesystem"
ELSEWHERE = ("PREFECT_PROFILE", "PREFECT_PROFILES_PATH", "PREFECT_API_KEY")
"""Settings of somebody's other Prefect."""

HomeOption = Annotated[
    Path, typer.Option("--home", metavar="FOLDER", help="Its database, its logs, and what has been started.")
]
DEFAULT_HOME = Path(".nextquill")


class NotUp(RuntimeError):  # noqa: N818 - says what happened
    """Something that `up` started does not do what it should."""

    def __init__(self, what: str, log: Path) -> None:
        super().__init__(what)
        self.log = log


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command()(up)
    app.command()(down)


def up(
    port: Annotated[
        int | None, typer.Option("--port", min=1, max=65535, help=f"Of the server; {PORT} unless one runs already.")
    ] = None,
    host: Annotated[str, typer.Option("--host", help="The address at which the server listens.")] = HOST,
    home: HomeOption = DEFAULT_HOME,
    deploy: Annotated[bool, typer.Option("--deploy/--no-deploy", help="Deploy what is in prefect.yaml.")] = True,
) -> None:
    """Start a Prefect server on this machine with pools, limits, deployments and workers; what runs already stays."""
    from flows.server.deployments import find_project

    project = find_project(Path.cwd()) if deploy else None
    with _alone(home):
        known = Home.open(home)
        before = known.family()
        try:
            _up(known, project, host, port)
        except BaseException as error:
            patience_s = INTERRUPTED_S if isinstance(error, KeyboardInterrupt) else WORKERS_S
            known.end(known.family() - before, patience_s)
            if not isinstance(error, NotUp):
                raise
            print(f"nextquill: {error}; its log is {error.log}, its last lines:", file=sys.stderr)
            print(tail(error.log), file=sys.stderr)
            raise typer.Exit(1) from None


def down(home: HomeOption = DEFAULT_HOME) -> None:
    """End what `up` has started: runs, workers, server. What runs have finished stays, and they go on the next time."""
    if not home.is_dir():
        print(f"nothing runs: there is no {home}")
        return
    with _alone(home):
        known = Home.open(home)
        if not known.family():
            known.end((), 0)
            print(f"nothing runs in {home}")
            return
        _down(known)


def _up(home: Home, project: Project | None, host: str, port: int | None) -> None:
    from flows.server.deployments import POOLS, active_schedules, missing_deployments, polling, set_up
    from flows.server.deployments import deploy as deploy_all

    environment = _serve(home, host, port)
    os.environ.update(environment)  # Prefect reads it when it is imported
    pools = project.pools if project else POOLS
    for created in set_up(pools):
        print(f"{created}: created")
    since = datetime.now(UTC)
    new = [pool for pool in pools if not home.running(_worker(pool))]
    for pool in new:
        home.start(_worker(pool), _worker_command(pool), environment)
    if project and (home.deployed != project.digest or missing_deployments(project)):
        log = home.log("deploy")
        if not deploy_all(project, log, environment):
            raise NotUp(f"Prefect does not take {project.folder / 'prefect.yaml'}", log)
        home.deployed = project.digest
        home.save()
        print(f"deployments: {project.deployments} from {project.folder / 'prefect.yaml'}; relative paths begin there")
    for pool in new:
        name, log = _worker(pool), home.log(_worker(pool))
        deadline = time.monotonic() + POLLING_WITHIN_S
        while not polling(pool, name, since):
            if not home.running(name) or time.monotonic() > deadline:
                raise NotUp(f"the {name} does not come up", log)
            time.sleep(0.5)
        print(f"{name}: started, log {log}")
    if not new:
        print(f"workers: {', '.join(pools)} run already")
    on = active_schedules()
    print(f"schedules: {', '.join(on)} on" if on else "schedules: all paused")
    _tell(home, project)


def _serve(home: Home, host: str, port: int | None) -> dict[str, str]:
    """Start the server unless it runs; returns the environment of what is to talk to it."""
    shown = HOST if host in ("0.0.0.0", "::", "localhost") else host  # noqa: S104 - compared, not bound
    url = f"http://{f'[{shown}]' if ':' in shown else shown}:{port or PORT}"
    if running := home.running(SERVER):
        if port and url != home.url:
            raise UserError(f"a server runs at {home.url} already", str(home.folder), "end it first: nextquill down")
        server = running
    else:
        home.end(_workers(home), WORKERS_S)  # of a server that is gone
        _require_free(host, port or PORT, url)
        home.url = url
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", host, "--port", str(port or PORT)]
        server = home.start(SERVER, command, _environment(home))
    deadline = time.monotonic() + HEALTHY_WITHIN_S
    while not (healthy := _healthy(home.url)) and alive(server) and time.monotonic() < deadline:
        time.sleep(0.3)
    if not healthy or not alive(server):  # another one may have answered in its place
        raise NotUp("the server does not answer" if running else "the server does not come up", home.log(SERVER))
    print(f"server: {'runs already' if running else 'started'} at {home.url}, log {home.log(SERVER)}")
    if shown == HOST and host not in (HOST, "localhost"):
        print("server: other machines can reach it without a password; see docs/how-to/operations.md", file=sys.stderr)
    return _environment(home)


def _environment(home: Home) -> dict[str, str]:
    """The environment of a server, its workers and whoever talks to it: a Prefect of its own, offline and quiet."""
    kept = {name: value for name, value in os.environ.items() if name not in ELSEWHERE}
    defaults = {
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_WORKER_QUERY_SECONDS": "3",
        # In memory, leases would be lost with the server, and the places that they hold never come back.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": LEASES,
    }
    return defaults | kept | {"PREFECT_HOME": str(home.folder), "PREFECT_API_URL": f"{home.url}/api"}


def _require_free(host: str, port: int, url: str) -> None:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except socket.gaierror:
        raise UserError(
            f"no such address: {host!r}", "--host", "name one of this machine's, or leave it away"
        ) from None
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise UserError(f"cannot listen at {host}:{port} ({error.strerror})", "--port", "choose another") from None
        what = "a Prefect server that this folder knows nothing of" if _healthy(url) else "another program"
        raise UserError(f"{what} listens at {host}:{port}", "--port", "choose another port, or end it") from None


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/api/health", timeout=2) as answer:  # noqa: S310 - our own address
            return bool(answer.read().strip() == b"true")
    except urllib.error.HTTPError as error:
        return error.code == 401  # it wants a password; the client knows it or will say so
    except (OSError, ValueError):
        return False


def _workers(home: Home) -> list[Process]:
    return [one for one in home.processes if one.name.startswith("worker ") and alive(one)]


def _worker(pool: str) -> str:
    return f"worker {pool}"


def _worker_command(pool: str) -> Sequence[str]:
    # A worker serves one pool, so there is one for each.
    command = [sys.executable, "-m", "prefect", "worker", "start", "--type", "process"]
    return [*command, "--pool", pool, "--name", _worker(pool)]


def _tell(home: Home, project: Project | None) -> None:
    print(f"\nThe UI: {home.url}")
    if project is None:
        return
    print("Next:")
    demo = project.folder / "data" / "demo"
    if not (demo / "reviews.jsonl").is_file():
        print(f"  nextquill sample {os.path.relpath(demo)}    # what deployments read unless their form says otherwise")
    print("  in the UI, Deployments → pipeline → Run → Custom run    # its form; the weekly schedule is beside it")
    print(f"  export PREFECT_API_URL={home.url}/api    # runs of this terminal are then shown there too")


def _down(home: Home) -> None:
    workers = _workers(home)
    server = home.running(SERVER)
    if server and _healthy(home.url):
        os.environ.update(_environment(home))
        from flows.server.deployments import cancel_runs, close_runs

        if count := cancel_runs(RUNS_S if workers else 0.0):
            print(f"flow runs: {count} cancelled")
        _end(home, workers, WORKERS_S)
        _end_rest(home, server)
        close_runs()
    else:
        _end(home, workers, WORKERS_S)
    if server:
        _end(home, [server], SERVER_S)
    _end_rest(home, None)


def _end(home: Home, processes: Sequence[Process], patience_s: float) -> None:
    home.end(processes, patience_s)
    for process in processes:
        print(f"{process.name}: ended")


def _end_rest(home: Home, but: Process | None) -> None:
    """End what workers have left behind; the server's own processes end with it."""
    rest = {one for one in home.family() if one != but}
    if rest:
        home.end(rest, WORKERS_S)
        print(f"processes of flow runs: {len(rest)} ended")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One `up` or `down` at a time for a folder."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / "up.lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError("another `nextquill up` or `down` is at work", str(folder), "wait for it") from None
    except OSError as error:
        raise UserError(f"cannot be used ({error.strerror})", str(folder), "name another folder with --home") from None
    try:
        yield
    finally:
        lock.release()
