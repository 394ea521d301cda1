"""A run that was interrupted anywhere ends in the same bytes as one that was not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from nextquill_core.ingest import scan, sequences
from nextquill_core.ingest.formats.parse import Parser
from storage.staging import Staging
from tests.conftest import REPO
from tests.nextquill_core.ingest.world import World, lines, plain_category


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(sequences, "USERS_PER_SHARD", 1)
    world = World(tmp_path)
    reviews, items = plain_category()
    world.write("r.jsonl.gz", [*reviews, b"bad"])
    world.write("i.jsonl", items)
    return world


def run(world: World, out: str) -> dict[str, Any]:
    folder = world.folder
    return world.run(world.config(folder / "r.jsonl.gz", folder / "i.jsonl"), batch_bytes=400, out=folder / out)


def test_an_interruption_anywhere_changes_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    stats = run(world, "whole")
    shards, parts = world.shards(world.folder / "whole"), world.parts(world.folder / "whole")
    assert len([name for name in shards if name.startswith("sequences")]) == 4
    steps = [(scan, "write_json"), (scan, "atomic_path"), (sequences, "atomic_path"), (Staging, "write_table")]
    steps += [(Staging, "finish")]
    for place, (owner, name) in enumerate(steps):
        for nth in (1, 3, 6):
            original, calls = getattr(owner, name), [0]

            def breaking(
                *args: Any, original: Any = original, calls: list[int] = calls, nth: int = nth, **kw: Any
            ) -> Any:
                calls[0] += 1
                if calls[0] == nth:
                    raise KeyboardInterrupt
                return original(*args, **kw)

            out = f"out-{place}-{nth}"
            with monkeypatch.context() as patch:
                patch.setattr(owner, name, breaking)
                try:
                    run(world, out)
                except KeyboardInterrupt:
                    pass
                else:
                    assert calls[0] < nth
            assert run(world, out) == stats
            assert world.shards(world.folder / out) == shards
            assert world.parts(world.folder / out) == parts


def test_finished_blocks_are_not_parsed_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    stats = run(world, "out")
    monkeypatch.setattr(Parser, "parse", None)
    assert run(world, "out") == stats


@pytest.mark.process
def test_a_killed_process_leaves_what_the_next_one_completes(world: World) -> None:
    reviews, _ = plain_category()
    (world.folder / "r.jsonl").write_bytes(lines(reviews) * 40)
    script = f"""
import sys; sys.path.insert(0, {str(REPO)!r})
from pathlib import Path
from tests.nextquill_core.ingest.world import World
folder = Path({str(world.folder)!r})
world = World(folder)
world.run(world.config(folder / "r.jsonl", folder / "i.jsonl"), batch_bytes=500, out=folder / "killed")
"""
    parts = world.folder / "killed" / "scan" / "C" / "scratch" / "reviews"
    with subprocess.Popen([sys.executable, "-c", script]) as process:
        while process.poll() is None and not (parts / "0000-000002.json").exists():
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
    assert (parts / "0000-000002.json").exists()
    config = world.config(world.folder / "r.jsonl", world.folder / "i.jsonl")
    assert world.run(config, batch_bytes=500, out=world.folder / "killed") == world.run(config, batch_bytes=500)
    assert world.shards(world.folder / "killed") == world.shards()
    assert world.parts(world.folder / "killed") == world.parts()
