"""Rules for single rows: missing and suspect values, rules that are switched off, and rows that repeat others."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from nextquill_core.errors import DataError
from tests.nextquill_core.ingest.world import World, item, plain_category, review, trained, trained_items


def test_a_row_that_is_there_twice_is_dropped_once_and_listed_with_its_line(tmp_path: Path) -> None:
    reviews, items = plain_category()
    world = World(tmp_path)
    other_title = reviews[5] | {"title": "another"}
    stats = world.ingest([*reviews, reviews[5], other_title, reviews[5]], items)
    assert stats["reviews"]["dropped"] == {"duplicate_row": 2, "repeat_item": 1}
    listed = world.table("quarantine")
    assert [(row["file"], row["line"], row["reason"]) for row in listed] == [
        ("r.jsonl", 25, "duplicate_row"), ("r.jsonl", 27, "duplicate_row"),
    ]  # fmt: skip
    assert json.loads(listed[0]["raw"])["text"] == reviews[5]["text"]


def test_the_line_of_a_duplicate_is_found_in_any_file(tmp_path: Path) -> None:
    reviews, items = plain_category()
    world = World(tmp_path)
    world.write("p-1.jsonl", [*reviews[:9], b"", reviews[9]])
    world.write("p-2.jsonl.gz", [*reviews[10:], reviews[0]])
    world.run(world.config(tmp_path / "p-*", world.write("i.jsonl", items)))
    assert [(row["file"], row["line"]) for row in world.table("quarantine")] == [("p-2.jsonl.gz", 15)]


def test_each_reason_has_its_first_row_with_what_is_wrong(tmp_path: Path) -> None:
    reviews, items = plain_category()
    rows = [*reviews, review(text="x" * 3), review("u1", "i0", 9, rating=0.0), review("u1", "nowhere", 9, "good one")]
    found = World(tmp_path).ingest(rows, [*items, item("tall", description=["d" * 51])], min_text_chars=4)
    account = found["per_category"]["C"]
    assert account["reviews"]["examples"] == {
        "no_rating": "r.jsonl:26: item 'i0', rating is 0.0; set ingest.protocol.require_rating to false",
        "short_text": "r.jsonl:25: item 'i1', the text has 3 characters; lower ingest.protocol.min_text_chars (now 4)",
        "unknown_item": "r.jsonl:27: item 'nowhere', which the items do not have; give its metadata in "
        "ingest.inputs[].items",
    }
    assert account["items"]["examples"] == {
        "long_description": "i.jsonl:7: item 'tall', the description has 51 characters; raise "
        "ingest.protocol.max_description_chars (now 50)"
    }


def test_the_last_row_that_passes_describes_an_item(tmp_path: Path) -> None:
    world = World(tmp_path)
    items = [item("i1", title="first"), item("i1", title="second"), item("i1", title=None)]
    stats = world.ingest([review(), *trained()], [*items, *trained_items()])
    assert world.table("items")[0] == {"item_id": "i1", "category": "C", "title": "second", "description": "d"}
    assert stats["items"] == {"read": 6, "kept": 4, "dropped": {"no_title": 1, "repeat_item": 1}}


REVIEWS = {"user_id": "user", "item_id": "item", "rating": "stars", "title": "head", "text": "body", "timestamp": "t"}


def table(world: World, values: list[str], ratings: tuple[float, float] = (1, 5), **protocol: Any) -> dict[str, Any]:
    """Ingest a user's reviews from CSV, one for each rating, and return the stats.

    Args:
        world: Where the files go.
        values: The ratings, as text.
        ratings: The lowest and the highest rating.
    """
    rows = [f"ann,i{n},{value},h{n},text {n},{n + 1}" for n, value in enumerate(values)]
    reviews = world.write("r.csv", ("user,item,stars,head,body,t\n" + "\n".join(rows) + "\n").encode())
    items = world.write("i.csv", ("item,count\n" + "".join(f"i{n},{n}\n" for n in range(len(values)))).encode())
    options = {"reviews": REVIEWS, "items": {"item_id": "item", "rating_number": "count"}, "ratings": list(ratings)}
    return world.run(world.config(reviews, items, source="table", options=options, **protocol))


@pytest.mark.parametrize("ratings", [(0, 1), (0, 10), (-1, 1), (0, 100)])
def test_zero_is_a_rating_where_the_range_has_it(tmp_path: Path, ratings: tuple[float, float]) -> None:
    world = World(tmp_path)
    stats = table(world, ["0", "1", "0.0", "", "1"], ratings)
    assert stats["reviews"]["dropped"] == {"no_rating": 1}
    (user,) = world.table("sequences")
    assert [entry["rating"] for entry in user["reviews"]] == [0, 1, 0, 1]


def test_zero_is_a_missing_rating_outside_the_range_and_the_account_shows_it(tmp_path: Path) -> None:
    stats = table(World(tmp_path), ["5", "0", "4", "1"])
    assert stats["reviews"]["dropped"] == {"no_rating": 1}
    assert stats["per_category"]["C"]["reviews"]["examples"] == {
        "no_rating": "r.csv:3: item 'i1', rating is 0.0; set ingest.protocol.require_rating to false, or have "
        "ingest.options.ratings include 0"
    }


def test_an_item_that_was_never_rated_stays_but_not_in_the_published_procedure(tmp_path: Path) -> None:
    assert table(World(tmp_path), ["5", "4", "3"])["items"]["kept"] == 3  # i0 has 0 ratings
    reviews, items = plain_category()
    stats = World(tmp_path / "published").ingest(reviews, [items[0] | {"rating_number": 0}, *items[1:]])
    assert stats["items"]["dropped"] == {"no_rating_number": 1}


OFF = {
    "require_rating": ("reviews", {"rating": None}),
    "require_review_title": ("reviews", {"title": ""}),
    "require_item_title": ("items", {"title": None}),
    "require_categories": ("items", {"categories": []}),
    "require_rating_number": ("items", {"rating_number": None}),
}


@pytest.mark.parametrize("key", OFF)
def test_a_rule_without_a_threshold_can_be_switched_off_and_the_message_names_how(tmp_path: Path, key: str) -> None:
    part, change = OFF[key]
    rows = dict(zip(("reviews", "items"), plain_category(), strict=True))
    rows[part] = [row | change for row in rows[part]]
    with pytest.raises(DataError) as caught:
        World(tmp_path).ingest(rows["reviews"], rows["items"])
    assert str(caught.value).endswith(f"set ingest.protocol.{key} to false")
    assert " item 'i0', " in str(caught.value)
    stats = World(tmp_path).ingest(rows["reviews"], rows["items"], **{key: False})  # of the scan that is there
    assert (stats["reviews"]["kept"], stats["items"]["kept"]) == (24, 6)


def test_a_time_of_zero_is_kept_and_suspect_where_the_layout_does_not_say_that_it_is_missing(tmp_path: Path) -> None:
    world = World(tmp_path)
    options = {"reviews": {**REVIEWS}, "items": {"item_id": "item"}, "timestamp": "ms"}
    rows = "".join(f"ann,i{n},3,h{n},text {n},{time}\n" for n, time in enumerate((0, 10**12, 10**12 + 1)))
    reviews = world.write("r.csv", f"user,item,stars,head,body,t\n{rows}".encode())
    items = world.write("i.csv", b"item\ni0\ni1\ni2\n")
    stats = world.run(world.config(reviews, items, source="table", options=options, suspect_rows="list"))
    assert stats["reviews"] == {"read": 3, "kept": 3, "dropped": {}, "suspect": {"timestamp-in-seconds": 1}}


def test_data_without_ratings_titles_and_item_titles_pass(tmp_path: Path) -> None:
    world = World(tmp_path)
    columns = {name: key for name, key in REVIEWS.items() if name not in ("rating", "title")}
    reviews = world.write(
        "r.csv", b"user,item,body,t\n" + b"".join(b"ann,i%d,text %d,%d\n" % (n, n, n) for n in range(5))
    )
    items = world.write("i.csv", b"item\n" + b"".join(b"i%d\n" % n for n in range(5)))
    options = {"reviews": columns, "items": {"item_id": "item"}}
    stats = world.run(world.config(reviews, items, source="table", options=options, min_description_chars=100))
    assert stats["reviews"] == {"read": 5, "kept": 5, "dropped": {}}
    (user,) = world.table("sequences")
    assert {(entry["rating"], entry["title"]) for entry in user["reviews"]} == {(None, "")}
    assert {row["title"] for row in world.table("items")} == {""}


NOW = datetime.now(UTC)

GOOD = 1_500_000_000_000


def ms(when: datetime) -> int:
    return int(when.timestamp() * 1000)


SUSPECTS = [
    (review("s", "i0", -5, "a"), "negative-timestamp"),
    (review("s", "i1", GOOD // 1000, "b"), "timestamp-in-seconds"),
    (review("s", "i2", ms(NOW + timedelta(days=2)), "c"), "future-timestamp"),
    (review("s", "i3", GOOD, "d", rating=6.0), "rating-out-of-range"),
    (review("s", "i4", GOOD, "e", rating=0.5), "rating-out-of-range"),
    (review("s", "i5", GOOD, "f", rating=0.0), "rating-out-of-range"),
]

FINE = [
    review("f", "i0", ms(NOW - timedelta(days=2)), "a"),
    review("f", "i1", GOOD, "b", rating=1),
    review("f", "i2", GOOD, "c", rating=None),
    review("f", "i3", 100_000_000_000, "d"),
]


def world_with(tmp_path: Path, **settings: Any) -> tuple[World, dict[str, Any]]:
    world = World(tmp_path)
    rows = [*FINE, *(row for row, _ in SUSPECTS)]
    return world, world.ingest(rows, [item(f"i{i}") for i in range(6)], **settings)


def test_suspect_rows_are_kept_and_listed(tmp_path: Path) -> None:
    world, stats = world_with(tmp_path, suspect_rows="list")
    assert [(row["line"], row["reason"]) for row in world.table("quarantine")] == [
        (line, reason) for line, (_, reason) in enumerate(SUSPECTS, len(FINE) + 1)
    ]
    assert world.table("quarantine")[0]["raw"] == json.dumps(SUSPECTS[0][0])
    assert stats["reviews"]["dropped"] == {"no_rating": 2}  # the protocol's own rule: null and 0
    assert stats["reviews"]["kept"] == 8
    assert stats["reviews"]["suspect"] == {
        "future-timestamp": 1, "negative-timestamp": 1, "rating-out-of-range": 3, "timestamp-in-seconds": 1,
    }  # fmt: skip


def test_suspect_rows_can_count_as_bad(tmp_path: Path) -> None:
    world, stats = world_with(tmp_path, suspect_rows="bad")
    assert stats["reviews"]["dropped"] == {
        "future-timestamp": 1, "negative-timestamp": 1, "rating-out-of-range": 3, "timestamp-in-seconds": 1,
        "no_rating": 1,
    }  # fmt: skip
    assert stats["reviews"]["kept"] == 3
    assert len(world.table("quarantine")) == 6
    with pytest.raises(DataError, match=r"6 of 10 rows cannot be read .* rating-out-of-range 3× \(r\.jsonl:8: {"):
        world_with(tmp_path / "b", suspect_rows="bad", max_bad_share=0.5)
    with pytest.raises(DataError, match=r"reviews of C: .*set ingest\.bad_rows to quarantine"):
        world_with(tmp_path / "c", suspect_rows="bad", bad_rows="fail")


def test_suspect_rows_can_be_ignored(tmp_path: Path) -> None:
    world, stats = world_with(tmp_path, suspect_rows="ignore")
    assert world.table("quarantine") == []
    assert "suspect" not in stats["reviews"]
