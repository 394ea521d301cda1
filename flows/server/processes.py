"""Processes that outlive the command that starts them: known again later, and ended with all they have started.

A process id is given to another process sooner or later, so it alone says nothing: a process is ours if it began when
ours began. What ours have started in turn is known by a variable in its environment, so that it is found even where
its parent was killed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from storage.files import read_json, write_json, write_text

STATE = "state.json"
MARK = "NEXTQUILL_UP"
"""Environment variable of everything that was started from a home, directly or not; its value is the home's folder."""
FORCED_S = 5.0
LOOK_EVERY_S = 0.2


@dataclass(frozen=True)
class Process:
    """A process of ours.

    Attributes:
        name: What it is, for people; its log is called so too.
        pid: Its id.
        began: When it began, in the system's own words.
    """

    name: str
    pid: int
    began: str


@dataclass(frozen=True)
class _Seen:
    parent: int
    began: str


@dataclass
class Home:
    """The folder of a local Prefect: its database and logs, and what has been started from it.

    Attributes:
        folder: Where, as an absolute path.
        url: Of the server, while there is one.
        processes: What was started, in order.
        deployed: Digest of what was deployed last.
    """

    folder: Path
    url: str = ""
    processes: list[Process] = field(default_factory=list)
    deployed: str = ""

    @classmethod
    def open(cls, folder: Path) -> Home:
        """What is known about a folder; nothing about one that does not exist, or whose record cannot be read."""
        folder = folder.expanduser().resolve()
        try:
            known = read_json(folder / STATE)
            processes = [Process(**entry) for entry in known["processes"]]
            return cls(folder, known["url"], processes, known["deployed"])
        except (OSError, ValueError, KeyError, TypeError):
            return cls(folder)

    def save(self) -> None:
        """Write it down, in one step."""
        if not (self.folder / ".gitignore").exists():
            write_text(self.folder / ".gitignore", "*\n")
        known = {"url": self.url, "processes": [asdict(one) for one in self.processes], "deployed": self.deployed}
        write_json(self.folder / STATE, known)

    def log(self, name: str) -> Path:
        """Where the process of this name writes."""
        return self.folder / f"{name.replace(' ', '-')}.log"

    def running(self, name: str) -> Process | None:
        """The process of this name, if it runs."""
        return next((one for one in self.processes if one.name == name and alive(one)), None)

    def start(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> Process:
        """Start a process in a session of its own and write it down; its last log stays as `.log.old`."""
        log = self.log(name)
        log.parent.mkdir(parents=True, exist_ok=True)
        if log.exists():
            log.replace(log.with_suffix(".log.old"))
        with log.open("wb") as output:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**environment, MARK: str(self.folder)},
                start_new_session=True,
            )
        seen = _table([child.pid]).get(child.pid)
        process = Process(name, child.pid, seen.began if seen else "")
        self.processes = [*filter(alive, self.processes), process]
        self.save()
        return process

    def family(self) -> set[Process]:
        """Everything that runs and was started from here, at whichever remove."""
        table = _table()
        known = {one for one in self.processes if one.pid in table and table[one.pid].began == one.began}
        pids = _marked(table, f"{MARK}={self.folder}") if sys.platform == "linux" else _descendants(known, table)
        names = {one.pid: one.name for one in known}
        found = {Process(names.get(pid, ""), pid, table[pid].began) for pid in pids if pid != os.getpid()}
        return found | known

    def end(self, processes: Iterable[Process], patience_s: float) -> None:
        """Ask processes to end, wait until they have or their time is up, and force those that are left.

        Args:
            processes: Which.
            patience_s: Seconds they have, for ending what they started as well.
        """
        there = set(processes)
        for signum, seconds in ((signal.SIGTERM, patience_s), (signal.SIGKILL, FORCED_S)):
            for process in filter(alive, there):
                try:
                    os.kill(process.pid, signum)
                except ProcessLookupError:
                    continue
            if wait_until(lambda: not any(map(alive, there)), seconds):
                break
        self.processes = [*filter(alive, self.processes)]
        self.url = self.url if self.processes else ""
        self.save()


def alive(process: Process) -> bool:
    """Whether it still runs, and is not another one that has got its id."""
    seen = _table([process.pid]).get(process.pid)
    return seen is not None and seen.began == process.began


def wait_until(holds: Callable[[], bool], seconds: float) -> bool:
    """Wait until something holds, so long at the most; says whether it does."""
    deadline = time.monotonic() + seconds
    while not (done := holds()) and time.monotonic() < deadline:
        time.sleep(LOOK_EVERY_S)
    return done


def tail(log: Path, lines: int = 20) -> str:
    """The last lines of a log."""
    try:
        with log.open(encoding="utf-8", errors="replace") as file:
            return "".join(deque(file, maxlen=lines)).rstrip()
    except OSError:
        return ""


def _table(pids: Iterable[int] | None = None) -> dict[int, _Seen]:
    """Processes by id; those that have ended and wait for their parent to notice do not count.

    Args:
        pids: Which to look at; None is all.
    """
    if sys.platform != "linux":
        return _table_of_ps()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    names = map(str, pids) if pids is not None else (entry.name for entry in Path("/proc").iterdir())
    table = {}
    for name in filter(str.isdigit, names):
        try:
            stat = Path("/proc", name, "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        fields = stat.rpartition(")")[2].split()  # what is before is the program's name, with blanks and brackets
        if fields[0] not in "ZX":
            table[int(name)] = _Seen(parent=int(fields[1]), began=f"{boot} {fields[19]}")
    return table


def _table_of_ps() -> dict[int, _Seen]:
    listing = subprocess.run(
        ["ps", "-axo", "pid=,ppid=,state=,lstart="],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"LC_ALL": "C"},
    ).stdout
    rows = [line.split(maxsplit=3) for line in listing.splitlines()]
    return {int(pid): _Seen(int(parent), began.strip()) for pid, parent, state, began in rows if state[0] != "Z"}


def _marked(pids: Iterable[int], entry: str) -> Iterator[int]:
    """Those of our own user's processes that have this entry in their environment."""
    for pid in pids:
        try:
            environment = Path("/proc", str(pid), "environ").read_bytes()
        except OSError:
            continue
        if os.fsencode(entry) in environment.split(b"\0"):
            yield pid


def _descendants(roots: Iterable[Process], table: Mapping[int, _Seen]) -> Iterator[int]:
    """Everything that the roots have started, and that has started in turn, as far as its parents still live."""
    children: dict[int, list[int]] = {}
    for pid, seen in table.items():
        children.setdefault(seen.parent, []).append(pid)
    waiting = [child for root in roots for child in children.get(root.pid, ())]
    while waiting:
        pid = waiting.pop()
        yield pid
        waiting.extend(children.get(pid, ()))
