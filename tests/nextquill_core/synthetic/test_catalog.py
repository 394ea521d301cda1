"""Books: all titles and identifiers differ, and descriptions show the words that reviews may mention."""

from __future__ import annotations

import numpy as np

from nextquill_core.synthetic import lexicon
from nextquill_core.synthetic.catalog import item_row, make_catalog


def test_titles_and_identifiers_differ_also_when_the_names_run_out() -> None:
    names = len(lexicon.TITLE_WORDS) * len(lexicon.ITEM_WORDS["setting"]) * 3
    items = make_catalog(names, np.random.default_rng(0))
    assert len({item.title for item in items}) == len({item.asin for item in items}) == names
    assert any(item.title.endswith(", Book 2") for item in items)


def test_an_item_shows_its_words_in_a_description_of_usable_length() -> None:
    rng = np.random.default_rng(1)
    for item in make_catalog(200, rng):
        row = item_row(item, 0, rng)
        text = " ".join(row["description"])
        assert 100 <= len(" ".join(item.description)) <= 300
        assert all(item.words[kind] in text for kind in ("genre", "hero", "setting", "quest"))
        assert row["rating_number"] == 1  # a usable item has a rating
        assert row["parent_asin"] == item.asin
