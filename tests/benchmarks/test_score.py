"""The benchmarks of models run each side in a separate process, at a size too small for speed."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.score import main, read_pairs, run_side
from nextquill_core.tokens import TokenPair

PAIRS = [TokenPair(str(number), list(range(40 + number)), list(range(20)), [1, 2, 3]) for number in range(2)]


def test_missing_files_are_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["score", "--reviews", "reviews.jsonl"])
    with pytest.raises(SystemExit) as ended:
        next(main())
    assert ended.value.code == 2
    assert "name the files of a category with --reviews and --items" in capsys.readouterr().err


@pytest.mark.process
@pytest.mark.parametrize(
    ("module", "side", "measurements"),
    [
        ("benchmarks.score", "ours", {"an_example", "extra_gb"}),
        ("benchmarks.generate", "ours", {"seconds", "extra_gb", "answers"}),
        ("benchmarks.train", "contextsft", {"seconds", "extra_gb", "peak_gb"}),
    ],
)
def test_a_side_runs_in_a_separate_process(module: str, side: str, measurements: set[str], tmp_path: Path) -> None:
    result = run_side(module, side, "proportional", PAIRS, tmp_path)
    assert result.keys() == measurements
    assert result.get("seconds", result.get("an_example")) > 0
    assert [len(answer) for answer in result.get("answers", [])] in ([], [3, 3]), "as long as the true reviews"
    assert read_pairs(tmp_path / "pairs.json") == PAIRS
