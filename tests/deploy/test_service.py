"""The systemd unit of the server: its command line is one that the program has, and it ends within its time."""

from __future__ import annotations

import configparser
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.main import get_command

from flows.cli.main import app
from tests.conftest import REPO

UNIT = REPO / "deploy" / "nextquill-serve.service"
ANALYSER = shutil.which("systemd-analyze")


def unit() -> configparser.ConfigParser:
    """Return the sections of the unit; a key that stands several times has its last value."""
    found = configparser.ConfigParser(strict=False, interpolation=None)
    found.optionxform = str  # type: ignore[assignment,method-assign]
    found.read(UNIT)
    return found


def chosen_options(command: str, arguments: list[str]) -> dict[str, Any]:
    """Return the options of a command of `nextquill` as its command line parses them."""
    group = get_command(app)
    context = group.commands[command].make_context(command, arguments, parent=typer.Context(group))  # type: ignore[attr-defined]
    return dict(context.params)


def test_the_command_exists_and_has_time_to_end() -> None:
    service = unit()["Service"]
    program, command, *arguments = shlex.split(service["ExecStart"])
    assert Path(program).name == "nextquill"
    chosen = chosen_options(command, arguments)
    assert (command, chosen["host"]) == ("serve", "127.0.0.1")
    assert int(service["TimeoutStopSec"]) > chosen["drain"] + 5
    assert service["RestartPreventExitStatus"] == "2", "invalid input"
    assert str(chosen["config"]).startswith(service["ReadWritePaths"])


def test_the_service_is_no_root_and_writes_to_one_folder() -> None:
    service = unit()["Service"]
    assert service["User"] == "nextquill"
    assert (service["ProtectSystem"], service["NoNewPrivileges"], service["UMask"]) == ("strict", "yes", "0077")


@pytest.mark.skipif(ANALYSER is None, reason="needs systemd")
def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    here = UNIT.read_text().replace("/opt/nextquill/.venv/bin/nextquill", "/bin/true")
    (tmp_path / UNIT.name).write_text(here)
    command = [str(ANALYSER), "verify", "--man=no", str(tmp_path / UNIT.name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert UNIT.name not in done.stderr, done.stderr
