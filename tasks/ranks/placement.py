"""Placement of the ranks of a training: this machine, the hosts of a hostfile, or the nodes of a Slurm job."""

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
"""Prefixes of the environment variables that are passed to other hosts; DeepSpeed's runner has a similar list."""


@dataclass(frozen=True)
class Starter:
    """A process to start on this machine; it runs the ranks of one machine or of several.

    Attributes:
        command: Program and arguments.
        orphan_signal: Signal that it gets when this process is killed; srun ends its ranks on SIGTERM.
        secrets: Environment variables that it reads as a line of JSON from its standard input, because other users of
            both machines can see command lines.
        environment: Its environment; None for that of this process.
    """

    command: list[str]
    orphan_signal: signal.Signals = signal.SIGKILL
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    environment: Mapping[str, str] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Hosts:
    """Hosts that are reached by a remote shell.

    Attributes:
        slots: Number of ranks by host.
        remote_shell: Command of the remote shell; a host and a command line are appended.
        address: Address of the first host, as the others reach it.
        port: Port of the first host at which the ranks meet; None chooses one that is free on this machine.
    """

    slots: Mapping[str, int]
    remote_shell: tuple[str, ...]
    address: str
    port: int | None

    def __str__(self) -> str:
        return f"{sum(self.slots.values())} rank(s) on {', '.join(self.slots)}"

    def starters(self, order: Path) -> list[Starter]:
        """Return one process per host: a remote shell, or the command itself if the host is this machine."""
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
    """Nodes that srun chooses; one srun starts the ranks of all of them.

    Attributes:
        nodes: Number of nodes.
        ranks_per_node: Number of ranks on each node; `auto` is one per accelerator of the node, or one on a CPU.
        arguments: Further arguments of srun.
        address: Address of the first node, as the others reach it; None uses the address that Slurm has.
        port: Port of the first node at which the ranks meet; None chooses one at random.
    """

    nodes: int
    ranks_per_node: int | str
    arguments: tuple[str, ...]
    address: str | None
    port: int | None

    def __str__(self) -> str:
        ranks = f"{self.ranks_per_node} rank(s)" if self.ranks_per_node != "auto" else "one rank per accelerator"
        return f"{ranks} on each of {self.nodes} Slurm nodes"

    def starters(self, order: Path) -> list[Starter]:
        """Return one srun, which starts one launcher per node and ends all of them when one fails."""
        # Several trainings may get the same first node, and its free ports cannot be seen from here.
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
"""A number of ranks on this machine, or the other machines that run them."""


def placement(launcher: LauncherConfig) -> Placement:
    """Return where a configuration places the ranks.

    Raises:
        UserError: The hostfile is invalid, or a program that is needed is not installed.
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
    """Read a hostfile of DeepSpeed, one `host slots=N` per line.

    Returns:
        The number of slots by host.

    Raises:
        UserError: The file cannot be read, or a line of it is invalid.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise UserError("the hostfile cannot be read", str(path), "fix train.launcher.hostfile") from None
    slots: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = re.fullmatch(r"\s*([^\s-]\S*)\s+slots=([1-9]\d*)\s*(#.*)?", line)
        if not match:
            raise UserError(f"line {number} is {line.strip()!r}", str(path), "write it as `host slots=N`")
        if match[1] in slots:
            raise UserError(f"line {number} names the host {match[1]} again", str(path), "name it once, with all slots")
        slots[match[1]] = int(match[2])
    if not slots:
        raise UserError("it names no host", str(path), "write one line `host slots=N` per host")
    return slots


def is_here(host: str) -> bool:
    """Return whether a name or address of a host belongs to this machine."""
    return host in {"localhost", "::1", socket.gethostname(), socket.getfqdn()} or host.startswith("127.")


def free_port() -> int:
    """Return a port that is free on this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _first_address(slots: Mapping[str, int]) -> str:
    """Return an address of the first host that all hosts know; `localhost` would be each host itself."""
    first = next(iter(slots))
    if all(map(is_here, slots)):
        return "127.0.0.1"
    return socket.getfqdn() if is_here(first) else first.rpartition("@")[2]


def _require(program: str, where: str, remedy: str) -> None:
    if shutil.which(program) is None:
        raise UserError(f"there is no `{program}` on this machine", where, remedy)
