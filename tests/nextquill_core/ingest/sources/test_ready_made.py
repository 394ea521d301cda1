"""The mappings of `configs/sources/`, each on a few invented lines in the published layout."""

from __future__ import annotations

import ast
import gzip
import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from nextquill_core.config import IngestConfig, ProtocolConfig, load_config
from nextquill_core.config.packaged import preset_overrides
from nextquill_core.ingest.selection import item_rules, review_rules
from nextquill_core.ingest.sources import source
from tests.conftest import REPO
from tests.nextquill_core.ingest.world import SMALL, World

FOLDER = REPO / "configs" / "sources"
WEEKDAYS = ("", "Mon", "Tue", "Wed", "Thu")


class Layout(NamedTuple):
    """Lines of a data set in its published layout, and what becomes of the first of each part."""

    reviews: list[Any]
    items: list[Any]
    review: dict[str, Any]
    item: dict[str, Any]
    absent: set[str]


def yelp(number: int) -> dict[str, Any]:
    return {"review_id": f"KU_{number}", "user_id": "mh_-eMZ6K5RLWhZyISBhwA", "stars": 3.0,
            "business_id": f"XQfwVwDr-v0ZS3_Cb{number}", "useful": 0, "funny": 0, "cool": 0,
            "text": f"If you decide to eat here, {number}.",
            "date": f"2018-07-0{number} 22:09:11"}  # fmt: skip


def goodreads(number: int) -> dict[str, Any]:
    return {"user_id": "8842281e1d1347389f2ab93d60773d4d", "book_id": f"2437{number}", "review_id": f"5cd4{number}",
            "rating": 5 if number < 4 else 0, "review_text": f"Mind blowingly cool. {number}",
            "date_added": f"{WEEKDAYS[number]} Aug 2{number} 13:55:02 -0700 2017",
            "date_updated": "Mon Oct 09 08:55:59 -0700 2017",
            "read_at": "", "started_at": "", "n_votes": 16, "n_comments": 0}  # fmt: skip


def google(number: int) -> dict[str, Any]:
    return {"user_id": "108990823942597776781", "name": "Someone", "time": 1609909927056 + number, "rating": 5,
            "text": f"Lovely park {number}" if number < 4 else None, "pics": None, "resp": None,
            "gmap_id": f"0x56b646ed:0x{number}"}  # fmt: skip


def steam(number: int) -> str:
    return repr({"username": "Chaos Syren", "hours": 0.1, "products": 41, "product_id": f"72528{number}",
                 "page_order": 0, "date": f"2017-12-1{number}", "text": f"It's \"odd\" but {number}",
                 "early_access": False, "page": 1}
                ).replace("{'username'", "{u'username'")  # fmt: skip


