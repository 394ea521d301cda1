"""The command line: exit codes, one line on invalid input, and output for scripts."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from flows.cli import announce
from flows.cli.main import main
from flows.cli.options import Panel
from nextquill_core.config import load_config, parse_config
from nextquill_core.methods.registry import METHODS
from nextquill_core.pipeline.run import Run
from tests.conftest import REPO
from tests.nextquill_core.pipeline.test_plan import make_all
from tests.world import small_config


def nextquill(monkeypatch: Any, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["nextquill", *map(str, arguments)])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def refused(monkeypatch: Any, capsys: Any, *arguments: object) -> str:
    """Run a command that must end with exit code 2, one line and no output, and return the line."""
    assert nextquill(monkeypatch, *arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("nextquill: "), captured.err
    assert (captured.err.count("\n"), captured.out) == (1, ""), captured
    return str(captured.err)


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
def test_invalid_input_is_one_line_and_exit_code_2(
    monkeypatch: Any, capsys: Any, config: Path, small_world: Path, command: str, override: str, message: str
) -> None:
    monkeypatch.setattr(announce, "SLOW_AFTER_S", 600)  # a busy machine adds no line
    (config.parent / "empty.jsonl").touch()
    override = override.replace("{tmp}", str(config.parent)).replace("{world}", str(small_world))
    assert message in refused(monkeypatch, capsys, command, "--config", config, "--set", override)


def test_an_unknown_command_is_exit_code_2(monkeypatch: Any) -> None:
    assert nextquill(monkeypatch, "dance") == 2


def test_status_for_people_and_for_scripts(monkeypatch: Any, capsys: Any, config: Path) -> None:
    assert nextquill(monkeypatch, "status", "--config", config, "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["stage"] for row in rows] == ["ingest", "model", "score", "train", "train:contextsft", "evaluate"]
    assert {row["state"] for row in rows} == {"missing"}
    assert {"stage", "state", "why", "path", "rows", "bytes", "seconds"} == set(rows[0])
    assert nextquill(monkeypatch, "status", "--config", config) == 0
    assert "missing" in capsys.readouterr().out


def test_path_of_a_missing_artifact_or_stage_is_one_line(monkeypatch: Any, capsys: Any, config: Path) -> None:
    assert "the score artifact is missing" in refused(monkeypatch, capsys, "path", "score", "--config", config)
    assert "no stage 'scone'" in refused(monkeypatch, capsys, "path", "scone", "--config", config)


def test_version(monkeypatch: Any, capsys: Any) -> None:
    assert nextquill(monkeypatch, "--version") == 0
    assert re.fullmatch(r"nextquill \d+\.\d+\.\d+\S*\n", capsys.readouterr().out)


UNUSABLE = {
    "a file": "{tmp}/file",
    "below a file": "{tmp}/file/store",
    "a device": "/dev/null",
    "a file system that takes nothing": "/proc/nextquill",
    "a name that is too long": "{tmp}/" + "x" * 300,
}


@pytest.mark.parametrize("place", UNUSABLE.values(), ids=list(UNUSABLE))
@pytest.mark.parametrize("command", ["run", "ingest", "sample", "export"])
def test_a_folder_that_cannot_be_written_is_one_line(
    monkeypatch: Any, capsys: Any, config: Path, place: str, command: str
) -> None:
    (config.parent / "file").touch()
    place = place.replace("{tmp}", str(config.parent))
    if command == "sample":
        arguments = ["sample", place, "--users", "20"]
    elif command == "export":
        monkeypatch.setattr("nextquill_core.registry.export.trained", lambda *_: _Trained(config.parent))
        arguments = ["export", "--config", str(config), "--to", place]
    else:
        arguments = [command, "--config", str(config), "--store", place]
    said = refused(monkeypatch, capsys, *arguments).removeprefix("nextquill: ")
    assert said.startswith((f"{place}: cannot be written (", f"{place}: there is something already"))
    assert "folder" in said


class _Trained:
    """Stands for a trained adapter; export fails before it reads it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder


