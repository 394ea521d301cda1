"""The small piece of work with its store on S3, done by several simulated machines behind one network."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from storage import Staging, UserError, file_systems, lease, objects, remote
from storage import garbage as keeping
from tests.chaos.crash import operations_of, started
from tests.chaos.disk import Disk
from tests.chaos.operations import Operation, watched
from tests.chaos.work import Work, contents
from tests.proxy import Proxy, Request
from tests.s3 import environment, new_store

LARGE_BYTES = 640 << 10
PART_BYTES = 256 << 10
WRONG_INPUT = 2


class LargeWork(Work):
    """The work, with a file that is uploaded in parts."""

    def _sum(self, staging: Staging) -> Mapping[str, Any]:
        stats = super()._sum(staging)
        staging.path("large.bin").write_bytes(hashlib.shake_128(b"large").digest(LARGE_BYTES))
        return stats


@dataclass(frozen=True)
class Machine:
    """A machine that works on a store on S3, each time in a new process.

    Attributes:
        uri: The store.
        address: Address of the server, or of the proxy in front of it.
        folder: Folder of the working copy, the journal and the last error; without it the machine is new.
    """

    uri: str
    address: str
    folder: Path

    @property
    def copies(self) -> Path:
        """The folder of the working copies, which holds the one of `uri`."""
        return self.folder / "copies"

    @property
    def counted(self) -> Path:
        """The file in which `count_operations` writes the number."""
        return self.folder / "operations.txt"

    @property
    def error(self) -> Path:
        """The file in which a process writes the line with which it ended."""
        return self.folder / "error.txt"

    def start(self, work: Callable[..., object], *arguments: object) -> Any:
        """Start one of this module's functions on the machine."""
        self.copies.mkdir(parents=True, exist_ok=True)
        return started(work, self, *arguments)

    def run(self, work: Callable[..., object], *arguments: object) -> str:
        """Run one of this module's functions on the machine; return "" or the line with which it ended."""
        process = self.start(work, *arguments)
        process.join()
        return self.line(process.exitcode)

    def line(self, exitcode: int | None) -> str:
        """Return "" for completed work, or the line with which it ended."""
        if exitcode == 0:
            return ""
        assert exitcode == WRONG_INPUT, f"ended with {exitcode}"
        return self.error.read_text()


def do_work(machine: Machine, part: str = "do", settings: Mapping[str, object] | None = None) -> None:
    """Do the work, or prepare it, in the calling process, which exits with code 2 on an error of the user.

    Pauses and the life of leases are short, and unreferenced files count as abandoned at once, because in a trial no
    two processes are alive.

    Args:
        machine: The machine of this process.
        part: "prepare" or "do".
        settings: Constants of `storage.objects` and `storage.file_systems` to change, by name.
    """
    os.environ.update(environment(machine.address, machine.copies))
    lease.LIFE, remote.ABANDONED, keeping.DAY_S = 0.3, -1.0, -1.0
    for name, value in {"FIRST_PAUSE": 0.01, "PART_BYTES": PART_BYTES, **(settings or {})}.items():
        setattr(next(one for one in (objects, file_systems) if hasattr(one, name)), name, value)
    try:
        getattr(LargeWork(machine.uri, machine.folder / "journal"), part)()
    except UserError as error:
        machine.error.write_text(str(error))
        sys.exit(WRONG_INPUT)


def lose_power(machine: Machine, number: int, left: Path) -> None:
    """Do the work until power fails before an operation on the working copy.

    Args:
        machine: The machine of this process.
        number: Number of the operation that does not happen.
        left: A new folder for the working copies that the disk has kept.
    """
    remote.STREAMS = 1  # operations are watched one at a time
    disk = Disk(machine.copies)

    def before(operation: Operation) -> None:
        disk.before(operation)
        if operation.number == number:
            disk.lose_power(left)
            os.kill(os.getpid(), signal.SIGKILL)

    with watched(machine.copies, before):
        do_work(machine)


def count_operations(machine: Machine) -> None:
    """Do the work, and write the number of its operations on the working copy to `Machine.counted`."""
    remote.STREAMS = 1
    machine.counted.write_text(str(len(operations_of(machine.copies, partial(do_work, machine)))))


@dataclass
class Network:
    """Faults of the requests that pass the proxy.

    Attributes:
        first: Number of the first request with a fault; 0 for none.
        last: Number of the last one.
        fault: The kind of fault, see `Proxy`.
        victim: Id of a process that is killed at the first one.
        count: Number of requests so far.
        lock: Guards `count`.
    """

    first: int = 0
    last: int = 0
    fault: str = "cut"
    victim: int = 0
    count: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, request: Request) -> str | None:
        with self.lock:
            self.count += 1
            if not self.first <= self.count <= self.last:
                return None
            if self.victim and self.count == self.first:
                os.kill(self.victim, signal.SIGKILL)
        return self.fault


class Server:
    """An S3 server, the proxy in front of it, and the buckets on it.

    Args:
        address: Address of the server.
        proxy: The proxy.
    """

    def __init__(self, address: str, proxy: Proxy) -> None:
        import boto3

        self._address = address
        self.proxy = proxy
        self._client = boto3.client(
            "s3", endpoint_url=address, aws_access_key_id="x", aws_secret_access_key="x", region_name="us-east-1"
        )

    def new_store(self, held: Mapping[str, bytes]) -> str:
        """Return the URI of a new store with these objects, given by key."""
        uri = new_store(self._address)
        bucket, prefix = uri.removeprefix("s3://").split("/", 1)
        for key, value in held.items():
            self._client.put_object(Bucket=bucket, Key=f"{prefix}/{key}", Body=value)
        return uri

    def held(self, uri: str) -> dict[str, bytes]:
        """Return all objects of a store by key."""
        bucket, prefix = uri.removeprefix("s3://").split("/", 1)
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/")
        keys = [found["Key"] for page in pages for found in page.get("Contents", ())]
        return {
            key.removeprefix(f"{prefix}/"): self._client.get_object(Bucket=bucket, Key=key)["Body"].read()
            for key in keys
        }

    def unfinished_parts(self, uri: str) -> list[str]:
        """Return the keys of uploads in parts that were not completed."""
        bucket = uri.removeprefix("s3://").split("/", 1)[0]
        return [upload["Key"] for upload in self._client.list_multipart_uploads(Bucket=bucket).get("Uploads", ())]


def shown_contents(held: Mapping[str, bytes], folder: Path) -> tuple[dict[str, str], list[str]]:
    """Compare stores on S3 as folders are compared.

    Args:
        held: All objects of the store by key.
        folder: An empty folder, in which they are written in the layout of a store in a folder.

    Returns:
        The digests, as from `contents`, and the keys that no manifest names. The lease of a killed process is not
        among them: it stays until the next writer of the same artifact takes it over.
    """
    generations = {
        key.removesuffix("manifest.json") + json.loads(value)["generation"]
        for key, value in held.items()
        if key.endswith("/manifest.json")
    }
    unnamed = []
    for key, value in held.items():
        parts = key.split("/")
        if parts[0] == ".accepted":
            parts[0] = "accepted"
        elif parts[-1].startswith(".lease-"):
            continue
        elif parts[-1] != "manifest.json":
            if "/".join(parts[:3]) not in generations:
                unnamed.append(key)
                continue
            del parts[2]
        path = folder.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(value)
    return contents(folder), unnamed