NUMBERS = (1, 2, 3, 4)
LAYOUTS = {
    "yelp": Layout(
        [yelp(number) for number in NUMBERS],
        [
            {"business_id": f"XQfwVwDr-v0ZS3_Cb{number}", "name": "Turning Point", "address": "1460 Bethlehem Pike",
             "city": "North Wales", "state": "PA", "postal_code": "19454", "latitude": 40.21, "longitude": -75.22,
             "stars": 3.0, "review_count": 169, "is_open": 1, "attributes": {"NoiseLevel": "u'average'"},
             "categories": "Restaurants, Breakfast & Brunch", "hours": {"Monday": "7:30-15:0"}}
            for number in NUMBERS
        ],
        {"user_id": "mh_-eMZ6K5RLWhZyISBhwA", "item_id": "XQfwVwDr-v0ZS3_Cb1", "rating": 3.0,
         "text": "If you decide to eat here, 1.", "timestamp_ms": 1530482951000},
        {"title": "Turning Point", "categories": ["Restaurants, Breakfast & Brunch"], "rating_number": 169.0},
        {"reviews.title", "items.description"},
    ),
    "goodreads": Layout(
        [goodreads(number) for number in NUMBERS],
        [
            {"isbn": "0312853122", "text_reviews_count": "1", "series": [], "country_code": "US", "language_code": "",
             "popular_shelves": [{"count": "3", "name": "to-read"}], "asin": "", "is_ebook": "false",
             "average_rating": "4.00", "kindle_asin": "", "similar_books": [], "description": "A " * 60,
             "format": "Paperback", "link": "https://www.goodreads.com/book/show/1",
             "authors": [{"author_id": "604031", "role": ""}],
             "publisher": "St. Martin's Press", "num_pages": "256", "book_id": f"2437{number}", "ratings_count": "3",
             "work_id": "5400751", "title": "W.C. Fields: A Life on Film"}
            for number in NUMBERS
        ],
        {"user_id": "8842281e1d1347389f2ab93d60773d4d", "item_id": "24371", "rating": 5.0,
         "text": "Mind blowingly cool. 1", "timestamp_ms": 1503348902000},
        {"title": "W.C. Fields: A Life on Film", "description": ["A " * 60], "rating_number": 3.0},
        {"reviews.title", "items.categories"},
    ),
    "google-local": Layout(
        [google(number) for number in NUMBERS],
        [
            {"name": "Cove Park", "address": "Cove Park, Waitsfield, VT", "gmap_id": f"0x56b646ed:0x{number}",
             "description": None if number > 1 else "Picnic tables.", "latitude": 44.1, "longitude": -72.8,
             "category": ["Park", "Tourist attraction"], "avg_rating": 4.9, "num_of_reviews": 18, "price": None,
             "hours": [["Thursday", "Open 24 hours"]], "MISC": {"Activities": ["Hiking"]}, "state": "Open now",
             "relative_results": ["0x1:0x2"], "url": "https://www.google.com/maps/place//data=1"}
            for number in NUMBERS
        ],
        {"user_id": "108990823942597776781", "item_id": "0x56b646ed:0x1", "rating": 5.0, "text": "Lovely park 1",
         "timestamp_ms": 1609909927057},
        {"title": "Cove Park", "description": ["Picnic tables."], "categories": ["Park", "Tourist attraction"],
         "rating_number": 18.0},
        {"reviews.title"},
    ),
    "steam": Layout(
        [steam(number) for number in NUMBERS],
        [
            repr({"publisher": "Kotoshiro", "genres": ["Action", "Casual"], "app_name": "Lost Summoner Kitty",
                  "title": "Lost Summoner Kitty", "url": "http://store.steampowered.com/app/761140/", "price": 4.99,
                  "release_date": "2018-01-04", "tags": ["Strategy"], "specs": ["Single-player"], "early_access": False,
                  "id": f"72528{number}", "developer": "Kotoshiro"})
            for number in NUMBERS
        ],
        {"user_id": "Chaos Syren", "item_id": "725281", "rating": None, "text": "It's \"odd\" but 1",
         "timestamp_ms": 1512950400000},
        {"title": "Lost Summoner Kitty", "categories": ["Action", "Casual"]},
        {"reviews.title", "reviews.rating", "items.description", "items.rating_number"},
    ),
}  # fmt: skip


def settings(name: str) -> IngestConfig:
    return load_config(FOLDER / f"{name}.yaml").ingest


def written(folder: Path, name: str, layout: Layout | None = None) -> IngestConfig:
    """The settings of a mapping, its files (by default with the lines above) written under their published names."""
    layout, ingest = layout or LAYOUTS[name], settings(name)
    paths = []
    for file, lines in ((ingest.inputs[0].reviews, layout.reviews), (ingest.inputs[0].items, layout.items)):
        path = folder / str(file)
        data = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines).encode()
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
        paths.append(str(path))
    raw = ingest.inputs[0].model_copy(update={"reviews": paths[0], "items": paths[1]})
    return ingest.model_copy(update={"inputs": (raw,)})


