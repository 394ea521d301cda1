"""`nextquill status` answers at once, because it loads no library that makes artifacts; no table is cut."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from rich.text import Text

from flows.cli.options import PIPE_WIDTH
from flows.cli.status import fitting_tables, results_table, status_lines
from nextquill_core.config import load_config
from nextquill_core.pipeline.run import Run
from tests.conftest import REPO
from tests.flows.cli.test_main import nextquill
from tests.nextquill_core.analysis.rows import row
from tests.nextquill_core.pipeline.test_plan import make_all
from tests.world import small_settings, write_config

HEAVY = ("matplotlib", "numpy", "polars", "prefect", "pyarrow", "torch", "transformers")


@pytest.mark.process
@pytest.mark.parametrize("options", [[], ["--json"], ["--all"], ["--all", "--json"], ["--set", "seed=7"]], ids=str)
def test_status_imports_no_heavy_library(config: Path, options: list[str]) -> None:
    make_all(Run(load_config(config, [])))
    command = ["nextquill", "status", "--config", str(config), *options]
    code = (
        f"import sys, flows.cli.main; sys.argv = {command!r}\n"
        "try: flows.cli.main.main()\nexcept SystemExit as end: assert not end.code\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPO, check=True)
    assert done.stderr.splitlines()[-1] == "[]"
    assert "evaluate" in done.stdout
    if "--json" in options:
        assert {row["state"] for row in json.loads(done.stdout)} <= {"fresh", "complete"}


PATH = "/data/" + "long/" * 30 + "store/ingest/0123456789abcdef"
WHY = "train.learning_rate 5e-06 → 0.0005; train.epochs 5 → 1; weights.delta 0.05 → 0.1; and 4 more"
ROWS: list[dict[str, Any]] = [
    {"stage": "ingest", "state": "fresh", "why": "", "path": PATH, "rows": 4626, "bytes": 12_345, "seconds": 1234.5},
    {"stage": "train:contextsft", "state": "stale", "why": WHY, "path": PATH, "rows": None, "bytes": None,
     "seconds": None},
    {"stage": "evaluate", "state": "interrupted", "why": "stopped; resumes", "path": PATH, "rows": None, "bytes": None,
     "seconds": None},
]  # fmt: skip


@pytest.mark.parametrize("width", [40, 80, 120, PIPE_WIDTH])
def test_status_folds_the_reason_and_never_a_path(width: int) -> None:
    lines = [line.plain for line in status_lines(ROWS, width)]
    assert sum(PATH in line for line in lines) == 1
    assert all(line == line.rstrip() for line in lines)
    assert " ".join(" ".join(lines).split()).count("weights.delta") == 1
    folded = [line for line in lines if PATH not in line]
    assert max(map(len, folded)) <= max(width, 78), (
        "78: the columns before the reason, and the smallest width of the reason"
    )
    if width == PIPE_WIDTH:
        assert len(lines) == 1 + len(ROWS)
        assert lines[1].split() == ["ingest", "fresh", "4,626", "12.3", "kB", "1,234.5", PATH]
        assert lines[2].endswith(WHY)


def test_status_in_a_pipe_has_one_row_per_stage(
    monkeypatch: Any, capsys: Any, small_world: Path, tmp_path: Path
) -> None:
    store = tmp_path / ("deep/" * 20 + "store")
    config = write_config(tmp_path / "config.yaml", small_settings(small_world, store))
    make_all(Run(load_config(config, [])))
    assert nextquill(monkeypatch, "status", config) == 0
    heading, *rows = capsys.readouterr().out.splitlines()
    assert heading.split() == ["stage", "state", "rows", "size", "seconds", "path", "/", "why"]
    assert len(rows) == 6
    assert all(Path(row.split()[-1]).is_dir() for row in rows)


HEADINGS = ("method", "Log-likelihood", "Log-likelihood of preference tokens", "ROUGE-1", "METEOR", "BLEU", "Length")


@pytest.mark.parametrize("width", [60, 80, 110, PIPE_WIDTH])
def test_no_heading_or_value_of_a_table_is_cut(width: int) -> None:
    lines = [[Text(f"method-{row}"), *(Text(f"{row}.{column:03} [0.1, 0.2]") for column in range(1, 7))]
             for row in range(3)]  # fmt: skip
    console = Console(width=width, file=io.StringIO(), color_system=None)
    tables = list(fitting_tables("Title", HEADINGS, lines, width))
    for table in tables:
        console.print(table)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in shown
    for text in (*HEADINGS[1:], *(cell.plain for line in lines for cell in line[1:])):
        assert shown.count(text) >= 1, text
    assert shown.count("method-0") == len(tables)
    assert max(len(line) for line in shown.splitlines()) <= width
    assert (len(tables) == 1) is (width == PIPE_WIDTH)


@pytest.fixture
def evaluation(tmp_path: Path) -> Any:
    """Stands for the artifact of an evaluation with two presets, a stranger control and a ground truth."""
    rows = [
        row(method, metric, value, "Demo", decoding, n=120)
        for decoding in ("paper", "sane")
        for method, gain in (("latestk", 0.02), ("nextquill", 0.05))
        for metric, value in (
            ("personal_gain", gain), ("history_gain", 2 * gain), ("log_likelihood", -1.5), ("rouge1", 0.4),
            ("meteor", 0.3), ("rouge1_cut", 0.4),
        )
    ]  # fmt: skip
    empty = dict.fromkeys(("pearson", "auc", "slope", "own_style", "stranger_style"))
    truth = [
        {"method": "qwen", **empty},
        {"method": "nextquill", "pearson": 0.5312, "auc": 0.8, "slope": 0.9, "own_style": 0.71, "stranger_style": 0.2},
        {"method": "a perfect reader", **empty, "pearson": 0.94, "auc": 0.97, "slope": 1.0},
    ]
    verdict = ["For these 120 users, nothing is shown."]
    document = {"settings": {}, "rows": rows, "comparisons": [], "cautions": ["read with care."], "verdict": verdict}
    (tmp_path / "metrics.json").write_text(json.dumps(document))
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    return SimpleNamespace(folder=tmp_path)


def printed(evaluation: Any, width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    for table in results_table(evaluation, width=width):
        console.print(table)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


def test_results_begin_with_verdict_intervals_histories_and_truth(evaluation: Any) -> None:
    lines = printed(evaluation, 80)
    assert max(map(len, lines)) <= 80
    assert lines[0] == "For these 120 users, nothing is shown."
    assert lines[1] == "Demo, sane decoding, n = 120, with 95 % intervals over users"
    cells = [line.split() for line in lines]
    assert cells[4][:4] == ["nextquill", "0.0500", "[0.0400,", "0.0600]"], "the personal gain with its interval"
    # Own −1.5 and a gain of 0.05 over a stranger's and of 0.1 over none: −1.55 and −1.6.
    assert ["nextquill", "−1.5000", "−1.5500", "−1.6000", "+0.0500"] in cells
    assert ["nextquill", "0.53", "0.80", "0.90", "0.71", "0.20"] in cells
    assert ["a", "perfect", "reader", "0.94", "0.97", "1.00", "–", "–"] in cells
    assert not any(line.startswith("qwen") for line in lines), "nothing is known of it here"
    assert "The report has all tables:" in lines
    assert "  Demo, paper decoding, n = 120" in lines
    assert lines[-1] == "Note: read with care."


def test_where_there_is_room_all_tables_follow(evaluation: Any) -> None:
    lines = printed(evaluation, PIPE_WIDTH)
    titles = [
        "Demo, sane decoding, n = 120, with 95 % intervals over users",
        "Demo, gain by history in nats a token, n = 120",
        "Demo, sane decoding, n = 120",
        "Demo, paper decoding, n = 120",
    ]
    places = [lines.index(title) for title in titles]
    assert places == sorted(places)
    (evaluation.folder / "truth.json").unlink()
    assert len(printed(evaluation, PIPE_WIDTH)) < len(lines), "other data have no truth"
