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
    value = r"(?:\*\*)?[+−][\d.]+(?:\*\*)? \[[^\]]+\]"
    in_table, in_text = re.findall(rf"\| {value}", section), re.findall(rf"[^|] ({value})", " ".join(section.split()))
    assert (len(in_table), len(in_text)) == (6, 5)
    page = (DOCS / "RESULTS.md").read_text()
    assert all(quoted in page for quoted in in_table)
    assert all(f"({quoted} nats a token" in page for quoted in in_text)
