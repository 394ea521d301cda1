"""Work on a store on S3 that is killed at any request, or loses power or the network: one rerun, on the same machine or
another, ends in the same bytes."""

from __future__ import annotations

import random
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.chaos.object_store import (
    Machine,
    Network,
    Server,
    count_operations,
    do_work,
    lose_power,
    shown_contents,
)
from tests.chaos.trials import chosen, hold, seeds
from tests.chaos.work import NUMBERS, leftovers
from tests.proxy import Proxy, Request
from tests.s3 import s3_server

pytestmark = pytest.mark.process
MOST_RETRIES = 40
BROKEN = ("cut", "lost", "half", "silent", "deaf")


@dataclass
class Reference:
    """The work on a store on S3, done once without interruption by a machine that has no working copy.

    Attributes:
        server: The server of the stores.
        start: The objects of the store before the work; one of them is damaged.
        contents: The contents of the store after it.
        requests: The requests of the work to the server.
        operations: Number of its file operations on the working copy.
    """

    server: Server
    start: dict[str, bytes]
    contents: dict[str, str]
    requests: list[Request]
    operations: int

    def machine(self, folder: Path) -> Machine:
        """Return a machine without a working copy, with a new store in the state before the work."""
        return Machine(self.server.new_store(self.start), self.server.proxy.url, folder)

    def check(self, machine: Machine) -> None:
        """Do the work again on this machine, and compare."""
        self.server.proxy.fault = Network()
        assert machine.run(do_work) == ""
        found, unnamed = self.found(machine)
        assert found == self.contents
        assert unnamed == []
        assert self.server.unfinished_parts(machine.uri) == []
        assert leftovers(machine.copies) == []

    def found(self, machine: Machine) -> tuple[dict[str, str], list[str]]:
        """Return the contents of the machine's store, and the keys that no manifest names."""
        folder = machine.folder / "found"
        shutil.rmtree(folder, ignore_errors=True)
        return shown_contents(self.server.held(machine.uri), folder)

    def drawn(self, draw: random.Random) -> int:
        """Draw the number of a request, in half of the cases of one with the bytes of an artifact's file."""
        data = [number for number, request in enumerate(self.requests, 1) if "/data-" in request.key]
        return draw.choice(data) if draw.random() < 0.5 else draw.randrange(1, len(self.requests) + 1)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reference]:
    folder = tmp_path_factory.mktemp("reference")
    with pytest.MonkeyPatch.context() as patched, s3_server() as address, Proxy(address, Network()) as proxy:
        patched.setattr("moto.s3.models.S3_UPLOAD_PART_MIN_SIZE", 1)
        server = Server(address, proxy)
        uri = server.new_store({})
        maker = Machine(uri, proxy.url, folder / "maker")
        assert maker.run(do_work, "prepare") == ""
        start = server.held(uri)
        damaged = next(key for key in start if key.endswith("numbers/1.parquet") and NUMBERS.fingerprint in key)
        start[damaged] = start[damaged][:-1]
        uri = server.new_store(start)
        proxy.seen.clear()
        worker = Machine(uri, proxy.url, folder / "worker")
        assert worker.run(count_operations) == ""
        found, unnamed = shown_contents(server.held(uri), folder / "found")
        assert unnamed == []
        yield Reference(server, start, found, list(proxy.seen), int(worker.counted.read_text()))
        proxy.gate.set()


@pytest.mark.parametrize("where", ["the same machine", "another machine"])
def test_a_kill_at_a_request(reference: Reference, tmp_path: Path, where: str) -> None:
    # The request never reaches the server, or the server executes it after the process is gone.

    def trial(seed: int) -> None:
        draw = random.Random(seed)
        here = reference.machine(tmp_path / f"here-{seed}")
        number = reference.drawn(draw)
        process = here.start(do_work)
        reference.server.proxy.fault = Network(number, number, draw.choice(("cut", "lost")), process.pid)
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        elsewhere = replace(here, folder=tmp_path / f"elsewhere-{seed}")
        reference.check(here if where == "the same machine" else elsewhere)

    hold(f"S3: killed at a request, rerun on {where}", seeds(1), trial)


def test_a_loss_of_power(reference: Reference, tmp_path: Path) -> None:
    """The working copy is what the disk has kept; the store on S3 is unchanged."""

    def trial(number: int) -> None:
        machine = reference.machine(tmp_path / f"machine-{number}")
        reference.server.proxy.fault = Network()
        process = machine.start(lose_power, number, tmp_path / f"disk-{number}")
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        if process.exitcode:
            shutil.rmtree(machine.copies)
            (tmp_path / f"disk-{number}").rename(machine.copies)
        reference.check(machine)

    hold("S3: machine cut off from power", chosen(range(1, reference.operations + 1), few=1), trial)


def test_a_network_that_fails_for_a_moment(reference: Reference, tmp_path: Path) -> None:
    """A few requests in a row are lost, also in the middle of an upload or a download, and the work succeeds."""

    def trial(seed: int) -> None:
        draw = random.Random(seed)
        machine = reference.machine(tmp_path / f"machine-{seed}")
        number = reference.drawn(draw)
        reference.server.proxy.fault = Network(number, number + draw.randrange(3), draw.choice(BROKEN))
        assert machine.run(do_work, "do", {"READ_TIMEOUT_S": 0.5}) == ""
        reference.check(machine)

    hold("S3: network fails for a moment", seeds(1), trial)


def test_a_network_that_is_lost(reference: Reference, tmp_path: Path) -> None:
    """After a request nothing arrives any more: one line after the retries, and a rerun when the network is back."""
    few = {"READ_TIMEOUT_S": 0.3, "ATTEMPTS": 2, "PART_ATTEMPTS": 1}

    def trial(seed: int) -> None:
        draw = random.Random(seed)
        machine = reference.machine(tmp_path / f"machine-{seed}")
        network = Network(reference.drawn(draw), sys.maxsize, draw.choice(BROKEN))
        reference.server.proxy.fault = network
        line = machine.run(do_work, "do", few)
        if line:
            assert "no success in 2 attempts" in line
            assert "then run the same command again; it resumes" in line
            assert len(line.splitlines()) == 1
        else:  # only the end of the last lease was lost
            assert reference.found(machine) == (reference.contents, [])
        assert network.count - network.first < MOST_RETRIES
        reference.check(machine)

    hold("S3: network lost", seeds(1), trial)