@pytest.mark.parametrize("command", ["status", "path"])
def test_commands_that_only_read_need_no_writable_store_but_a_folder(
    monkeypatch: Any, capsys: Any, config: Path, command: str
) -> None:
    (config.parent / "file").touch()
    more = ["score"] if command == "path" else []
    file = config.parent / "file"
    said = refused(monkeypatch, capsys, command, *more, "--config", config, "--store", file)
    assert "cannot be written (it is a file)" in said
    assert nextquill(monkeypatch, "status", "--config", config, "--store", "/proc/nextquill") == 0


@pytest.mark.process
def test_the_first_lines_are_printed_before_heavy_imports(config: Path) -> None:
    """The command is stopped at the point where it would load Prefect."""
    code = (
        "import sys, flows.cli.main, flows.cli.runner\n"
        "def stop(*_, **__):\n"
        "    print([name for name in HEAVY if name in sys.modules], file=sys.stderr)\n"
        "    raise SystemExit(1)\n"
        "HEAVY = ('torch', 'prefect', 'polars', 'transformers', 'numpy', 'pyarrow')\n"
        "flows.cli.runner.server_ready = stop\n"
        f"sys.argv = ['nextquill', 'run', '--config', {str(config)!r}]\n"
        "flows.cli.main.main()"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    environment["PREFECT_HOME"] = str(config.parent / "prefect")
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=REPO)
    assert time.monotonic() - started < 10, "a generous bound for a busy machine; measured: 0.7 s"
    first, template, *stages, server, loaded = done.stderr.splitlines()
    assert first == f"nextquill run: {config}, store {config.parent / 'store'}"
    assert template == "  template: plain, because the offline model is a base model"
    names = ("ingest", "model", "score", "train", "train:contextsft", "evaluate")
    assert [line.split(None, 2) for line in stages] == [
        [f"[{place}/6]", name, "will be made"] for place, name in enumerate(names, 1)
    ]
    assert server.startswith("Prefect: starts a temporary server for this run")
    assert (loaded, done.stdout) == ("[]", "")


def test_the_announcement_names_what_is_up_to_date_what_is_made_and_why(small_world: Path, tmp_path: Path) -> None:
    def lines(force: bool = False, **changes: Any) -> dict[str, str]:
        run = Run(small_config(small_world, tmp_path / "store", **changes))
        found = list(announce.plan_lines("run", "x.yaml", run, announce.STAGES, force=force))
        # After what is run, and the template; the number of a row comes first.
        return dict(line.split(None, 2)[1:] for line in found[2:])

    made = Run(small_config(small_world, tmp_path / "store"))
    make_all(made)
    assert set(lines().values()) == {"up to date, is reused"}
    assert set(lines(force=True).values()) == {"will be made again (--force)"}
    changed = lines(train={"alpha": 0.3})
    assert changed["score"] == changed["train:contextsft"] == "up to date, is reused"
    assert changed["train"] == "will be made again: train.alpha 0.05 → 0.3"
    shutil.rmtree(made.store.folder("model", made.plan.model.fingerprint))  # type: ignore[union-attr]
    gone = lines()
    assert gone["model"] == "will be made"
    assert gone["score"].startswith("will be made again: its input")
    staging = made.store.staging_folder("model", made.plan.model.fingerprint)  # type: ignore[union-attr]
    staging.mkdir()
    assert lines()["model"] == "will be resumed; it had been interrupted"


def test_a_world_that_is_written_first_is_announced_before(tmp_path: Path) -> None:
    folder = tmp_path / "world"
    inputs = [{"category": "C", "synthetic": {"folder": str(folder), "users": 1200}}]
    config = parse_config({"ingest": {"inputs": inputs}}, "the test")
    first, then = announce.unwritten_lines("run", config)
    assert first == f"nextquill run: first writes reviews of 1,200 users of a synthetic world to {folder},"
    assert then == "  then runs ingest, model, score, train and evaluate; the plan follows in seconds"
    folder.mkdir()
    (folder / "reviews.jsonl").touch()
    assert not list(announce.unwritten_lines("run", config))


