"""Every row of the changelog names tests that exist."""

from __future__ import annotations

import re

from tests.conftest import REPO

NAMED = re.compile(r"`(?P<file>tests/[\w/.]+\.py)?::(?P<test>\w+)`")


def test_the_tests_that_the_changelog_names_exist() -> None:
    file = ""
    named = list(NAMED.finditer((REPO / "CHANGELOG.md").read_text(encoding="utf-8")))
    assert len(named) > 50
    for match in named:
        file = match["file"] or file
        text = (REPO / file).read_text(encoding="utf-8")
        assert f"def {match['test']}(" in text, f"CHANGELOG.md names {file}::{match['test']}"
