"""Configurations that are named without `--config`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer

from flows.cli.arguments import with_config_option
from flows.cli.main import app
from tests.flows.cli.test_main import nextquill, refused

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
WITH_CONFIG = [name for name, command in COMMANDS.items() if any("--config" in one.opts for one in command.params)]


def changed(command: str, text: str) -> str:
    return " ".join(with_config_option(COMMANDS[command].params, text.split()))


@pytest.mark.parametrize(
    ("command", "text", "expected"),
    [
        ("run", "a.yaml", "--config a.yaml"),
        ("run", "settings --force", "--config settings --force"),
        ("run", "--set seed=1 a.yaml --store s", "--set seed=1 --config a.yaml --store s"),
        ("run", "--preset mine.yaml a.yaml", "--preset mine.yaml --config a.yaml"),
        ("run", "--set=seed=1 a.yaml", "--set=seed=1 --config a.yaml"),
        ("run", "--config a.yaml", "--config a.yaml"),
        ("run", "-c a.yaml stray", "-c a.yaml stray"),
        ("run", "a.yaml b.yaml", "--config a.yaml b.yaml"),
        ("reproduce", "a.yaml b.yaml", "--config a.yaml --config b.yaml"),
        ("path", "score a.yml", "score --config a.yml"),
        ("sweep", "train.alpha=1,2 a.yaml", "train.alpha=1,2 --config a.yaml"),
        ("sample", "folder.yaml", "folder.yaml"),
        ("run", "-- a.yaml", "-- a.yaml"),
        ("run", "", ""),
    ],
)
def test_the_option_is_inserted(command: str, text: str, expected: str) -> None:
    assert changed(command, text) == expected


def test_the_commands_with_a_configuration_are_known() -> None:
    assert {"run", "ingest", "status", "path", "report", "export", "promote", "gc", "sweep"} <= set(WITH_CONFIG)


@pytest.mark.parametrize("command", WITH_CONFIG)
def test_every_command_reads_a_file_without_the_option(monkeypatch: Any, capsys: Any, command: str) -> None:
    more = {
        "explain": ["--user", "U"], "export": ["--to", "out"], "path": ["score"], "sources": ["--check"],
        "sweep": ["train.alpha=1,2"],
    }  # fmt: skip
    said = refused(monkeypatch, capsys, command, *more.get(command, []), "nowhere.yaml")
    assert said.startswith("nextquill: nowhere.yaml: cannot read the config")


def test_the_answer_is_the_same_as_with_the_option(monkeypatch: Any, capsys: Any, config: Path) -> None:
    answers = []
    for arguments in (["--config", config], [config]):
        assert nextquill(monkeypatch, "status", *arguments, "--json") == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1]
