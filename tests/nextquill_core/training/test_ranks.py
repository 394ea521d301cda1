"""Writing by rank 0: failures are reported, and folders are complete or unchanged."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from nextquill_core.errors import UserError
from nextquill_core.training.ranks import Writer, whole_folder


def test_what_the_disk_refuses_is_told_and_the_reserve_given_back(alone: None, tmp_path: Path) -> None:
    writer = Writer(tmp_path, "cpu")
    writer.reserve()
    writer.resumes_at = 7

    def refused() -> None:
        raise OSError(errno.EDQUOT, "as a file system says it")

    assert (tmp_path / "scratch" / "reserve").stat().st_size > 100_000
    with pytest.raises(UserError, match=r"cannot write it, which needs 2.5 MB: .*quota exceeded; .* after step 7$"):
        writer(refused, "it", 2_500_000)
    assert not (tmp_path / "scratch" / "reserve").exists()
    assert [writer(action, "it") for action in (lambda: True, lambda: False)] == [True, False]


def test_a_folder_is_there_whole_or_as_it_was(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "it") as folder:
        (folder / "file").write_text("first")
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "it") as folder:
        (folder / "file").write_text("second")
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["it"]
    assert (tmp_path / "it" / "file").read_text() == "first"
