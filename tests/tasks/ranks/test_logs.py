"""Log files of other processes: new lines are read once, and a long log loses its middle only."""

from __future__ import annotations

import json
from pathlib import Path

from nextquill_core.training.curves import append, cut
from tasks.ranks.logs import LineReader, last_lines, limit_size


def steps(reader: LineReader) -> list[int]:
    """Return the steps in the metrics lines that were appended since the last call."""
    return [json.loads(line)["step"] for line in reader.read()]


def test_complete_lines_are_read_once_and_a_file_that_shrinks_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    reader = LineReader(path)
    assert steps(reader) == []
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert steps(reader) == [1, 2]
    with path.open("a") as file:
        file.write('ep": 3}\n')
    assert steps(reader) == [3]
    assert steps(reader) == []
    path.write_text('{"step": 1}\n{"step": 2}')
    assert steps(reader) == [1]
    assert list(reader.read(ended=True)) == [b'{"step": 2}']


def test_a_file_that_was_cut_back_and_has_grown_between_two_reads_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append(path, {"step": 1})
    append(path, {"step": 2})
    reader = LineReader(path)
    assert steps(reader) == [1, 2]
    cut(path, 1)
    append(path, {"step": 2, "loss": 0.5})
    assert steps(reader) == [1, 2]


def test_a_long_log_loses_its_middle(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    lines = [b"line %05d\n" % number for number in range(1000)]  # 11 bytes each
    with log.open("ab", buffering=0) as writer:
        writer.write(b"".join(lines))
        limit_size(log, 11_000)
        assert log.stat().st_size == 11_000, "not longer than the limit, so nothing was cut"
        limit_size(log, 4_400)
        # A quarter of the limit is 1,100 bytes: 100 whole lines at the beginning. The end begins at the start of a
        # line, and the first line break in it is looked for, so 99 lines stay.
        assert log.read_bytes() == b"".join(lines[:100]) + b"\n[... 8811 bytes left out ...]\n" + b"".join(lines[-99:])
        writer.write(b"the end\n")
    assert log.read_bytes().endswith(lines[-1] + b"the end\n")
    assert last_lines(log, 2) == ["line 00999\n", "the end\n"]


def test_a_missing_log_and_a_log_of_one_endless_line(tmp_path: Path) -> None:
    limit_size(tmp_path / "none.log", 10)
    assert last_lines(tmp_path / "none.log", 10) == []
    assert not (tmp_path / "none.log").exists()
    log = tmp_path / "bar.log"
    log.write_bytes(b"#" * 100)
    limit_size(log, 40)
    assert log.read_bytes() == b"#" * 10 + b"\n[... 80 bytes left out ...]\n" + b"#" * 10
