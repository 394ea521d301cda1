"""Where the ranks of a training run are: on this machine, on the hosts of a hostfile, or where Slurm puts them."""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nextquill_core.config import LauncherConfig
from nextquill_core.errors import UserError
from storage.redaction import holds_secret, secret_in
from tasks.ranks.processes import process_count

EXPORTED = ("PYTHON", "NCCL", "GLOO", "TORCH", "HF_", "UCX", "FI_")
"""Beginnings of the environment variables that another host gets too; DeepSpeed's runner has a similar list."""


@dataclass(frozen=True)
class Starter:
    """A process to start here, for the ranks of one machine or of several.

    Attributes:
        command: Program and arguments.
        orphan_signal: What it is to get when this process is killed; srun ends its ranks when told by SIGTERM.
        secrets: Environment variables that it reads as a line of JSON from its standard input, because other users of
            both machines see command lines.
    """

    command: list[str]
    orphan_signal: signal.Signals = signal.SIGKILL
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Hosts:
    """Hosts reached by a remote shell.

    Attributes:
        slots: Ranks of each host.
        remote_shell: Its command; a host and a command line follow.
        address: The first host, as the others reach it.
        port: Where the ranks meet there; None is one that is free on this machine.
    """

    slots: Mapping[str, int]
    remote_shell: tuple[str, ...]
    address: str
    port: int | None

    def __str__(self) -> str:
        return f"{sum(self.slots.values())} rank(s) on {', '.join(self.slots)}"

    def starters(self, order: Path) -> list[Starter]:
        """One remote shell a host; hosts that are this machine need none."""
        port = self.port or free_port()
        exported = {name: value for name, value in os.environ.items() if name.startswith(EXPORTED)}
        secrets = {name: value for name, value in exported.items() if holds_secret(name) or secret_in(value)}
        shown = [f"{name}={value}" for name, value in exported.items() if name not in secrets]
        found = []
        for number, host in enumerate(self.slots):
            world = [f"--world={json.dumps(dict(self.slots))}", f"--node-rank={number}", f"--address={self.address}"]
            command = [sys.executable, "-u", "-m", "tasks.ranks.node", str(order.resolve()), f"--port={port}", *world]
            if is_here(host):
                found.append(Starter(command))
                continue
            command += ["--read-secrets"] if secrets else []
            line = f"cd {shlex.quote(str(Path.cwd()))} && exec env {shlex.join([*shown, *command])}"
            found.append(Starter([*self.remote_shell, host, line], secrets=secrets))
        return found


@dataclass(frozen=True)
class Slurm:
    """Nodes that srun finds, one process of it for all.

    Attributes:
        nodes: How many.
        ranks_per_node: `auto` is what each finds: one an accelerator, or one.
        arguments: Further arguments of srun.
        address: The first node, as the others reach it; None is where Slurm reaches it.
        port: Where the ranks meet there; None is one that is free on this machine.
    """

    nodes: int
    ranks_per_node: int | str
    arguments: tuple[str, ...]
    address: str | None
    port: int | None

    def __str__(self) -> str:
        ranks = f"{self.ranks_per_node} rank(s)" if self.ranks_per_node != "auto" else "a rank an accelerator"
        return f"{ranks} on each of {self.nodes} Slurm nodes"

    def starters(self, order: Path) -> list[Starter]:
        """One srun, which starts one launcher a node and ends them all when one fails."""
        # Several runs may get the same first node, whose ports are not seen from here.
        port = self.port or 20000 + secrets.randbelow(10000)
        srun = [
            "srun",
            f"--nodes={self.nodes}",
            f"--ntasks={self.nodes}",
            "--ntasks-per-node=1",
            "--kill-on-bad-exit=1",
        ]
        node = [sys.executable, "-u", "-m", "tasks.ranks.node", str(order.resolve()), f"--port={port}"]
        node += [f"--ranks-per-node={self.ranks_per_node}"]
        node += [f"--address={self.address}"] if self.address else []
        return [Starter([*srun, *self.arguments, *node], orphan_signal=signal.SIGTERM)]


Placement = int | Hosts | Slurm
"""A number of ranks on this machine, or other machines."""


def placement(launcher: LauncherConfig) -> Placement:
    """Where the configuration wants the ranks.

    Raises:
        UserError: What it needs for that is not here.
    """
    if launcher.kind == "slurm":
        _require("srun", "train.launcher.kind: slurm", "run it on a machine of the cluster, or choose another kind")
        slurm = launcher.slurm
        partition = (f"--partition={slurm.partition}",) if slurm.partition else ()
        arguments = (*partition, *slurm.arguments)
        return Slurm(slurm.nodes, slurm.ranks_per_node, arguments, launcher.address, launcher.port)
    if launcher.kind == "hostfile":
        slots = read_hostfile(Path(str(launcher.hostfile)))
        shell = tuple(shlex.split(launcher.remote_shell))
        if not all(map(is_here, slots)):
            _require(shell[0], "train.launcher.remote_shell", "install it or name another remote shell")
        return Hosts(slots, shell, launcher.address or _first_address(slots), launcher.port)
    return process_count(launcher.processes)


def read_hostfile(path: Path) -> dict[str, int]:
    """The hosts of DeepSpeed's hostfile, `host slots=N` a line, with their slots.

    Raises:
        UserError: There is no such file, or a line of it says something else.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise UserError("there is no hostfile that can be read", str(path), "check train.launcher.hostfile") from None
    slots: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = re.fullmatch(r"\s*([^\s-]\S*)\s+slots=([1-9]\d*)\s*(#.*)?", line)
        if not match:
            raise UserError(f"line {number} is not `host slots=N`", str(path), f"it is {line.strip()!r}")
        if match[1] in slots:
            raise UserError(f"line {number} names the host {match[1]} again", str(path), "name it once, with all slots")
        slots[match[1]] = int(match[2])
    if not slots:
        raise UserError("it names no host", str(path), "write a line `host slots=N` for each")
    return slots


def is_here(host: str) -> bool:
    """Whether a host's name is one of this machine's."""
    return host in {"localhost", "::1", socket.gethostname(), socket.getfqdn()} or host.startswith("127.")


def free_port() -> int:
    """A port that is free on this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _first_address(slots: Mapping[str, int]) -> str:
    """`localhost` would be another machine on each host."""
    first = next(iter(slots))
    if all(map(is_here, slots)):
        return "127.0.0.1"
    return socket.getfqdn() if is_here(first) else first.rpartition("@")[2]


def _require(program: str, where: str, remedy: str) -> None:
    if shutil.which(program) is None:
        raise UserError(f"there is no `{program}` on this machine", where, remedy)
