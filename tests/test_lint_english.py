"""The lint of docstrings and prose finds what it is for, and a misspelt path."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.lint_english import main


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('"""a small letter."""', "1: the docstring begins with a small letter"),
        ('"""No end"""', "1: the first sentence of the docstring has no end"),
        (f"# made {'an' + 'ew'}", "1: say 'again' instead of"),
        ('def f(a, b, c):\n    """Return it.\n\n    Args:\n        a: A.\n    """', "does not describe b, c"),
    ],
)
def test_a_fault_is_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, fault: str) -> None:
    file = tmp_path / "module.py"
    file.write_text(text)
    assert main([str(tmp_path)]) == 1
    assert f"{file}:" in (said := capsys.readouterr().out)
    assert fault in said


def test_a_path_that_does_not_exist_is_a_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "modul.py")]) == 1
    assert "there is no such file or folder" in capsys.readouterr().out
