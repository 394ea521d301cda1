"""Dirty rows of every kind are there, and malformed lines are few."""

from __future__ import annotations

import orjson

from nextquill_core.synthetic import SampleSummary
from tests.nextquill_core.ingest.reference import describe
from tests.nextquill_core.synthetic.test_sample import read


def test_dirt_is_there_and_malformed_lines_are_few(sample: SampleSummary) -> None:
    reviews, bad = read(sample.folder / "reviews.jsonl")
    items, bad_items = read(sample.folder / "items.jsonl")
    assert bad_items == 0
    assert bad == sample.malformed_lines
    assert 0 < bad < 0.005 * sample.review_rows
    assert len(reviews) + bad == sample.review_rows
    assert len(items) == sample.item_rows
    assert all(count > 0 for count in sample.dirt.values())
    assert any(row["rating"] == 0 for row in reviews)
    assert any(len(row["text"]) < 200 for row in reviews)
    assert any("<br />" in row["text"] for row in reviews)
    assert len({orjson.dumps(row) for row in reviews}) < len(reviews)
    assert any(item["description"] == [] for item in items)
    assert any(item["description"][:1] == ["Product Description"] for item in items)
    usable = [item for item in items if len(describe(item)) >= 100]
    assert len(usable) >= sample.items
    assert max(len(describe(item)) for item in usable) <= 300
