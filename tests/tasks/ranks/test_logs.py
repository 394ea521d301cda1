"""A log keeps its beginning and its end, and its writer goes on where it was cut."""

from __future__ import annotations

from pathlib import Path

from tasks.ranks.logs import bounded


def test_a_long_log_loses_its_middle(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    lines = [b"line %05d\n" % number for number in range(1000)]  # 11 bytes each
    with log.open("ab", buffering=0) as writer:
        writer.write(b"".join(lines))
        bounded(log, 11_000)
        assert log.stat().st_size == 11_000, "not longer than the limit, so nothing was cut"
        bounded(log, 4_400)
        # A quarter of the limit is 1,100 bytes: 100 whole lines at the beginning. The end begins at the start of a
        # line, and the first line break in it is looked for, so 99 lines stay.
        assert log.read_bytes() == b"".join(lines[:100]) + b"\n[... 8811 bytes left out ...]\n" + b"".join(lines[-99:])
        writer.write(b"the end\n")
    assert log.read_bytes().endswith(lines[-1] + b"the end\n")


def test_no_log_and_one_endless_line(tmp_path: Path) -> None:
    bounded(tmp_path / "none.log", 10)
    assert not (tmp_path / "none.log").exists()
    log = tmp_path / "bar.log"
    log.write_bytes(b"#" * 100)
    bounded(log, 40)
    assert log.read_bytes() == b"#" * 10 + b"\n[... 80 bytes left out ...]\n" + b"#" * 10
