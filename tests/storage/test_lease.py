"""A lease keeps writers on other machines out while its holder is alive, and no longer."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from storage import lease
from storage.errors import Busy
from storage.remote import open_store
from tests.s3 import elsewhere, opened
from tests.storage.helpers import BASIS, existing, fill, finish


def test_a_living_writer_elsewhere_is_not_disturbed(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT", 0.05)
    monkeypatch.setattr(lease, "LIFE", 5.0)
    here, there = opened(uri), elsewhere(uri, tmp_path / "there")
    with here.write("kind", "a", BASIS) as staging:
        with pytest.raises(Busy, match=f"another process is making kind a; wait for process {os.getpid()} on"):
            fill(there)
        assert there.progress("kind", "a") == ("running", "")
        finish(here, staging)
    assert there.progress("kind", "a") == ("absent", "")
    assert not [name for name in here.objects.children("kind") if name.startswith(".")]


def test_a_patient_process_gets_the_lease_when_a_living_writer_releases_it(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "BEAT", 0.05)
    here, there = opened(uri), elsewhere(uri, tmp_path / "there")
    began, left = threading.Event(), threading.Event()

    def hold() -> None:
        with here.writer_lock("kind", "a", patience=0):
            began.set()
            time.sleep(0.5)
            left.set()

    holder = threading.Thread(target=hold)
    holder.start()
    assert began.wait(10)
    with there.writer_lock("kind", "a", patience=30):
        assert left.is_set()
    holder.join()


def test_a_dead_writers_lease_is_taken_over(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "LIFE", 0.3)
    here, there = opened(uri), elsewhere(uri, tmp_path / "there")
    here.objects.put("kind/.lease-a.json", json.dumps({"holder": "x", "place": "gone", "pid": 1}).encode())
    started = time.monotonic()
    fill(there)
    assert time.monotonic() - started >= 0.3
    # One that stood in this working copy is known to be dead at once, since its file lock is free.
    monkeypatch.setattr(lease, "LIFE", 60.0)
    here.objects.put("kind/.lease-b.json", json.dumps({"holder": "x", "place": here._place}).encode())
    fill(here, "b")
    assert here.find("kind", "b")


def _race(uri: str, cache: str, rows: int, beat: float) -> None:
    os.environ["NEXTQUILL_CACHE"] = cache
    lease.BEAT = beat
    store = open_store(uri)
    try:
        fill(store, rows=rows)
    except Busy:
        sys.exit(3)


@pytest.mark.process
def test_two_processes_make_one_artifact(s3: str, tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn").Process
    writers = [spawn(target=_race, args=(s3, str(tmp_path / str(rows)), rows, 0.1)) for rows in (3, 4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert {writer.exitcode for writer in writers} <= {0, 3}
    store = opened(s3)
    found = existing(store)
    assert pq.read_table(found.folder / "part/0.parquet").num_rows in (3, 4)
    assert len(store.objects.keys("kind")) == 4
