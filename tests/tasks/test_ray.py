"""Scoring workers as Prefect tasks on a real Ray of this machine."""

from __future__ import annotations

import importlib.util
import ipaddress
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from nextquill_core.causal.worker import work_alone
from nextquill_core.errors import UserError
from nextquill_core.progress import silent
from tests.prefect_server import Server
from tests.scoring import digests, open_order, write_sequences

installed = importlib.util.find_spec("ray") is not None and importlib.util.find_spec("prefect_ray") is not None


def listening() -> Iterator[str]:
    """Addresses at which this process and all it has started listen."""
    this = psutil.Process()
    for process in [this, *this.children(recursive=True)]:
        with suppress(psutil.Error):
            found = process.net_connections(kind="inet")
            yield from (str(one.laddr.ip) for one in found if one.status == psutil.CONN_LISTEN)


@contextmanager
def stays_up(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the jobs of a block share the Ray that the first one starts, which takes seconds, and end it after them."""
    import ray

    end = ray.shutdown
    with patch.context() as inside:
        inside.setattr(ray, "shutdown", lambda *_: None)
        try:
            yield
        finally:
            end()


@pytest.mark.flow
@pytest.mark.skipif(not installed, reason="Ray is not installed: pip install 'nextquill[ray]'")
def test_two_workers_on_ray_make_the_same_bytes_as_one(
    server: Server, tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from tasks.ray import ray_launch

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    sequences = write_sequences(tmp_path / "ingest")
    order, whole = open_order(tmp_path / "whole", sequences, tiny_folder)
    work_alone(order, silent)
    order, queue = open_order(tmp_path / "shared", sequences, tiny_folder)
    shown: list[tuple[Any, ...]] = []
    listened = set[str]()

    def show(*state: Any) -> None:
        shown.append(state)
        listened.update(listening())

    launch = ray_launch(None, 2, {"num_cpus": 2})
    with temporary_settings({PREFECT_API_URL: server.api}), stays_up(monkeypatch):
        launch(order, show)
        assert digests(queue) == digests(whole)
        assert len(queue.reports()) > 0
        assert shown[-1][:2] == (24, 24)
        assert listened
        assert all(ipaddress.ip_address(one.removeprefix("::ffff:")).is_loopback for one in listened), listened
        broken, _ = open_order(tmp_path / "broken", sequences, tmp_path / "nowhere")
        with pytest.raises(UserError, match="nowhere: cannot load it"):
            ray_launch(None, 2, {"num_cpus": 2})(broken, silent)


def test_ray_that_is_not_installed_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.ray import ray_launch

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"score\.launcher: ray: prefect-ray is not installed; pip install"):
        ray_launch(None, "auto")
