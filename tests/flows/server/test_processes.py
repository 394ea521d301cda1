"""Processes that were started from a home: they are recognised later, and ended with all that they have started."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from flows.server.processes import MARK, Home, Process, alive
from tasks.waiting import wait_until


@pytest.mark.parametrize("mark", [{}, {MARK: "/another/home"}], ids=["unmarked", "of another home"])
def test_a_process_that_has_the_id_of_ours_is_left_alone(tmp_path: Path, mark: dict[str, str]) -> None:
    other = subprocess.Popen(["sleep", "60"], env=os.environ | mark)
    try:
        home = Home(tmp_path.resolve(), processes=[Process("server", other.pid, 123.45)])
        home.save()
        home = Home.open(tmp_path)
        assert home.running("server") is None
        assert home.family() == set()
        home.end(home.processes, 0.1)
        assert other.poll() is None
        assert Home.open(tmp_path).processes == []
    finally:
        other.kill()
        other.wait()


def test_a_process_is_recognised_by_a_later_command(tmp_path: Path) -> None:
    started = Home.open(tmp_path).start("server", ["sleep", "60"], dict(os.environ))
    home = Home.open(tmp_path)
    assert home.running("server") == started
    assert home.family() == {started}
    home.end([started], 5.0)
    assert not alive(started)
    assert Home.open(tmp_path).processes == []


def test_what_a_killed_process_has_started_is_found(tmp_path: Path) -> None:
    home = Home.open(tmp_path / "home")
    parent = home.start("parent", ["sh", "-c", "setsid sleep 60 & wait"], dict(os.environ))
    assert wait_until(lambda: len(home.family()) > 1, 30)
    (orphan,) = home.family() - {parent}
    os.kill(parent.pid, signal.SIGKILL)
    assert wait_until(lambda: not alive(parent), 30)
    assert wait_until(lambda: home.family() == {orphan}, 30)  # a process that replaces its program has no environment
    assert orphan.name == ""
    home.end(home.family(), 5.0)
    assert home.family() == set()
    assert not alive(orphan)


def test_a_process_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    home = Home.open(tmp_path)
    stubborn = home.start(
        "stubborn", ["sh", "-c", 'trap "" TERM; echo ready; while :; do sleep 0.1; done'], {**os.environ}
    )
    assert wait_until(lambda: "ready" in home.log("stubborn").read_text(), 30)
    home.end([stubborn], 0.3)
    assert not alive(stubborn)
    assert not psutil.pid_exists(stubborn.pid)
