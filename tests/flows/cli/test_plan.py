"""What `nextquill plan` prints, and that it writes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flows.cli.plan import duration, parameters
from tests.conftest import REPO
from tests.flows.cli.test_main import nextquill, refused

BOOKS = REPO / "configs" / "books.yaml"


@pytest.fixture(autouse=True)
def offline(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)


def test_the_plan_of_the_papers_books_names_steps_sizes_hours_disk_and_money(
    monkeypatch: Any, capsys: Any, tmp_path: Path
) -> None:
    assert nextquill(monkeypatch, "plan", "--config", BOOKS) == 0
    text = capsys.readouterr().out
    assert "2,536 train, 317 val, 317 test, of 317 users (the paper, and the data set's page)" in text
    assert "model: Qwen/Qwen2.5-3B, 3.09 billion parameters, bfloat16" in text
    rows = {line.split("  ")[0]: line for line in text.splitlines()}
    for row in ("ingest", "score", "train", "summaries", "personal adapters", "texts", "likelihoods", "all"):
        assert row in rows
    assert "7 of 7" in rows["train"]
    assert "the prices are the settings prices.a100, prices.h100 and prices.h200" in text
    assert "rates of A100, H100, H200: scoring scaled from a CPU" in text
    assert "download: raw files of Books, about 32.8 GB" in text
    assert not list(tmp_path.iterdir())


def test_the_plan_is_json_for_scripts(monkeypatch: Any, capsys: Any) -> None:
    price = ["--set", "prices.h200=0"]
    assert nextquill(monkeypatch, "plan", "--config", BOOKS, "--json", *price) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["sizes"]["examples"] == {"train": 2536, "val": 317, "test": 317}
    assert found["hours"].keys() == {"A100", "H100", "H200"}
    assert found["dollars"]["H200"] == 0 < found["dollars"]["H100"]
    for card, hours in found["hours"].items():
        assert sum(step["seconds"][card] for step in found["steps"]) / 3600 == pytest.approx(hours, abs=0.01)
        assert found["hours_at_most"][card] > hours


def test_a_measured_card_is_named_as_measured(monkeypatch: Any, capsys: Any, tmp_path: Path) -> None:
    line = {"stage": "train", "chip": "NVIDIA H200", "share_of_data_sheet": 0.5}
    (tmp_path / "rates.jsonl").write_text(json.dumps(line) + "\n")
    assert nextquill(monkeypatch, "plan", "--config", BOOKS, "--rates", "rates.jsonl") == 0
    text = capsys.readouterr().out
    assert "training measured (0.50 of the data sheet)" in text
    assert "training scaled from the H200 by the data sheets (0.50 of both)" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rates", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--set", "model.name_or_path=org/unknown"], "its config.json is not on this machine"),
        (["--set", "ingest.protocol.n_targets=4"], "or give a guess: --users N"),
    ],
)
def test_what_cannot_be_planned_is_one_line_and_exit_code_2(
    monkeypatch: Any, capsys: Any, arguments: list[str], message: str
) -> None:
    assert message in refused(monkeypatch, capsys, "plan", "--config", BOOKS, *arguments)


def test_a_category_on_this_machine_is_planned_with_a_guess(
    monkeypatch: Any, capsys: Any, config: Path, tmp_path: Path
) -> None:
    assert nextquill(monkeypatch, "plan", str(config), "--users", "50") == 0
    text = capsys.readouterr().out
    assert "100 train, 50 val, 50 test, of 50 users (--users)" in text
    assert not list((tmp_path / "store").glob("[!.]*"))


CONFIGS = sorted(path.relative_to(REPO).as_posix() for path in (REPO / "configs").rglob("*.yaml"))
OF_A_MACHINE = ("sources/", "small.yaml", "real.yaml")
"""Configurations of files or packages that only some machines have."""


@pytest.mark.parametrize("name", CONFIGS)
def test_every_file_of_the_folder_is_planned_or_refused_in_one_line(
    name: str, monkeypatch: Any, capsys: Any, caplog: Any
) -> None:
    preset = name.startswith("configs/presets/")
    named = ["--config", BOOKS, "--preset", REPO / name] if preset else ["--config", REPO / name]
    code = nextquill(monkeypatch, "plan", *named)
    printed = capsys.readouterr()
    if name.startswith("configs/studies/"):
        assert code == 2
        assert "this is a study, not a configuration; run it with `nextquill study --config " in printed.err
    elif code == 0:
        assert f"nextquill plan: {named[1]}" in printed.out
        assert not {"nan", "inf", "0.00 billion"} & set(printed.out.split())
        assert "\nall  " in printed.out
    else:
        assert code == 2
        assert any(part in name for part in OF_A_MACHINE), printed.err
    assert printed.err.count("\n") == (code == 2)
    assert "Traceback" not in printed.err + caplog.text


@pytest.mark.parametrize(
    ("count", "text"),
    [(3.09e9, "3.09 billion"), (1.34e8, "0.13 billion"), (99e6, "99.00 million"), (4e5, "0.40 million")],
)
def test_numbers_of_parameters_are_in_words(count: float, text: str) -> None:
    assert parameters(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, ""), (0.4, "< 1 s"), (89, "89 s"), (90, "2 min"), (5399, "90 min"), (5400, "1.5 h"), (3.6e6, "1,000.0 h")],
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text
