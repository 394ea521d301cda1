"""Where the protocol leaves no user, the values that the message suggests leave a user."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from nextquill_core.errors import DataError
from nextquill_core.ingest import thresholds
from tests.nextquill_core.ingest.world import World, item, review

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


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
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


def test_few_users_with_a_training_target_are_noted(tmp_path: Path) -> None:
    reviews = [review(user, f"i{i}", i + 1, f"{user} {i}") for user in ("u1", "u2", "u3") for i in range(2)]
    stats = World(tmp_path).ingest([*reviews, review("u1", "i3", 5, "a third")], ITEMS)
    assert stats["examples"] == {"train": 1, "val": 3, "test": 3}
    assert stats["notes"] == [
        "C: only 1 of 3 users have a target to train on; the others have fewer than 3 reviews, and "
        "ingest.protocol.min_user_reviews of 3 leaves most of them out"
    ]


def test_a_search_that_runs_out_of_time_still_suggests_what_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thresholds, "SEARCH_S", 0.0)
    reviews = [review("u1", f"i{i}", i + 1, f"text {i}") for i in range(6)]
    with pytest.raises(DataError) as caught:
        World(tmp_path).ingest(reviews, ITEMS, min_user_reviews=9, min_item_users=2)
    suggested = {key: int(value) for key, value in re.findall(r"ingest\.protocol\.(\w+) to (\d+)", str(caught.value))}
    assert suggested["min_user_reviews"] == suggested["min_item_users"] == 1
    assert World(tmp_path).ingest(reviews, ITEMS, **{"min_user_reviews": 9, "min_item_users": 2} | suggested)["users"]
