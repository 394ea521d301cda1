"""Names of plugins: what is built in comes first, what is unknown is suggested."""

from __future__ import annotations

from pathlib import Path

import pytest

from nextquill_core.errors import DataError, UserError
from nextquill_core.plugins import Plugins, suggestion
from tests.plugins import add_package

KINDS = Plugins[int]("number", "nextquill.tests.none", "some.key", {"one": 1, "two": 2}, DataError)


def test_a_built_in_is_found_by_its_name() -> None:
    assert KINDS.load("two") == 2
    assert KINDS.added() == {}


def test_an_unknown_name_is_told_with_the_nearest() -> None:
    with pytest.raises(DataError, match=r"unknown number `tow`.*did you mean `two`\?") as fault:
        KINDS.load("tow")
    assert isinstance(fault.value, UserError)
    assert suggestion("zzz", ["one", "two"]) == "one of: one, two"


def test_a_name_that_two_packages_add_is_refused_with_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("first_numbers", "other_numbers"):
        points = {"three": f"{module}:three", f"of_{module}": f"{module}:three"}
        add_package(tmp_path / module, monkeypatch, module, "three = 3\n", "nextquill.tests.none", points)
    with pytest.raises(DataError, match=r"several packages add a number `three`: .*first_numbers 1\.0.*; uninstall"):
        KINDS.load("three")
    rows, (broken,) = KINDS.listed(str)
    assert set(rows) == {"one", "two", "of_first_numbers", "of_other_numbers"}
    assert "other_numbers 1.0 and first_numbers 1.0" in broken
