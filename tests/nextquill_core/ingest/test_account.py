"""Rows read = rows kept + rows dropped, by reason."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from nextquill_core.config import IngestConfig, ProtocolConfig
from nextquill_core.ingest.account import Account, CategoryAccount, stats
from tests.nextquill_core.ingest.world import SMALL, World, item, plain_category, review, trained, trained_items


def test_each_row_that_goes_is_counted_under_its_first_reason(tmp_path: Path) -> None:
    reviews, items = plain_category()
    reviews += [
        review("u0", "i0", 1, ""),
        review("u0", "i0", 1, "ab"),
        review("u0", "i0", 1, "long enough", rating=0.0),
        review("u0", "i0", 1, "long enough", rating=None),
        review("u0", "i0", 1, "long enough", title=""),
        review("u0", "i0", 0, "long enough"),
        review("u0", "nowhere", 1, "long enough"),
        review("u0", "short", 1, "long enough"),
        review("u9", "i0", 1, "long enough"),
        review("u0", "i0", 1, "the oldest of two"),
    ]
    items = [row | {"description": ["described"]} for row in items]
    items += [
        item("short", description=["d"]),
        item("long", description=["d" * 51]),
        item("a", description=["described"], title=None),
        item("b", description=["described"], categories=[]),
        item("c", description=["described"], rating_number=None),
        item("d", description=["described"]),
    ]
    found = World(tmp_path).ingest(reviews, items, min_text_chars=3, min_user_reviews=2, min_description_chars=3)
    assert found["reviews"] == {
        "read": 34,
        "kept": 24,
        "dropped": {
            "no_rating": 2, "item_dropped": 1, "no_text": 1, "no_timestamp": 1, "no_title": 1, "repeat_item": 1,
            "short_text": 1, "unknown_item": 1, "user_too_few_reviews": 1,
        },
    }  # fmt: skip
    assert found["items"] == {
        "read": 12,
        "kept": 6,
        "dropped": {
            "in_no_sequence": 1, "long_description": 1, "no_categories": 1, "no_rating_number": 1, "no_title": 1,
            "short_description": 1,
        },
    }  # fmt: skip
    assert found["users"] == 4
    assert found["examples"] == {"train": 4, "val": 4, "test": 4}


def test_lengths_are_code_points_of_the_raw_text(tmp_path: Path) -> None:
    reviews = [review(text="日本語"), review(text="  \t", item="i2"), review(text="ab"), *trained()]
    stats = World(tmp_path).ingest(reviews, [item("i1"), item("i2"), *trained_items()], min_text_chars=3)
    assert stats["reviews"]["dropped"] == {"short_text": 1}


def test_a_row_that_vanished_is_an_error_of_the_program() -> None:
    account = CategoryAccount(Account(3, 1, Counter(a=1)), Account(), 1, Counter())
    with pytest.raises(RuntimeError, match="reviews of C: 3 rows read, but 1 kept and 1 dropped"):
        stats({"C": account})


def test_the_published_thresholds_are_the_defaults() -> None:
    assert IngestConfig().protocol == ProtocolConfig(
        min_text_chars=200, min_user_reviews=18, max_user_reviews=500, min_item_users=8, n_targets=10,
        min_profile_reviews=8, min_profile_item_users=5, min_description_chars=100, max_description_chars=2000,
    )  # fmt: skip


def published(**change: Any) -> tuple[list[Any], list[Any]]:
    """Nine users who each review the same 18 items, in texts of 200 characters."""
    reviews = [
        review(f"u{u}", f"i{i}", 100 * i + u + 1, f"{u}-{i}".ljust(200, "x"), **change)
        for u in range(9)
        for i in range(18)
    ]
    return reviews, [item(f"i{i}", description=["d" * 100]) for i in range(18)]


def test_a_category_at_the_published_limits_passes_them(tmp_path: Path) -> None:
    stats = World(tmp_path).ingest(*published(), **{name: IngestConfig().protocol.model_dump()[name] for name in SMALL})
    assert stats["users"] == 9
    assert stats["examples"] == {"train": 72, "val": 9, "test": 9}
