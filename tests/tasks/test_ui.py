"""What the UI shows: keys of artifacts, a history for each data."""

from __future__ import annotations

import re

import pytest

from nextquill_core.config import Config, parse_config
from tasks.ui import data_key


def config(*categories: str) -> Config:
    return parse_config({"ingest": {"inputs": [{"category": name} for name in categories]}}, "the test")


def test_a_key_names_its_categories() -> None:
    assert data_key("report", config("Digital_Music")) == "report-digital-music"
    assert data_key("why-train", config("Books", "CDs_and_Vinyl")) == "why-train-books-cds-and-vinyl"


def test_runs_on_other_data_have_other_keys() -> None:
    long = ["ABCDEFGH" * 4 + str(number) for number in range(4)]
    others = [("Books",), ("Books", "Games"), ("書籍",), ("書",), ("日本 Books",), long[:3], long]
    keys = {data_key("report", config(*names)) for names in others}
    assert len(keys) == len(others)


@pytest.mark.parametrize("name", ["Books", "書籍", "a b & c", "Ä", "x" * 300, "-_-"])
def test_prefect_takes_every_key(name: str) -> None:
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", data_key("report", config(name)))
