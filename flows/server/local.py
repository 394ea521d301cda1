"""Start and end a Prefect server on this machine, together with its work pools, limits, deployments and workers."""

from __future__ import annotations

import errno
import os
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from flows.server.deployments import POOLS, Project, find_project
from flows.server.processes import Home, Process, alive
from flows.server.settings import bypass_proxy_for_loopback
from storage.errors import UserError
from tasks.ranks.logs import last_lines
from tasks.waiting import wait_until

PORT = 4200
HOST = "127.0.0.1"
SERVER = "server"
HEALTHY_WITHIN_S = 180.0
POLLING_WITHIN_S = 120.0
RUNS_S, WORKERS_S, SERVER_S = 30.0, 15.0, 20.0
"""Seconds that flow runs, workers and the server have to end by themselves."""
INTERRUPTED_S = 3.0
"""Seconds that started processes have to end after Ctrl-C."""
LOG_LINES = 20
"""Lines of a log that are printed after a failed start."""
LEASES = "prefect.server.concurrency.lease_storage.filesystem"
OTHER_SERVER = ("PREFECT_PROFILE", "PREFECT_PROFILES_PATH", "PREFECT_API_KEY")
"""Settings of another Prefect server, which this one must not inherit."""


class StartFailed(RuntimeError):  # noqa: N818 - says what happened
    """Raised when a process that `start` needs does not work.

    Attributes:
        log: Log of the process.
    """

    def __init__(self, what: str, log: Path) -> None:
        super().__init__(what)
        self.log = log

    def __str__(self) -> str:
        tail = "".join(last_lines(self.log, LOG_LINES)).rstrip()
        return f"{super().__str__()}; its log is {self.log}, its last lines:\n{tail}"


def start(folder: Path, host: str, port: int | None, *, deploy: bool) -> None:
    """Start the server and all that belongs to it; what runs already is left alone.

    If the start fails or is interrupted, the processes that it has started are ended.

    Args:
        folder: Folder for the database, the logs and the record of what was started.
        host: Address at which the server listens.
        port: Port of the server; None is `PORT`, or the port of the server that runs already.
        deploy: Whether to deploy the flows in prefect.yaml.

    Raises:
        UserError: The folder or the address cannot be used, or there is no prefect.yaml.
        StartFailed: A process does not work.
    """
    bypass_proxy_for_loopback()
    project = find_project(Path.cwd()) if deploy else None
    with _locked(folder):
        home = Home.open(folder)
        before = home.family()
        try:
            _start(home, project, host, port)
        except BaseException as error:
            home.end(home.family() - before, INTERRUPTED_S if isinstance(error, KeyboardInterrupt) else WORKERS_S)
            raise


def stop(folder: Path) -> None:
    """End flow runs, workers and server; finished artifacts stay, and the next run resumes.

    Args:
        folder: The folder that was given to `start`.

    Raises:
        UserError: The folder cannot be used.
    """
    bypass_proxy_for_loopback()
    if not folder.is_dir():
        print(f"nothing runs: there is no {folder}")
        return
    with _locked(folder):
        home = Home.open(folder)
        if home.family():
            _stop(home)
        else:
            home.end((), 0)
            print(f"nothing runs in {folder}")


def _start(home: Home, project: Project | None, host: str, port: int | None) -> None:
    environment = _start_server(home, host, port)
    os.environ.update(environment)  # Prefect reads it when it is imported
    from flows.server.deployments import active_schedules, create_missing

    pools = project.pools if project else POOLS
    for created in create_missing(pools):
        print(f"{created}: created")
    since = datetime.now(UTC)
    new = [pool for pool in pools if not home.running(_worker(pool))]
    for pool in new:  # a worker serves one pool
        command = [sys.executable, "-m", "prefect", "worker", "start", "--type", "process"]
        home.start(_worker(pool), [*command, "--pool", pool, "--name", _worker(pool)], environment)
    if project:
        _deploy(home, project, environment)
    for pool in new:
        _await_worker(home, pool, since)
    if not new:
        print(f"workers: {', '.join(pools)} run already")
    on = active_schedules()
    print(f"schedules: {', '.join(on)} on" if on else "schedules: all paused")
    _print_next_steps(home, project)


def _start_server(home: Home, host: str, port: int | None) -> dict[str, str]:
    """Start the server unless it runs, and return the environment of processes that use it."""
    shown = HOST if host in ("0.0.0.0", "::", "localhost") else host  # noqa: S104 - compared, not bound
    url = f"http://{f'[{shown}]' if ':' in shown else shown}:{port or PORT}"
    if running := home.running(SERVER):
        if port and url != home.url:
            raise UserError(f"a server runs at {home.url} already", str(home.folder), "end it first: nextquill down")
        server = running
    else:
        home.end(_workers(home), WORKERS_S)  # of a server that has ended
        _require_free(host, port or PORT, url)
        home.url = url
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", host, "--port", str(port or PORT)]
        server = home.start(SERVER, command, _environment(home))
    decided = wait_until(lambda: _healthy(home.url) or not alive(server), HEALTHY_WITHIN_S, poll_s=0.3)
    if not decided or not alive(server):  # another server may have answered in its place
        raise StartFailed(f"the server does not {'answer' if running else 'come up'}", home.log(SERVER))
    print(f"server: {'runs already' if running else 'started'} at {home.url}, log {home.log(SERVER)}")
    if shown == HOST and host not in (HOST, "localhost"):
        print("server: other machines can reach it without a password; see docs/how-to/operations.md", file=sys.stderr)
    return _environment(home)


