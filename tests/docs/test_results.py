"""The page of results is that of the numbers beside it, and the README quotes it."""

from __future__ import annotations

import json
import re

from nextquill_core.analysis.results_page import render
from tests.conftest import REPO

DOCS = REPO / "docs"


def test_the_page_follows_from_the_numbers() -> None:
    assert render(json.loads((DOCS / "results.json").read_bytes()), "images") == (DOCS / "RESULTS.md").read_text()


def test_the_readme_quotes_the_page() -> None:
    _, _, section = (REPO / "README.md").read_text().partition("## On real reviews\n")
    quoted = re.findall(r"(?:\*\*)?[+−][\d.]+(?:\*\*)? \[[^\]]+\]", section)
    assert len(quoted) == 6
    page = (DOCS / "RESULTS.md").read_text()
    for value in quoted:
        assert f"| {value}" in page
