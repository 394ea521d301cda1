"""Runs that meet in a store."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path

from filelock import FileLock

from nextquill_core.pipeline.run import Outcome, Run
from tests.world import small_config


def test_what_another_finished_while_we_waited_for_it_is_taken(small_world: Path, tmp_path: Path) -> None:
    other = Run(small_config(small_world, tmp_path / "theirs"))
    theirs = other.make(other.plan.scans["Small"])
    run = Run(small_config(small_world, tmp_path / "ours"))
    folder = run.store.folder("scan", run.plan.scans["Small"].fingerprint)
    folder.parent.mkdir(parents=True)
    outcomes: list[Outcome] = []
    waiting = threading.Thread(target=lambda: outcomes.append(run.make(run.plan.scans["Small"])))
    with FileLock(folder.parent / f".lock-{folder.name}"):  # as its writer has it
        waiting.start()
        time.sleep(0.5)
        shutil.copytree(theirs.artifact.folder, folder)
    waiting.join(60)
    assert outcomes[0].reused
    assert outcomes[0].artifact.manifest == theirs.artifact.manifest
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == [folder.name]
