"""Placement of ranks: hostfiles, remote shells and Slurm, and the programs that each kind needs."""

from __future__ import annotations

import os
import shlex
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from nextquill_core.config import DeepSpeedConfig, LauncherConfig
from nextquill_core.errors import UserError
from storage.redaction import holds_secret
from tasks.ranks.placement import Hosts, Slurm, is_here, placement, read_hostfile


def hostfile(folder: Path, text: str) -> str:
    path = folder / "hostfile"
    path.write_text(text)
    return str(path)


def test_a_hostfile_is_read_as_deepspeed_reads_it(tmp_path: Path) -> None:
    text = "# two machines\nworker-0 slots=4\n\n  user@worker-1   slots=2 # the older one\n"
    assert read_hostfile(Path(hostfile(tmp_path, text))) == {"worker-0": 4, "user@worker-1": 2}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("worker-0\n", "line 1 is 'worker-0'; write it as `host slots=N`"),
        ("a slots=1\nb slots=0\n", "line 2 is 'b slots=0'"),
        ("-oProxyCommand=x slots=1\n", "line 1 is '-oProxyCommand=x slots=1'"),
        ("a slots=1\na slots=2\n", "line 2 names the host a again"),
        ("# no host\n", "it names no host"),
    ],
)
def test_a_hostfile_that_cannot_be_used_is_refused(tmp_path: Path, text: str, fault: str) -> None:
    with pytest.raises(UserError, match=rf"hostfile: {fault}"):
        read_hostfile(Path(hostfile(tmp_path, text)))


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"kind": "hostfile", "hostfile": "nowhere"}, "nowhere: the hostfile cannot be read"),
        ({"kind": "slurm"}, r"train\.launcher\.kind: slurm: there is no `srun` on this machine"),
    ],
)
def test_a_missing_program_or_hostfile_is_one_line(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], fault: str
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=fault):
        placement(LauncherConfig(**settings))


def test_a_remote_shell_is_needed_only_for_other_hosts(tmp_path: Path) -> None:
    settings = {"kind": "hostfile", "remote_shell": "no-such-shell -x"}
    here = LauncherConfig(**settings, hostfile=hostfile(tmp_path, "localhost slots=1\n127.0.0.2 slots=2\n"))
    assert placement(here) == Hosts({"localhost": 1, "127.0.0.2": 2}, ("no-such-shell", "-x"), "127.0.0.1", None)
    with pytest.raises(UserError, match="there is no `no-such-shell` on this machine"):
        placement(LauncherConfig(**settings, hostfile=hostfile(tmp_path, "worker-0 slots=1\n")))


def test_the_first_host_has_an_address_that_all_hosts_know(tmp_path: Path) -> None:
    def address(text: str, **settings: Any) -> str:
        launcher = LauncherConfig(kind="hostfile", remote_shell="sh", hostfile=hostfile(tmp_path, text), **settings)
        where = placement(launcher)
        assert isinstance(where, Hosts)
        return where.address

    assert address("me@worker-0 slots=1\nworker-1 slots=1") == "worker-0"
    assert address("localhost slots=1\nworker-1 slots=1") == socket.getfqdn()
    assert address("worker-0 slots=1", address="10.0.0.1") == "10.0.0.1"
    assert is_here(socket.gethostname())


def test_a_host_gets_one_quoted_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_IB_HCA", "a b;c")
    for name in [name for name in os.environ if name.startswith("HF_") and holds_secret(name)]:
        monkeypatch.delenv(name)
    hosts = Hosts({"worker-0": 1, "worker-1": 3}, ("ssh", "-x"), "worker-0", 29500)
    first, second = (starter.command for starter in hosts.starters(tmp_path / "an order.json"))
    assert first[:3] == ["ssh", "-x", "worker-0"]
    assert second[:3] == ["ssh", "-x", "worker-1"]
    (line,) = second[3:]
    words = shlex.split(line)
    assert words[:5] == ["cd", str(Path.cwd()), "&&", "exec", "env"]
    assert "NCCL_IB_HCA=a b;c" in words
    assert words[words.index(sys.executable) :] == [
        sys.executable, "-u", "-m", "tasks.ranks.node", str(tmp_path / "an order.json"), "--port=29500",
        '--world={"worker-0": 1, "worker-1": 3}', "--node-rank=1", "--address=worker-0",
    ]  # fmt: skip


def test_secrets_go_to_a_host_by_its_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "pl4nt3d-t0ken")
    monkeypatch.setenv("HF_ENDPOINT", "https://me:pl4nt3d-passw0rd@mirror")
    hosts = Hosts({"localhost": 1, "worker-1": 1}, ("ssh",), "worker-0", 29500)
    here, there = hosts.starters(tmp_path / "order.json")
    assert "--read-secrets" in there.command[-1]
    assert "pl4nt3d" not in " ".join([*here.command, *there.command]) + repr(there)
    assert not here.secrets
    assert there.secrets["HF_TOKEN"] == "pl4nt3d-t0ken"
    assert there.secrets["HF_ENDPOINT"] == "https://me:pl4nt3d-passw0rd@mirror"


def test_srun_gets_one_task_per_node_and_the_user_s_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "srun").write_text("#!/bin/sh\n")
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    slurm = {"nodes": 3, "ranks_per_node": 8, "partition": "gpu", "arguments": ["--gpus-per-node=8"]}
    where = placement(LauncherConfig(kind="slurm", slurm=slurm, port=29500))  # type: ignore[arg-type]
    assert isinstance(where, Slurm)
    (starter,) = where.starters(tmp_path / "order.json")
    assert starter.command == [
        "srun", "--nodes=3", "--ntasks=3", "--ntasks-per-node=1", "--kill-on-bad-exit=1", "--partition=gpu",
        "--gpus-per-node=8", sys.executable, "-u", "-m", "tasks.ranks.node", str(tmp_path / "order.json"),
        "--port=29500", "--ranks-per-node=8",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "settings",
    [{"kind": "hostfile"}, {"kind": "local", "processes": 0}, {"kind": "slurm", "slurm": {"nodes": 0}}, {"port": 0}],
)
def test_invalid_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        LauncherConfig(**settings)


@pytest.mark.parametrize(("stage", "offload"), [(0, "optimizer"), (2, "parameters")])
def test_offloading_needs_a_zero_stage_that_supports_it(stage: int, offload: str) -> None:
    with pytest.raises(ValidationError, match=f"offload {offload} needs zero_stage"):
        DeepSpeedConfig(zero_stage=stage, offload=offload)  # type: ignore[arg-type]
