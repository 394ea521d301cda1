"""Rows read = rows kept + rows dropped by reason; and what is said when nobody is left."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from nextquill_core.config import IngestConfig, ProtocolConfig, RawInput
from nextquill_core.errors import DataError
from nextquill_core.ingest.report import Account, CategoryAccount, account_rows, stats
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


def test_categories_are_processed_on_their_own_and_added_up(tmp_path: Path) -> None:
    reviews, items = plain_category()
    world = World(tmp_path)
    first = world.config(world.write("r.jsonl", reviews), world.write("i.jsonl", items), category="Zebra")
    second = RawInput(
        category="Ant", reviews=str(world.write("r2.jsonl", reviews[:12])), items=str(tmp_path / "i.jsonl")
    )
    both = first.model_copy(update={"inputs": (*first.inputs, second)})
    stats = world.run(both)
    assert [row["category"] for row in world.table("sequences")] == ["Zebra"] * 4 + ["Ant"] * 2
    assert [user for user, *_ in world.examples()] == [f"u{u}" for u in (0, 1, 2, 3, 0, 1) for _ in range(3)]
    assert stats["reviews"] == {"read": 36, "kept": 36, "dropped": {}}
    assert stats["users"] == 6
    assert stats["per_category"]["Ant"]["reviews"]["kept"] == 12
    rows = account_rows(stats)
    assert {"category": "Ant", "what": "reviews", "outcome": "read", "rows": 12, "share": 1.0, "example": ""} in rows
    assert {"category": "Zebra", "what": "examples", "outcome": "val", "rows": 4, "share": None, "example": ""} in rows


def test_a_row_that_vanished_is_an_error_of_the_program() -> None:
    account = CategoryAccount(Account(3, 1, Counter(a=1)), Account(), 1, Counter())
    with pytest.raises(RuntimeError, match="reviews of C: 3 rows read, but 1 kept and 1 dropped"):
        stats({"C": account})


@pytest.mark.parametrize(
    ("protocol", "message"),
    [
        (
            {"min_user_reviews": 18},
            r"no user of C passes: 24 reviews read, 24 of 4 users .*min_user_reviews 18 leaves 0 users \(the most is 6 "
            r"reviews\).*set ingest\.protocol\.min_user_reviews to 6, which leaves 4 users$",
        ),
        ({"max_user_reviews": 3}, r"max_user_reviews 3 leaves 0; .*set ingest\.protocol\.max_user_reviews to 6, which"),
        (
            {"min_item_users": 5},
            r"min_item_users 5 leaves 0 of 6 items \(the most is 4 users\); set ingest\.protocol\.min_item_users to 4,",
        ),
        (
            {"min_profile_reviews": 4},
            r"profiles without their 3 targets hold up to 3 reviews .* 4 are needed .*set "
            r"ingest\.protocol\.min_profile_reviews to 3, which leaves 4 users$",
        ),
        ({"min_profile_item_users": 5, "min_profile_reviews": 1}, r"hold up to 0 reviews of items with 5 users"),
        (
            {"min_text_chars": 99},
            r"no review of C passes: 24 read; short_text 24; for example r\.jsonl:1: item 'i0', the text has 11 "
            r"characters; lower ingest\.protocol\.min_text_chars \(now 99\); half of them have 11 characters or more, "
            r"the longest has 11$",
        ),
        (
            {"min_description_chars": 9},
            r"no item of C passes: 6 read; short_description 6; for example i\.jsonl:1: item 'i0', the description has "
            r"1 characters; lower ingest\.protocol\.min_description_chars \(now 9\); half of them have 1 characters "
            r"or more, the longest has 1$",
        ),
    ],
)
def test_when_nobody_is_left_the_threshold_is_named(tmp_path: Path, protocol: dict[str, int], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        World(tmp_path).ingest(*plain_category(), **protocol)
    assert "\n" not in str(caught.value)


def test_thresholds_that_only_together_leave_nobody(tmp_path: Path) -> None:
    reviews = [review("u1", f"i{i}", i, str(i)) for i in (1, 2, 3)] + [review("u2", "i1", 1, "x")]
    with pytest.raises(DataError, match=r"together they leave no user; set ingest\.protocol\.min_item_users to 1, "):
        World(tmp_path).ingest(reviews, [item(f"i{i}") for i in (1, 2, 3)], min_user_reviews=2, min_item_users=2)


def test_metadata_of_another_category_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"the metadata matches no review: none of the items of 24 reviews is in .*i\.jsonl"
    ):
        World(tmp_path).ingest(plain_category()[0], [item("other")])


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
