"""Real commands that are killed at a random moment, or one of their processes: a rerun ends in the same bytes.

Damage is reported by `status` and `verify`, and `verify --repair` ends in the same bytes.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from tests.chaos.test_damage import DAMAGE, WAYS, data_files
from tests.chaos.trials import hold, seeds
from tests.chaos.work import contents, leftovers
from tests.conftest import REPO
from tests.prefect_server import Server
from tests.world import small_settings, write_config

pytestmark = [pytest.mark.flow, pytest.mark.timeout(3600)]
COMMANDS = ("ingest", "model", "score", "train", "evaluate")
WORKERS = {"score": ("--set", "score.workers=2")}
"""Options of a command that is killed; the rerun and the comparison have one worker."""
LIMIT_S = 900.0


@dataclass
class Commands:
    """The commands of a pipeline, run once one after the other without interruption.

    Attributes:
        server: The Prefect server.
        folder: Folder for the stores.
        settings: The configuration.
        before: By command, a copy of the store before it.
        after: By command, the contents of the store after it.
        seconds: By command, its duration.
    """

    server: Server
    folder: Path
    settings: dict[str, object]
    before: dict[str, Path] = field(default_factory=dict)
    after: dict[str, dict[str, str]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def reach(self, command: str) -> None:
        """Run all commands up to this one that have not been run."""
        store = self.folder / "store"
        for name in COMMANDS[: COMMANDS.index(command) + 1]:
            if name in self.after:
                continue
            store.mkdir(exist_ok=True)
            self.before[name] = Path(shutil.copytree(store, self.folder / f"before-{name}"))
            begun = time.monotonic()
            process = self.start(name, store)
            assert process.wait(LIMIT_S) == 0, self.log(store)
            self.seconds[name] = time.monotonic() - begun
            self.after[name] = contents(store)

    def run(self, store: Path, command: str, *options: str) -> subprocess.CompletedProcess[str]:
        """Run a command on a store and return what it printed."""
        return self.server.run("flows", command, "--config", str(store.with_suffix(".yaml")), *options)

    def start(self, command: str, store: Path, *options: str) -> subprocess.Popen[bytes]:
        """Start a command on a store; its output is appended to a log beside the store."""
        config = write_config(store.with_suffix(".yaml"), self.settings | {"store": str(store)})
        with store.with_suffix(".log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "flows", command, "--config", str(config), *options], cwd=REPO,
                env=self.server.environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            )  # fmt: skip

    def log(self, store: Path) -> str:
        return store.with_suffix(".log").read_text(errors="replace")[-3000:]


@pytest.fixture(scope="module")
def commands(server: Server, small_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Commands:
    folder = tmp_path_factory.mktemp("commands")
    return Commands(server, folder, small_settings(small_world, folder / "store"))


def interrupt_and_rerun(commands: Commands, command: str, seed: int, folder: Path) -> None:
    """Kill a command, or one of its descendants, at a random moment; run it again and compare.

    Args:
        commands: The uninterrupted commands.
        command: The command to kill.
        seed: Decides the moment and the process.
        folder: Folder for the store.
    """
    draw = random.Random(seed)
    store = Path(shutil.copytree(commands.before[command], folder / f"{command}-{seed}"))
    process = commands.start(command, store, *WORKERS.get(command, ()))
    time.sleep(draw.uniform(0.1, commands.seconds[command]))
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    victim = draw.choice(family) if draw.random() < 0.5 else family[0]
    if process.poll() is None and victim.is_running():
        os.kill(victim.pid, signal.SIGKILL)
    process.wait(LIMIT_S)
    _, alive = psutil.wait_procs(family, timeout=30)
    for one in alive:
        one.kill()
    assert not alive, f"{alive} outlived {command}"
    again = commands.start(command, store)
    assert again.wait(LIMIT_S) == 0, commands.log(store)
    assert contents(store) == commands.after[command]
    assert leftovers(store) == []
    shutil.rmtree(store)


def test_an_ingest_killed_at_any_moment(commands: Commands, tmp_path: Path) -> None:
    commands.reach("ingest")
    hold("ingest command killed", seeds(1), lambda seed: interrupt_and_rerun(commands, "ingest", seed, tmp_path))


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.parametrize("command", COMMANDS[1:])
def test_a_command_killed_at_any_moment(commands: Commands, tmp_path: Path, command: str) -> None:
    commands.reach(command)
    cases = seeds(3)[:25]
    hold(f"{command} command killed", cases, lambda seed: interrupt_and_rerun(commands, command, seed, tmp_path))


@pytest.mark.slow
@pytest.mark.ranks
def test_damage_is_reported_and_repaired(commands: Commands, tmp_path: Path) -> None:
    commands.reach("evaluate")
    whole = commands.folder / "store"

    def trial(seed: int) -> None:
        draw = random.Random(seed)
        store = Path(shutil.copytree(whole, tmp_path / f"damaged-{seed}"))
        write_config(store.with_suffix(".yaml"), commands.settings | {"store": str(store)})
        path, way = draw.choice(data_files(store)), draw.choice(WAYS)
        name = path.relative_to(store).as_posix()
        artifact, file = name.split("/", 2)[:2], name.split("/", 2)[2]
        DAMAGE[way](path)
        verified = commands.run(store, "verify")
        assert verified.returncode == 1, verified.stderr
        assert f"{store.joinpath(*artifact)}: file {file} " in verified.stdout, (name, way, verified.stdout)
        rows = json.loads(commands.run(store, "status", "--json").stdout)
        assert any("file " in row["why"] for row in rows if row["state"] == "stale"), (name, way, rows)
        repaired = commands.run(store, "verify", "--repair")
        assert repaired.returncode == 0, repaired.stderr
        assert contents(store) == commands.after["evaluate"]
        assert leftovers(store) == []
        assert commands.run(store, "verify").returncode == 0
        shutil.rmtree(store)

    hold("damage found by status and verify, and repaired", seeds(2)[:25], trial)