def test_a_line_is_printed_if_reading_is_slow(monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(announce, "SLOW_AFTER_S", 0.05)
    with announce.notice_if_slow():
        time.sleep(0.3)
    monkeypatch.setattr(announce, "SLOW_AFTER_S", 5.0)
    with announce.notice_if_slow():
        pass
    assert capsys.readouterr().err == f"{announce.READING}\n"


@pytest.mark.parametrize("command", ["score", "train", "evaluate"])
def test_a_stage_without_its_input_is_refused_before_prefect_starts(
    monkeypatch: Any, capsys: Any, config: Path, command: str
) -> None:
    said = refused(monkeypatch, capsys, command, "--config", config)
    assert "the ingest artifact is missing; run `nextquill ingest` with the same config first" in said


@pytest.mark.process
def test_an_unreachable_hub_is_one_line_within_seconds(config: Path) -> None:
    make_all(Run(load_config(config)))  # ingest is up to date, so the model is what a run needs next
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(config.parent / "hf")}
    environment.pop("PREFECT_API_URL", None)
    for override, where in (
        (
            "model.name_or_path=org/name-base",
            "org/name-base: not in the cache, and the hub at http://127.0.0.1:9 cannot be",
        ),
        ("ingest.inputs=[{category: Books}]", "ingest.inputs[].reviews of category Books: cannot fetch raw/review"),
    ):
        command = [sys.executable, "-m", "flows", "run", "--config", str(config), "--set", override]
        started = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=REPO)
        assert time.monotonic() - started < 30, "measured: 2 s; the hub's client alone would retry for 23 s a file"
        assert done.returncode == 2, done.stderr
        assert done.stderr.splitlines()[-1].startswith(f"nextquill: {where}")
        assert "HF_ENDPOINT" in done.stderr
        assert "Traceback" not in done.stderr


def test_sources_methods_and_sample_print_their_lists(monkeypatch: Any, capsys: Any, tmp_path: Path) -> None:
    assert nextquill(monkeypatch, "sources") == 0
    assert capsys.readouterr().out.startswith("amazon-2023  ")
    assert nextquill(monkeypatch, "methods") == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(METHODS)
    assert nextquill(monkeypatch, "models") == 0
    named = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert named == ["tiny", "smollm2", "FOLDER", "FILE.gguf", "OWNER/NAME", "base", "minilm", "FOLDER", "OWNER/NAME"]
    assert nextquill(monkeypatch, "sample", tmp_path / "s", "--users", 20, "--seed", 3) == 0
    assert (tmp_path / "s" / "reviews.jsonl").is_file()


def test_help_groups_the_commands(monkeypatch: Any, capsys: Any) -> None:
    assert nextquill(monkeypatch, "--help") == 0
    shown = capsys.readouterr().out
    at = [shown.index(f"{panel} ──") for panel in Panel]
    assert at == sorted(at), "the panels come in the order of their declaration"
    assert "─ Commands ─" not in shown, "every command has a panel"
    assert at[2] < shown.index("│ verify ") < at[3]


@pytest.mark.process
def test_help_answers_within_a_second_without_heavy_imports() -> None:
    code = (
        "import sys, flows.cli.main; sys.argv = ['nextquill', '--help']\n"
        "try: flows.cli.main.main()\nexcept SystemExit: pass\n"
        "print([name for name in ('torch', 'prefect', 'polars', 'transformers') if name in sys.modules])"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "Personalised language models" in done.stdout
    assert time.monotonic() - started < 10, "a generous bound for a busy machine; measured: half a second"
