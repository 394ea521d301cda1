"""One machine's launcher: its command line, and what it refuses."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.ranks.node import launcher_command, lone_rank_environment
from tests.tasks.ranks.test_launch import order
from tests.tasks.test_sweep import give_devices


def test_the_command_names_ranks_and_order(tmp_path: Path) -> None:
    command = launcher_command(tmp_path / "order.json", {"one": 1, "two": 2}, 1, "one", 29500)
    assert command[1:3] == ["-m", "deepspeed.launcher.launch"]
    info = next(part for part in command if part.startswith("--world_info=")).removeprefix("--world_info=")
    assert json.loads(base64.urlsafe_b64decode(info)) == {"one": [0], "two": [0, 1]}
    assert {"--node_rank=1", "--master_addr=one", "--master_port=29500"} <= set(command)
    assert command[-3:] == ["--module", "nextquill_core.training.worker", str(tmp_path / "order.json")]


def test_a_lone_rank_knows_its_place_and_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    give_devices(monkeypatch, 2, "6,7")
    found = lone_rank_environment("127.0.0.1", 29500)
    assert place.items() <= found.items()
    assert found["CUDA_VISIBLE_DEVICES"] == "6", "as DeepSpeed's launcher does, the first of this process"
    give_devices(monkeypatch, 0)
    assert "CUDA_VISIBLE_DEVICES" not in lone_rank_environment("127.0.0.1", 29500)


@pytest.mark.process
def test_a_host_that_cannot_see_the_store_is_one_line(tmp_path: Path) -> None:
    path = order(tmp_path)
    node = [sys.executable, "-m", "tasks.ranks.node", str(tmp_path / "elsewhere.json"), "--port=1"]
    ended = subprocess.run([*node, "--world", '{"a": 1}'], capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"nextquill: {tmp_path}/elsewhere.json: the host ")
    assert path.exists()
