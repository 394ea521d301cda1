"""A writer's lock excludes other writers, and readers can ask for it without taking it."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import pytest
from filelock import Timeout

from storage.locks import WriterLock, is_held


def test_a_held_lock_is_seen_and_asking_does_not_disturb_it(tmp_path: Path) -> None:
    path = tmp_path / "kind" / ".lock"
    assert not is_held(path)
    lock = WriterLock(path)
    lock.acquire(timeout=0)
    assert all(is_held(path) for _ in range(100))
    with pytest.raises(Timeout):
        WriterLock(path).acquire(timeout=0)
    lock.release()
    assert not is_held(path)
    WriterLock(path).acquire(timeout=0)


def test_asking_creates_nothing(tmp_path: Path) -> None:
    assert not is_held(tmp_path / "kind" / ".lock")
    assert list(tmp_path.iterdir()) == []


def _hold(path: Path, ready: multiprocessing.synchronize.Event) -> None:
    WriterLock(path).acquire(timeout=0)
    ready.set()
    signal.pause()


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    holder = context.Process(target=_hold, args=(path, ready))
    holder.start()
    assert ready.wait(20)
    assert is_held(path)
    assert holder.pid is not None
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    assert not is_held(path)
