"""Run one machine's ranks of a training: start DeepSpeed's launcher, and end it when the training ends.

python -m tasks.ranks.node ORDER --port N (--world JSON --node-rank I --address A [--read-secrets] | --ranks-per-node N)

The training holds the other end of this process's standard input. However the training ends, on whichever machine, the
pipe is closed, and the ranks here are ended. Without `--world`, Slurm's environment says which machines take part.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from nextquill_core.errors import UserError
from nextquill_core.training.engines import deepspeed_installed
from nextquill_core.training.ranks import STARTED_BY, rank_logs
from storage.masked_output import mask_output
from tasks.ranks.processes import cuda_devices, end_group, process_count, shared_environment, start

WORKER = "nextquill_core.training.worker"


def main() -> int:
    """Run this machine's ranks to their end."""
    mask_output()
    parser = argparse.ArgumentParser()
    parser.add_argument("order", type=Path)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--address")
    parser.add_argument("--world")
    parser.add_argument("--node-rank", type=int, default=0)
    parser.add_argument("--ranks-per-node", default="auto")
    parser.add_argument(
        "--read-secrets",
        action="store_true",
        help="read secret environment variables as JSON from the first line of the standard input",
    )
    arguments = parser.parse_args()
    if arguments.read_secrets:
        os.environ |= json.loads(sys.stdin.readline())
    closed = threading.Event()
    signal.signal(signal.SIGTERM, lambda signum, frame: closed.set())
    threading.Thread(target=_wait_for_end_of_input, args=(closed,), daemon=True).start()
    try:
        _check(arguments.order)
        if arguments.world:
            world, node_rank, address = json.loads(arguments.world), arguments.node_rank, arguments.address
        else:
            world, node_rank = slurm_world(process_count(arguments.ranks_per_node))
            address = arguments.address or slurm_address(next(iter(world)))
    except UserError as error:
        print(f"nextquill: {error}", file=sys.stderr, flush=True)
        return 2
    command = launcher_command(arguments.order, world, node_rank, address, arguments.port)
    launcher = start(command, None, rank_environment(list(world.values())[node_rank], address))
    try:
        while launcher.poll() is None and not closed.is_set():
            time.sleep(0.2)
    finally:
        end_group(launcher)
    return launcher.returncode % 256


def launcher_command(order: Path, world: Mapping[str, int], node_rank: int, address: str, port: int) -> list[str]:
    """Return the command line of DeepSpeed's launcher on one machine.

    Args:
        order: The worker's order.
        world: Number of ranks by machine, in the order of the ranks.
        node_rank: Index of this machine in `world`.
        address: Address of the first machine, as the others reach it.
        port: Port of the first machine at which the ranks meet.
    """
    slots: dict[str, list[int] | list[str]] = {name: list(range(count)) for name, count in world.items()}
    here = list(world)[node_rank]
    devices = cuda_devices()
    if len(devices) >= world[here]:  # the launcher sets CUDA_VISIBLE_DEVICES from these
        slots[here] = devices[: world[here]]
    info = base64.urlsafe_b64encode(json.dumps(slots).encode()).decode()
    launcher = [sys.executable, "-m", "deepspeed.launcher.launch", f"--world_info={info}", f"--node_rank={node_rank}"]
    meeting_point = [f"--master_addr={address}", f"--master_port={port}"]
    logs = f"--enable_each_rank_log={rank_logs(order)}"
    return [*launcher, *meeting_point, logs, "--no_local_rank", "--module", WORKER, str(order)]


def rank_environment(ranks: int, address: str) -> dict[str, str]:
    """Return the ranks' environment: their share of the cores, and the settings of DeepSpeed, gloo and NCCL.

    Args:
        ranks: Number of ranks on this machine.
        address: Address of the first machine, as the others reach it. With a loopback address, all ranks are on this
            machine and listen on its loopback interface only, unless the user has named another interface.
    """
    import torch

    environment = shared_environment(ranks) | {STARTED_BY: str(os.getpid())}
    if address.startswith("127.") and (interface := loopback_interface()):
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            environment.setdefault(name, interface)
    if not torch.accelerator.is_available():
        environment["DS_ACCELERATOR"] = "cpu"
    return environment


def lone_rank_environment(address: str, port: int) -> dict[str, str]:
    """Return what DeepSpeed's launcher would tell the only rank of a training.

    Args:
        address: Address at which the rank listens.
        port: A free port there.
    """
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_SIZE": "1"}
    device = {"CUDA_VISIBLE_DEVICES": devices[0]} if (devices := cuda_devices()) else {}
    return place | {"MASTER_ADDR": address, "MASTER_PORT": str(port)} | device


def loopback_interface() -> str:
    """Return the name of the interface with the address 127.0.0.1; "" if there is none."""
    import psutil

    addresses = psutil.net_if_addrs()
    return next((name for name, found in addresses.items() if "127.0.0.1" in [one.address for one in found]), "")


def slurm_world(ranks_per_node: int) -> tuple[dict[str, int], int]:
    """Return the number of ranks by machine of this Slurm step, and the index of this machine."""
    names = _scontrol("show", "hostnames", os.environ["SLURM_STEP_NODELIST"]).split()
    return dict.fromkeys(names, ranks_per_node), int(os.environ["SLURM_NODEID"])


def slurm_address(node: str) -> str:
    """Return the address at which Slurm itself reaches a machine; other programs may not know its name."""
    found = re.search(r"\bNodeAddr=(\S+)", _scontrol("show", "node", node, "--oneliner"))
    return found[1] if found else node


def _scontrol(*arguments: str) -> str:
    try:
        return subprocess.run(["scontrol", *arguments], check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(
            f"scontrol does not answer: {error}", socket.gethostname(), "ask the operator of the cluster"
        ) from None


def _check(order: Path) -> None:
    host = socket.gethostname()
    if not order.is_file():
        raise UserError(
            f"the host {host} cannot see this file", str(order), "put `store` on a file system that all hosts share"
        )
    if not deepspeed_installed():
        raise UserError("DeepSpeed is not installed", f"the host {host}", "pip install 'nextquill[deepspeed]' (Linux)")


def _wait_for_end_of_input(closed: threading.Event) -> None:
    while os.read(sys.stdin.fileno(), 1024):
        pass
    closed.set()


if __name__ == "__main__":
    sys.exit(main())
