"""Where the protocol leaves nothing, the message says why, and the values that it suggests leave a user."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from nextquill_core.errors import DataError
from nextquill_core.ingest import diagnosis
from nextquill_core.ingest.diagnosis import same_if
from tests.effort import trials
from tests.nextquill_core.ingest.world import World, item, plain_category, review

ITEMS = [item(f"i{i}") for i in range(8)]
REVIEWS = st.lists(
    st.builds(
        review,
        user=st.sampled_from(["u1", "u2", "u3", "u4"]),
        item=st.sampled_from([row["parent_asin"] for row in ITEMS]),
        time=st.integers(1, 9),
        text=st.sampled_from([f"text {n}" for n in range(12)] + ["a b", "a  b", "a   b"]),
    ),
    min_size=8,
    max_size=30,
)
STRICT = st.fixed_dictionaries(
    {
        "min_user_reviews": st.integers(1, 9),
        "max_user_reviews": st.sampled_from([1, 3, 500]),
        "min_item_users": st.integers(1, 6),
        "n_targets": st.integers(3, 5),
        "min_profile_reviews": st.integers(0, 5),
        "min_profile_item_users": st.integers(0, 4),
        "name": st.sampled_from(["dpl", "global-time"]),
    }
)


@settings(max_examples=trials(40), deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(reviews=REVIEWS, protocol=STRICT)
def test_the_suggestion_holds(
    tmp_path_factory: pytest.TempPathFactory, reviews: list[Any], protocol: dict[str, Any]
) -> None:
    folder = tmp_path_factory.mktemp("world")
    try:
        World(folder).ingest(reviews, ITEMS, **protocol)
    except DataError as error:
        message = str(error)
    else:
        assume(False)
        return
    assume("no user of" in message or ("is for train" in message and "global" not in protocol["name"]))
    suggested = {key: int(value) for key, value in re.findall(r"ingest\.protocol\.(\w+) to (\d+)", message)}
    if not suggested:
        assert "no thresholds help" in message
        with pytest.raises(DataError):
            World(folder).ingest(
                reviews, ITEMS, name=protocol["name"], max_user_reviews=500, min_user_reviews=1, n_targets=3
            )
        return
    (users,) = re.findall(r"which leaves ([\d,]+) user", message)
    stats = World(folder).ingest(reviews, ITEMS, **protocol | suggested)
    assert stats["users"] == int(users) > 0
    assert stats["examples"]["train"] > 0
    assert all(protocol[key] != value for key, value in suggested.items())


def test_the_most_reviews_of_a_user_are_counted_without_repeats(tmp_path: Path) -> None:
    reviews = [review("u1", f"i{i}", i + 1, f"text {i}") for i in range(4)] + [review("u1", "i0", 9, "other")] * 3
    with pytest.raises(DataError, match=r"min_user_reviews 9 leaves 0 users \(the most is 4 reviews\).* to 4, which"):
        World(tmp_path).ingest(reviews, ITEMS, min_user_reviews=9)


def test_no_training_target_is_refused(tmp_path: Path) -> None:
    reviews = [review(user, f"i{i}", i + 1, f"{user} {i}") for user in ("u1", "u2") for i in range(2)]
    with pytest.raises(DataError) as caught:
        World(tmp_path).ingest(reviews, ITEMS)
    assert str(caught.value) == (
        "C: no target is for train: none of 2 users has 3 reviews left (the newest is for test, the one before it for "
        "val, and the targets before these train); no thresholds help: give reviews of users with 3 reviews or more "
        "(then ingest.protocol.min_user_reviews of 3 is enough)"
    )


def test_a_threshold_that_takes_the_training_targets_is_named(tmp_path: Path) -> None:
    reviews = [review("u1", f"i{i}", i + 1, f"a {i}") for i in range(4)]
    reviews += [review("u2", f"i{i}", i + 1, f"b {i}") for i in range(2)]
    with pytest.raises(DataError, match=r"set ingest\.protocol\.min_item_users to 1, which leaves 2 users$"):
        World(tmp_path).ingest(reviews, ITEMS, min_item_users=2)  # i0 and i1 have two users: two reviews a user


def test_a_search_that_runs_out_of_time_still_suggests_what_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diagnosis, "SEARCH_S", 0.0)
    reviews = [review("u1", f"i{i}", i + 1, f"text {i}") for i in range(6)]
    with pytest.raises(DataError) as caught:
        World(tmp_path).ingest(reviews, ITEMS, min_user_reviews=9, min_item_users=2)
    suggested = {key: int(value) for key, value in re.findall(r"ingest\.protocol\.(\w+) to (\d+)", str(caught.value))}
    assert suggested["min_user_reviews"] == suggested["min_item_users"] == 1
    assert World(tmp_path).ingest(reviews, ITEMS, **{"min_user_reviews": 9, "min_item_users": 2} | suggested)["users"]


@pytest.mark.parametrize(
    ("ours", "theirs", "words"),
    [
        ("100.0", "100", "without the `.0`"),
        (" B01", "B01", "without the blanks"),
        ("000123", "123", "without leading zeros"),
        ("b01", "B01", "in the same case"),
        ("978-3-16", "978316", "without hyphens"),
        ("'B01'", "B01", "without quotes"),
        ("https://shop/items/B01", "B01", "last part of a path"),
    ],
)
def test_the_message_says_what_makes_the_ids_the_same(ours: str, theirs: str, words: str) -> None:
    for one, other in ((ours, theirs), (theirs, ours)):
        found = same_if([one], ["unlike", other])
        assert found is not None
        assert words in found


def test_ids_that_nothing_joins() -> None:
    assert same_if(["100", "0"], ["200", "00"]) is None
    assert same_if([], ["200"]) is None


def test_both_sides_are_shown(tmp_path: Path) -> None:
    reviews, items = plain_category()
    with pytest.raises(DataError) as caught:
        World(tmp_path).ingest([row | {"parent_asin": f"{row['parent_asin'][1:]}.0"} for row in reviews],
                               [row | {"parent_asin": row["parent_asin"][1:]} for row in items])  # fmt: skip
    assert str(caught.value) == (
        "C: the metadata matches no review: none of the items of 24 reviews is in i.jsonl; the reviews have `0.0`, "
        "`1.0`, `2.0`, …, the items have `0`, `1`, `2`, …; the ids are the same without the `.0` at the end: write "
        "them in the same way in both files"
    )


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
def test_when_no_user_is_left_the_threshold_is_named(tmp_path: Path, protocol: dict[str, int], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        World(tmp_path).ingest(*plain_category(), **protocol)
    assert "\n" not in str(caught.value)


def test_thresholds_that_only_together_leave_no_user(tmp_path: Path) -> None:
    reviews = [review("u1", f"i{i}", i, str(i)) for i in (1, 2, 3)] + [review("u2", "i1", 1, "x")]
    with pytest.raises(DataError, match=r"together they leave no user; set ingest\.protocol\.min_item_users to 1, "):
        World(tmp_path).ingest(reviews, [item(f"i{i}") for i in (1, 2, 3)], min_user_reviews=2, min_item_users=2)


def test_metadata_of_another_category_is_refused(tmp_path: Path) -> None:
    message = r"none of the items of 24 reviews is in .*i\.jsonl.*; give the metadata of the same category in ingest"
    with pytest.raises(DataError, match=f"the metadata matches no review: {message}"):
        World(tmp_path).ingest(plain_category()[0], [item("other")])


def test_the_message_counts_and_gives_an_item(tmp_path: Path) -> None:
    reviews, items = plain_category()
    with pytest.raises(DataError) as caught:
        World(tmp_path).ingest(reviews, [row | {"categories": []} for row in items])
    assert str(caught.value) == (
        "no item of C passes: 6 read; no_categories 6; for example i.jsonl:1: item 'i0', categories is empty; set "
        "ingest.protocol.require_categories to false"
    )


def test_the_message_names_the_rule_that_drops_most_reviews(tmp_path: Path) -> None:
    reviews, items = plain_category()
    reviews = [row | {"rating": None} for row in reviews[:20]] + reviews[20:]
    with pytest.raises(DataError, match=r"no_rating 20 \(r\.jsonl:1: item 'i0', rating is missing; set ingest\.prot"):
        World(tmp_path).ingest(reviews, items, min_user_reviews=5)
