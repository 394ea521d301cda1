"""Write a synthetic category to disk: raw files in the Amazon Reviews 2023 layout, and the truth beside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson

from nextquill_core.errors import UserError
from nextquill_core.synthetic import dirt
from nextquill_core.synthetic.catalog import item_row, make_catalog
from nextquill_core.synthetic.people import REGULAR_REVIEWS, make_people, write_reviews
from nextquill_core.synthetic.truth import review_truth, user_truth, world_truth
from nextquill_core.synthetic.world import World
from storage.files import atomic_path, write_json

# An item is to have 17 reviewers on average: enough for 8 in all and for 5 among the older reviews.
REVIEWERS_PER_ITEM = 17
COLD_PER_REGULAR = 0.25
UNUSABLE_PER_ITEM = 0.1


@dataclass(frozen=True, slots=True)
class SampleSummary:
    """What `write_sample` wrote.

    Attributes:
        users: Regular users; cold ones come on top.
        items: Usable items; unusable ones come on top.
        review_rows: Lines of `reviews.jsonl`, the malformed ones included.
        item_rows: Lines of `items.jsonl`.
        taste_words: Taste-driven words in `truth/tokens.jsonl`.
        dirt: How many rows have each kind of dirt, malformed lines apart.
    """

    folder: Path
    users: int
    cold_users: int
    items: int
    review_rows: int
    item_rows: int
    malformed_lines: int
    taste_words: int
    dirt: dict[str, int]


def write_sample(folder: Path, users: int = 60, seed: int = 42) -> SampleSummary:
    """Write a category of `users` regular users; the same arguments give the same bytes.

    Nearly all regular users pass the default protocol from 20 users on; below, items have too few reviewers.

    - `reviews.jsonl`, `items.jsonl`: the raw files.
    - `truth/users.jsonl`: each user's style for every aspect.
    - `truth/tokens.jsonl`: a line a review (user_id, parent_asin, timestamp). `spans` are the words that taste drives,
      with characters [start, end) of the cleaned text and the exact effect; `controls` are the words that item or
      rating drive, whose effect is 0.
    - `truth/world.json`: the parameters of the generative model, the lexicons and the seed.

    Raises:
        UserError: `users` is below 1, or `seed` below 0.
    """
    if users < 1:
        raise UserError(f"a sample needs at least 1 user, got {users}", remedy="try --users 60")
    if seed < 0:
        raise UserError(f"a seed is 0 or more, got {seed}", remedy="try --seed 42")
    world = World()
    # One stream a subject: what is drawn for one never shifts another.
    items_rng, people_rng, reviews_rng, dirt_rng = np.random.default_rng(seed).spawn(4)
    counts: Counter[str] = Counter()

    usable = _item_count(users)
    catalog = make_catalog(usable + max(5, round(UNUSABLE_PER_ITEM * usable)), items_rng)
    catalog, unusable = catalog[:usable], catalog[usable:]
    people = make_people(world, users, round(COLD_PER_REGULAR * users), people_rng)
    popularity = reviews_rng.lognormal(0, 0.2, size=usable)
    popularity /= popularity.sum()
    written = [review for person in people for review in write_reviews(world, person, catalog, popularity, reviews_rng)]
    repeated = list(dirt.second_reviews(world, written, dirt_rng))
    counts["second_review"] = len(repeated)
    written += repeated

    reviews = [review.row(reviews_rng) for review in written]
    counts["html"] = dirt.add_html(reviews, dirt_rng)
    reviews_of = Counter(row["parent_asin"] for row in reviews)
    for reason, row in (
        *dirt.exact_copies(reviews, dirt_rng),
        *dirt.dirty_reviews(world, written, people, unusable, dirt_rng),
    ):
        reviews.append(row)
        counts[reason] += 1
    items = [item_row(item, reviews_of[item.asin], items_rng) for item in catalog]
    for reason, row in dirt.unusable_items(unusable, items_rng):
        items.append(row)
        counts[reason] += 1

    review_lines = [orjson.dumps(row) for row in reviews]
    malformed = dirt.malformed_lines(review_lines, dirt_rng)
    _write_shuffled(folder / "reviews.jsonl", review_lines + malformed, dirt_rng)
    _write_shuffled(folder / "items.jsonl", [orjson.dumps(row) for row in items], dirt_rng)
    _write_lines(folder / "truth" / "users.jsonl", (orjson.dumps(user_truth(world, person)) for person in people))
    _write_lines(folder / "truth" / "tokens.jsonl", (orjson.dumps(review_truth(review)) for review in written))
    write_json(folder / "truth" / "world.json", world_truth(world, users, seed))
    return SampleSummary(
        folder=folder,
        users=users,
        cold_users=len(people) - users,
        items=usable,
        review_rows=len(review_lines) + len(malformed),
        item_rows=len(items),
        malformed_lines=len(malformed),
        taste_words=sum(span.driver == "taste" for review in written for span in review.body.spans),
        dirt=dict(counts),
    )


def _item_count(users: int) -> int:
    """Items for `users` regular users; never fewer than a single one of them may review."""
    low, high = REGULAR_REVIEWS
    return max(high + 4, round(users * (low + high) / 2 / REVIEWERS_PER_ITEM))


def _write_shuffled(path: Path, lines: list[bytes], rng: np.random.Generator) -> None:
    _write_lines(path, (lines[int(index)] for index in rng.permutation(len(lines))))


def _write_lines(path: Path, lines: Iterable[bytes]) -> None:
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.writelines(line + b"\n" for line in lines)
