"""Names of plugins: what is built in comes first, what is unknown is suggested."""

from __future__ import annotations

import pytest

from nextquill_core.errors import DataError, UserError
from nextquill_core.plugins import Plugins, suggestion

KINDS = Plugins[int]("number", "nextquill.tests.none", "some.key", {"one": 1, "two": 2}, DataError)


def test_a_built_in_is_found_by_its_name() -> None:
    assert KINDS.load("two") == 2
    assert KINDS.added() == {}


def test_an_unknown_name_is_told_with_the_nearest() -> None:
    with pytest.raises(DataError, match=r"unknown number `tow`.*did you mean `two`\?") as fault:
        KINDS.load("tow")
    assert isinstance(fault.value, UserError)
    assert suggestion("zzz", ["one", "two"]) == "one of: one, two"
