from __future__ import annotations

import re
import sys

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextquill_core.ingest.clean import cleaned, joined
from tests.nextquill_core.ingest.reference import describe


def python_cleaned(text: str) -> str:
    return re.sub(r"\s+", " ", text.strip())


def test_every_character_is_treated_as_python_does() -> None:
    characters = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
    found = pl.DataFrame({"text": characters}).select(cleaned("a" + pl.col("text") + "b")).to_series().to_list()
    assert found == ["a b" if c.isspace() else f"a{c}b" for c in characters]
    spaces = [c for c in characters if c.isspace()]
    assert [c for c in spaces if python_cleaned(f"{c}a{c}") != "a"] == []


@given(st.lists(st.text(st.sampled_from("ab \t\n\r\x0b\x0c\x1c\x1f\x85\xa0\u2028\u3000\u200b\ufeff")), min_size=1))
def test_runs_of_white_space_become_one_blank(texts: list[str]) -> None:
    found = pl.DataFrame({"text": texts}).select(cleaned(pl.col("text")))["text"].to_list()
    assert found == [python_cleaned(text) for text in texts]


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        (None, ""),
        ([], ""),
        (["a"], "a"),
        (["a", "", "b"], "a  b"),
        (["Product Description"], ""),
        (["Product Description", "a", "b"], "a b"),
        (["Product Description", "Product Description"], "Product Description"),
        (["Product Description ", "a"], "Product Description  a"),
        (["a", "Product Description"], "a Product Description"),
    ],
)
def test_a_description_is_its_parts_without_the_heading(parts: list[str] | None, text: str) -> None:
    frame = pl.DataFrame({"description": [parts]}, schema={"description": pl.List(pl.String)})
    assert frame.select(joined(pl.col("description"))).item() == text == describe({"description": parts})