def _deploy(home: Home, project: Project, environment: Mapping[str, str]) -> None:
    from flows.server.deployments import deploy, missing_deployments

    file = project.folder / "prefect.yaml"
    if home.deployed == project.digest and not missing_deployments(project):
        return
    log = home.log("deploy")
    if not deploy(project, log, environment):
        raise StartFailed(f"Prefect refuses {file}", log)
    home.deployed = project.digest
    home.save()
    print(f"deployments: {len(project.deployments)} from {file}; relative paths in them begin in its folder")


def _await_worker(home: Home, pool: str, since: datetime) -> None:
    from flows.server.deployments import polling

    name, log = _worker(pool), home.log(_worker(pool))
    decided = wait_until(lambda: polling(pool, name, since) or not home.running(name), POLLING_WITHIN_S, poll_s=0.5)
    if not decided or not home.running(name):
        raise StartFailed(f"the {name} does not come up", log)
    print(f"{name}: started, log {log}")


def _environment(home: Home) -> dict[str, str]:
    """Return the environment of the server and of all that use it: no other server's settings, offline and quiet."""
    kept = {name: value for name, value in os.environ.items() if name not in OTHER_SERVER}
    defaults = {
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_WORKER_QUERY_SECONDS": "3",
        # Leases in memory would be lost with the server, and the slots that they hold would never be released.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": LEASES,
    }
    return defaults | kept | {"PREFECT_HOME": str(home.folder), "PREFECT_API_URL": f"{home.url}/api"}


def _require_free(host: str, port: int, url: str) -> None:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (socket.gaierror, UnicodeError):  # the second for a name whose parts are empty or too long
        raise UserError(f"no such address: {host!r}", "--host", "use one of this machine's, or omit it") from None
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            what, remedy = f"cannot listen at {host}:{port} ({error.strerror})", "choose another port"
        else:
            other = "a Prefect server that was not started from this folder" if _healthy(url) else "another program"
            what, remedy = f"{other} listens at {host}:{port}", "choose another port, or end it"
        raise UserError(what, "--port", remedy) from None


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/api/health", timeout=2) as answer:  # noqa: S310 - our own address
            return bool(answer.read().strip() == b"true")
    except urllib.error.HTTPError as error:
        return error.code == 401  # it asks for a password; the client has it, or reports that it is missing
    except (OSError, ValueError):
        return False


def _workers(home: Home) -> list[Process]:
    return [process for process in home.processes if process.name.startswith("worker ") and alive(process)]


def _worker(pool: str) -> str:
    return f"worker {pool}"


def _print_next_steps(home: Home, project: Project | None) -> None:
    print(f"\nThe UI: {home.url}")
    if project is None:
        return
    print("Next:")
    print("  in the UI, Deployments → pipeline → Run → Custom run    # its form; the weekly schedule is beside it")
    print(f"  export PREFECT_API_URL={home.url}/api    # runs of this terminal are then shown there too")


def _stop(home: Home) -> None:
    workers = _workers(home)
    server = home.running(SERVER)
    if server and _healthy(home.url):
        os.environ.update(_environment(home))
        from flows.server.deployments import cancel_runs, close_runs

        if count := cancel_runs(RUNS_S if workers else 0.0):
            print(f"flow runs: {count} cancelled")
        _end(home, workers, WORKERS_S)
        _end_rest(home, except_for=server)
        close_runs()
    else:
        _end(home, workers, WORKERS_S)
    if server:
        _end(home, [server], SERVER_S)
    _end_rest(home)


def _end(home: Home, processes: Sequence[Process], patience_s: float) -> None:
    home.end(processes, patience_s)
    for process in processes:
        print(f"{process.name}: ended")


def _end_rest(home: Home, except_for: Process | None = None) -> None:
    """End the processes that workers have left behind; the server's own processes end with the server."""
    if rest := home.family() - {except_for}:
        home.end(rest, WORKERS_S)
        print(f"processes of flow runs: {len(rest)} ended")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Allow one `start` or `stop` at a time in a folder."""
    lock = FileLock(folder / "up.lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError("another `nextquill up` or `down` runs in this folder", str(folder), "wait for it") from None
    except OSError as error:
        raise UserError(f"cannot be used ({error.strerror})", str(folder), "name another folder with --home") from None
    try:
        yield
    finally:
        lock.release()
