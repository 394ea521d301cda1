"""The command line: exit codes, one clear line on bad input, what scripts read."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from flows.cli import main
from tests.world import small_settings, write_config


def nextquill(monkeypatch: Any, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["nextquill", *map(str, arguments)])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.fixture
def config(small_world: Path, tmp_path: Path) -> Path:
    return write_config(tmp_path / "config.yaml", small_settings(small_world, tmp_path / "store"))


INPUT = "ingest.inputs=[{{category: C, reviews: '{reviews}', items: '{items}'}}]"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.alfa=1", "unknown config key `train.alfa`; did you mean `train.alpha`?"),
        ("model.name_or_path=./nowhere", "no such model folder"),
        ("ingest.source=amazon-2032", "amazon-2023"),
        (INPUT.format(reviews="nowhere.jsonl", items="nowhere.jsonl"), "nowhere.jsonl"),
        (INPUT.format(reviews="{tmp}/empty.jsonl", items="{world}/items.jsonl"), "empty"),
        ("store=s3://bucket", "s3://"),
    ],
)
@pytest.mark.parametrize("command", ["run", "ingest", "status"])
def test_bad_input_is_one_line_and_exit_code_2(
    monkeypatch: Any, capsys: Any, config: Path, small_world: Path, command: str, override: str, message: str
) -> None:
    (config.parent / "empty.jsonl").touch()
    override = override.replace("{tmp}", str(config.parent)).replace("{world}", str(small_world))
    assert nextquill(monkeypatch, command, "--config", config, "--set", override) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.startswith("nextquill: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_missing_config_and_unknown_command(monkeypatch: Any, capsys: Any) -> None:
    assert nextquill(monkeypatch, "run", "--config", "nowhere.yaml") == 2
    assert "nowhere.yaml: cannot read the config" in capsys.readouterr().err
    assert nextquill(monkeypatch, "dance") == 2


def test_status_for_people_and_for_scripts(monkeypatch: Any, capsys: Any, config: Path) -> None:
    assert nextquill(monkeypatch, "status", "--config", config, "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["stage"] for row in rows] == ["ingest", "model", "score", "train", "train:contextsft", "evaluate"]
    assert {row["state"] for row in rows} == {"missing"}
    assert {"stage", "state", "why", "path", "rows", "bytes", "seconds"} == set(rows[0])
    assert nextquill(monkeypatch, "status", "--config", config) == 0
    assert "missing" in capsys.readouterr().out


def test_path_of_what_is_not_there(monkeypatch: Any, capsys: Any, config: Path) -> None:
    assert nextquill(monkeypatch, "path", "score", "--config", config) == 2
    assert "the score artifact is missing" in capsys.readouterr().err
    assert nextquill(monkeypatch, "path", "scone", "--config", config) == 2
    assert "no stage 'scone'" in capsys.readouterr().err


def test_sources_methods_and_sample(monkeypatch: Any, capsys: Any, tmp_path: Path) -> None:
    assert nextquill(monkeypatch, "sources") == 0
    assert capsys.readouterr().out.startswith("amazon-2023  ")
    assert nextquill(monkeypatch, "methods") == 0
    assert len(capsys.readouterr().out.splitlines()) == 13
    assert nextquill(monkeypatch, "sample", tmp_path / "s", "--users", 20, "--seed", 3) == 0
    assert (tmp_path / "s" / "reviews.jsonl").is_file()


def test_help_answers_within_a_second_without_heavy_imports() -> None:
    code = (
        "import sys, flows.cli; sys.argv = ['nextquill', '--help']\n"
        "try: flows.cli.main()\nexcept SystemExit: pass\n"
        "print([name for name in ('torch', 'prefect', 'polars', 'transformers') if name in sys.modules])"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "Personalised language models" in done.stdout
    assert time.monotonic() - started < 10, "a generous bound for a busy machine; measured: half a second"
