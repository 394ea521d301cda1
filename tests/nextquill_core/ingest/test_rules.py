"""What counts as missing, which rules can be switched off, and what is said of a row that goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nextquill_core.errors import DataError
from tests.nextquill_core.ingest.world import World, item, plain_category, review

REVIEWS = {"user_id": "user", "item_id": "item", "rating": "stars", "title": "head", "text": "body", "timestamp": "t"}


def table(world: World, values: list[str], ratings: tuple[float, float] = (1, 5), **protocol: Any) -> dict[str, Any]:
    """A user's reviews from CSV, one a rating; `time,rating` where a value has a comma."""
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


def test_zero_is_no_rating_where_the_range_lacks_it_and_the_account_says_so(tmp_path: Path) -> None:
    stats = table(World(tmp_path), ["5", "0", "4", "1"])
    assert stats["reviews"]["dropped"] == {"no_rating": 1}
    assert stats["per_category"]["C"]["reviews"]["examples"] == {
        "no_rating": "r.csv:3: item 'i1', rating is 0.0; set ingest.protocol.require_rating to false, or have "
        "ingest.options.ratings include 0"
    }


def test_an_item_that_was_never_rated_stays_but_not_in_the_published_procedure(tmp_path: Path) -> None:
    assert table(World(tmp_path), ["5", "4", "3"])["items"]["kept"] == 3  # i0 has 0 ratings
    reviews, items = plain_category()
    (tmp_path / "published").mkdir()
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


def test_the_message_counts_and_gives_an_item(tmp_path: Path) -> None:
    reviews, items = plain_category()
    with pytest.raises(DataError) as caught:
        World(tmp_path).ingest(reviews, [row | {"categories": []} for row in items])
    assert str(caught.value) == (
        "no item of C passes: 6 read; no_categories 6; for example i.jsonl:1: item 'i0', categories is empty; set "
        "ingest.protocol.require_categories to false"
    )


def test_where_most_reviews_go_by_a_rule_the_message_says_which(tmp_path: Path) -> None:
    reviews, items = plain_category()
    reviews = [row | {"rating": None} for row in reviews[:20]] + reviews[20:]
    with pytest.raises(DataError, match=r"no_rating 20 \(r\.jsonl:1: item 'i0', rating is missing; set ingest\.prot"):
        World(tmp_path).ingest(reviews, items, min_user_reviews=5)


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