def test_every_mapping_is_tried() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.yaml")) == sorted(LAYOUTS)


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_first_line_of_each_part_gets_its_columns(tmp_path: Path, name: str) -> None:
    layout, ingest = LAYOUTS[name], written(tmp_path, name)
    reader = source(ingest.source, ingest.options)
    assert reader.absent == layout.absent
    files = reader.find(ingest.inputs[0], fetch=False)
    for part, expected in (("reviews", layout.review), ("items", layout.item)):
        (batch,) = reader.read(part, files.of(part)[0])  # type: ignore[arg-type]
        assert not batch.bad
        row = batch.rows.row(0, named=True)
        assert {key: row[key] for key in expected} == expected
        empty = {key for key in row if key not in (*expected, "line", "item_id")}
        assert all(row[key] is None and f"{part}.{key}" in layout.absent for key in empty)


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_published_thresholds_apply_to_what_the_data_have(name: str) -> None:
    ingest = settings(name)
    reader = source(ingest.source, ingest.options)
    rules = [*review_rules(ingest.protocol, reader), *item_rules(ingest.protocol, reader)]
    assert not {rule.column for rule in rules} & reader.absent
    kept = {"min_description_chars": 0} if name == "google-local" else {}
    assert ingest.protocol == ProtocolConfig(**kept)


@pytest.mark.parametrize("name", LAYOUTS)
def test_small_data_become_sequences(tmp_path: Path, name: str) -> None:
    """Three reviews are enough under small thresholds; a rating of 0 and a missing text drop the fourth."""
    ingest = written(tmp_path, name)
    thresholds = SMALL | {"max_description_chars": 2000}
    world = World(tmp_path)
    stats = world.run(ingest.model_copy(update={"protocol": ProtocolConfig(**thresholds)}))
    dropped = {"goodreads": {"no_rating": 1}, "google-local": {"no_text": 1}}.get(name, {})
    assert stats["reviews"]["dropped"] == dropped
    assert stats["examples"]["test"] == 1
    assert len(world.table("sequences")[0]["reviews"]) == 4 - len(dropped)


ODD: list[Any] = [
    None, "", " 5", "five", "1e5", "9" * 400, 0, -1, 1e30, 2**63, 2**70, True, [], [1], {}, {"a": 1}, "\u0000",
]  # fmt: skip


def with_odd_values(lines: list[Any], columns: dict[str, str]) -> list[Any]:
    """The lines twice, and the first one without each column and with each odd value in it."""
    first = lines[0]
    row = ast.literal_eval(first) if isinstance(first, str) else first
    changed = [row | {column: value} for column in columns.values() for value in ODD]
    changed += [{key: row[key] for key in row if key != column} for column in columns.values()]
    return [*lines, *lines, *(repr(each) if isinstance(first, str) else each for each in changed)]


@pytest.mark.parametrize("name", LAYOUTS)
def test_odd_values_are_kept_or_dropped_by_a_reason(tmp_path: Path, name: str) -> None:
    """Nulls, missing keys, nested values, texts where numbers stand and numbers beyond all limits."""
    layout, options = LAYOUTS[name], settings(name).options
    odd = layout._replace(
        reviews=with_odd_values(layout.reviews, options["reviews"]),
        items=with_odd_values(layout.items, options["items"]),
    )
    ingest = written(tmp_path, name, odd)
    changes = {"protocol": ProtocolConfig(**SMALL | {"max_description_chars": 2000}), "max_bad_share": 1.0}
    stats = World(tmp_path).run(ingest.model_copy(update=changes))
    for part, lines in (("reviews", odd.reviews), ("items", odd.items)):
        account = stats[part]
        assert account["read"] == account["kept"] + sum(account["dropped"].values()) == len(lines), part
        assert account["kept"] >= 3
        assert {reason.partition("-")[0] for reason in account["dropped"]} >= {"wrong"}, part


def test_a_mapping_may_be_laid_over_a_configuration(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("train: {epochs: 7}\n")
    config = load_config(path, preset_overrides(str(FOLDER / "yelp.yaml")))
    assert (config.train.epochs, config.ingest) == (7, settings("yelp"))
