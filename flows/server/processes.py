"""Background processes of `nextquill up`: recognised by a later command, and ended with all that they have started.

A process id is reused sooner or later, so a process is recognised by its id together with its start time. A variable in
the environment marks what was started from a folder, so it is found even if its parent has been killed.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from storage.errors import UserError
from storage.files import write_json, write_text
from storage.stored_json import read_checked
from tasks.ranks.processes import is_running

STATE = "state.json"
MARK = "NEXTQUILL_UP"
"""Environment variable of every process that was started from a home, directly or not, with the home's folder."""
KILLED_WITHIN_S = 5.0


@dataclass(frozen=True)
class Process:
    """A process that was started from a home.

    Attributes:
        name: What the process is, for messages and the name of its log; empty for what other processes have started.
        pid: Process id.
        started: Start time in seconds since the system's start.
    """

    name: str
    pid: int
    started: float


@dataclass(frozen=True)
class _Record:
    """The part of a home that is stored."""

    url: str
    processes: list[Process]
    deployed: str


@dataclass
class Home:
    """Folder of a local Prefect server: its database, its logs, and a record of the processes started from it.

    Attributes:
        folder: Absolute path.
        url: URL of the server; empty while none runs.
        processes: Processes started from here, oldest first.
        deployed: Digest of the project that was deployed last.
    """

    folder: Path
    url: str = ""
    processes: list[Process] = field(default_factory=list)
    deployed: str = ""

    @classmethod
    def open(cls, folder: Path) -> Home:
        """Read the record in a folder; without a readable record, nothing is known to run."""
        folder = folder.expanduser().resolve()
        try:
            known: _Record = read_checked(folder / STATE, _Record, "run `nextquill down`")
        except UserError:
            return cls(folder)
        return cls(folder, known.url, known.processes, known.deployed)

    def save(self) -> None:
        """Write the record atomically."""
        if not (self.folder / ".gitignore").exists():
            write_text(self.folder / ".gitignore", "*\n")
        write_json(self.folder / STATE, asdict(_Record(self.url, self.processes, self.deployed)))

    def log(self, name: str) -> Path:
        """Return the log of the process with this name."""
        return self.folder / f"{name.replace(' ', '-')}.log"

    def running(self, name: str) -> Process | None:
        """Return the process with this name if it runs."""
        return next((one for one in self.processes if one.name == name and alive(one)), None)

    def start(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> Process:
        """Start a process in a new session and record it; its previous log is renamed to `.log.old`.

        Args:
            name: Name of the process.
            command: Program and arguments.
            environment: All environment variables of the process.
        """
        log = self.log(name)
        log.parent.mkdir(parents=True, exist_ok=True)
        if log.exists():
            log.replace(log.with_suffix(".log.old"))
        with log.open("wb") as output:
            child = psutil.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**environment, MARK: str(self.folder)},
                start_new_session=True,
            )
        process = Process(name, child.pid, _started(child))
        self.processes = [*filter(alive, self.processes), process]
        self.save()
        return process

    def family(self) -> set[Process]:
        """Return all running processes that were started from here, directly or not, except this one."""
        names = {(process.pid, process.started): process.name for process in self.processes}
        found = set()
        for process in psutil.process_iter(["environ"]):
            if (process.info["environ"] or {}).get(MARK) == str(self.folder) and process.pid != os.getpid():
                with suppress(psutil.NoSuchProcess):
                    started = _started(process)
                    found.add(Process(names.get((process.pid, started), ""), process.pid, started))
        return found

    def end(self, processes: Iterable[Process], patience_s: float) -> None:
        """Ask processes to end, and kill those that are left when their time is up.

        Args:
            processes: The processes to end.
            patience_s: Seconds that they have to end themselves and what they have started.
        """
        left = [running for running in map(_find, processes) if running]
        for ask, seconds in ((psutil.Process.terminate, patience_s), (psutil.Process.kill, KILLED_WITHIN_S)):
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    ask(process)
            _, left = psutil.wait_procs(left, timeout=seconds)
        self.processes = [*filter(alive, self.processes)]
        self.url = self.url if self.processes else ""
        self.save()


def alive(process: Process) -> bool:
    """Return whether a process still runs; another process that has its id does not count."""
    return _find(process) is not None


def _find(process: Process) -> psutil.Process | None:
    with suppress(psutil.Error):
        found = psutil.Process(process.pid)
        if is_running(found) and _started(found) == process.started and MARK in found.environ():
            return found
    return None


def _started(process: psutil.Process) -> float:
    """Return a process's start in seconds since the system's start, which a change of the clock does not alter."""
    return round(float(process.create_time() - psutil.boot_time()), 2)
