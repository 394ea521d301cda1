"""The command `compare`: a configuration and a store, the page, invalid names, and stores that stay as they are."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from flows.cli.compare import comparison_lines
from nextquill_core.analysis.comparison_page import ComparedRun, Comparison, Overlap, ValueDifference
from nextquill_core.evaluation.metrics import LIKELIHOOD
from nextquill_core.pipeline.run import Run
from storage import Staging
from tests.evaluations import commit_evaluation, likelihoods, write_evaluation
from tests.flows.cli.test_main import nextquill, refused
from tests.nextquill_core.pipeline.test_plan import make_all
from tests.world import small_config, small_settings, write_config

IDS = [f"Small:u{number}:0" for number in range(6)]


def scores(first: float) -> dict[tuple[str, str], dict[str, Any]]:
    texts = {"rouge1": [first, 0.2, 0.3, 0.4, 0.5, 0.6]}
    return {("nextquill", "sane"): texts | {LIKELIHOOD: likelihoods([-1, -2, -3, -4, -5, -6], [2] * 6)}}


@pytest.fixture
def config(small_world: Path, tmp_path: Path) -> Path:
    """A configuration whose evaluation is in its store, with numbers made by hand."""
    run = Run(small_config(small_world, tmp_path / "store"))
    make_all(run)

    def build(staging: Staging) -> dict[str, int]:
        write_evaluation(staging, scores(0.1), IDS)
        return {}

    run.make(run.plan.evaluate, build, force=True)
    return write_config(tmp_path / "config.yaml", small_settings(small_world, tmp_path / "store"))


def state_of(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.lstat().st_mtime_ns, path.lstat().st_size) for path in folder.rglob("*")}


def test_a_configuration_and_a_store_are_compared(
    monkeypatch: Any, capsys: Any, config: Path, small_world: Path, tmp_path: Path
) -> None:
    settings = small_config(small_world, tmp_path / "other", train={"alpha": 0.5}).model_dump(mode="json")
    commit_evaluation(tmp_path / "other", scores(0.7), [*IDS[:5], "Small:u9:0"], config=settings)
    before = state_of(tmp_path)
    page = tmp_path.parent / f"{tmp_path.name}.html"
    assert nextquill(monkeypatch, "compare", config, tmp_path / "other", "--html", page) == 0
    assert state_of(tmp_path) == before
    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines()]
    assert ["train.alpha", "0.05", "0.5"] in lines
    assert out.index("Settings that decide results") < out.index("Operational settings") < out.index("store  ")
    assert ["ROUGE-1", "nextquill", "0.3000", "0.4200", "+0.1200"] in [line[:5] for line in lines]
    assert "5 examples of 5 users match; 1 are only in A and 1 only in B." in out
    assert f"page: {page}" in out
    assert "train.alpha" in page.read_text(encoding="utf-8")


def test_the_store_option_replaces_a_configurations(
    monkeypatch: Any, capsys: Any, config: Path, tmp_path: Path
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("typer.launch", opened.append)
    assert nextquill(monkeypatch, "compare", config, config, "--store", tmp_path / "store", "--open") == 0
    out = capsys.readouterr().out
    assert "No setting differs." in out
    assert "Both have the same content" in out
    assert opened == [Path(out.splitlines()[-1].removeprefix("page: ")).as_uri()]
    said = refused(monkeypatch, capsys, "compare", config, config, "--store", tmp_path / "none")
    assert "the evaluate artifact is missing" in said


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.yaml", "nowhere.yaml: no such store, evaluation or config; "),
        ("0123456789", "no evaluation 0123456789; name one of "),
        ("s3://", "s3://"),
        ("{tmp}/config.yml", "did you mean {tmp}/config.yaml?"),
        ("{tmp}/store/train", "this store has no evaluation"),
    ],
)
def test_invalid_names_are_one_line(
    monkeypatch: Any, capsys: Any, config: Path, tmp_path: Path, name: str, message: str
) -> None:
    said = refused(monkeypatch, capsys, "compare", tmp_path / "store", name.replace("{tmp}", str(tmp_path)))
    assert message.replace("{tmp}", str(tmp_path)) in said


def test_a_page_that_cannot_be_written_is_one_line(monkeypatch: Any, capsys: Any, config: Path, tmp_path: Path) -> None:
    store, file = tmp_path / "store", tmp_path / "file"
    file.touch()
    assert nextquill(monkeypatch, "compare", store, store, "--html", file / "page.html") == 2
    assert "name a file that you can write to" in capsys.readouterr().err


@pytest.mark.parametrize("width", [60, 80, 200])
def test_no_value_is_cut_and_no_control_character_reaches_the_terminal(width: int) -> None:
    evil = "\x1b]0;title\x07[bold]x"
    run = ComparedRun(evil, evil, evil, evil, evil, 3)
    difference = ValueDifference("a.long.dotted.key", evil, "a value of many words " * 9)
    row: dict[str, Any] = {"method": evil, "category": evil, "decoding": evil, "metric": "rouge1", "untested": ""}
    row |= {"value_a": 0.1, "value_b": 0.2, "difference": 0.1, "ci_low": -0.1, "ci_high": 0.3, "win_rate": 0.5}
    row |= {"n_a": 3, "n_b": 3, "p_value": 0.01, "p_adjusted": 0.02}
    found = Comparison(run, run, [difference], [], [], Overlap(3, 3, 0, 0), [row], [evil])
    output = io.StringIO()
    terminal = Console(file=output, width=width)
    for part in comparison_lines(found, width=width):
        terminal.print(part, highlight=False, markup=False)
    text = output.getvalue()
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "[bold]x" in text
    assert "[−0.1000, +0.3000]" in text
    assert "p = 0.020 ▲" in text
    assert "…" not in text
