"""Write a synthetic category: raw files in the Amazon Reviews 2023 layout, with their ground truth beside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from nextquill_core.errors import UserError
from nextquill_core.synthetic import dirt, lexicon
from nextquill_core.synthetic.catalog import item_row, make_catalog
from nextquill_core.synthetic.reviewers import (
    REGULAR_REVIEWS,
    Reviewer,
    WrittenReview,
    make_reviewers,
    write_reviews,
)
from nextquill_core.synthetic.truth import PLAIN, TOKEN_TRUTH, WORLD
from nextquill_core.synthetic.world import WORLDS, World, tastes
from storage.files import atomic_path, write_json

# On average: enough for 8 reviewers of an item in all, and for 5 among the older reviews.
REVIEWERS_PER_ITEM = 17
COLD_PER_REGULAR = 0.25
UNUSABLE_PER_ITEM = 0.1
# The columns of drawn words in `truth/tokens.jsonl`.
TASTE_WORD = ("start", "end", "word", "aspect", "style", "p_factual", "p_counterfactual", "effect")
CONTROL_WORD = ("start", "end", "word", "driver", "source", "effect")


@dataclass(frozen=True, slots=True)
class SampleSummary:
    """What `write_sample` wrote.

    Attributes:
        users: Number of regular users.
        cold_users: Number of further users with few reviews.
        items: Number of usable items; there are unusable ones besides.
        review_rows: Lines of `reviews.jsonl`, the malformed ones included.
        item_rows: Lines of `items.jsonl`.
        malformed_lines: Lines of `reviews.jsonl` that are not JSON.
        dirt: Number of rows with each kind of dirt, without malformed lines.
    """

    folder: Path
    users: int
    cold_users: int
    items: int
    review_rows: int
    item_rows: int
    malformed_lines: int
    dirt: dict[str, int]


def write_sample(folder: Path, users: int = 60, seed: int = 42, world: str = PLAIN) -> SampleSummary:
    """Write a category of `users` regular users; the same arguments give the same bytes.

    From 20 users on, nearly all regular users pass the default protocol; with fewer, items have too few reviewers.

    - `reviews.jsonl`, `items.jsonl`: the raw files.
    - `truth/users.jsonl`: each user's main style and, where there is one, the second style.
    - `truth/tokens.jsonl`: a line a review (user_id, parent_asin, timestamp). `spans` are the words that taste drives,
      with characters [start, end) of the cleaned text and the exact effect; `controls` are the words that item or
      rating drive, whose effect is 0.
    - `truth/world.json`: the parameters of the generative model, the lexicons and the seed.

    Args:
        folder: Where the files go.
        users: Number of regular users, at least 1.
        seed: Of the random numbers, at least 0.
        world: A name in `world.WORLDS`.

    Raises:
        UserError: `users` is below 1, `seed` below 0, or there is no such world.
    """
    if users < 1:
        raise UserError(f"a sample needs at least 1 user, got {users}", remedy="try --users 60")
    if seed < 0:
        raise UserError(f"a seed is 0 or more, got {seed}", remedy="try --seed 42")
    if world not in WORLDS:
        raise UserError(f"there is no world {world!r}", remedy=f"use one of {', '.join(WORLDS)}")
    model = WORLDS[world]
    # One stream a subject: drawing more for one never changes another.
    items_rng, reviewers_rng, reviews_rng, dirt_rng = np.random.default_rng(seed).spawn(4)
    counts: Counter[str] = Counter()

    usable = _item_count(users)
    catalog = make_catalog(usable + max(5, round(UNUSABLE_PER_ITEM * usable)), items_rng)
    catalog, unusable = catalog[:usable], catalog[usable:]
    reviewers = make_reviewers(model, users, round(COLD_PER_REGULAR * users), reviewers_rng)
    popularity = reviews_rng.lognormal(0, 0.2, size=usable)
    popularity /= popularity.sum()
    written = [
        review for reviewer in reviewers for review in write_reviews(model, reviewer, catalog, popularity, reviews_rng)
    ]
    repeated = list(dirt.second_reviews(model, written, dirt_rng))
    counts["second_review"] = len(repeated)
    written += repeated

    reviews = [review.row(reviews_rng) for review in written]
    counts["html"] = dirt.add_html(reviews, dirt_rng)
    reviews_of = Counter(row["parent_asin"] for row in reviews)
    for reason, row in (
        *dirt.exact_copies(reviews, dirt_rng),
        *dirt.dirty_reviews(model, written, reviewers, unusable, dirt_rng),
    ):
        reviews.append(row)
        counts[reason] += 1
    items = [item_row(item, reviews_of[item.asin], items_rng) for item in catalog]
    for reason, row in dirt.unusable_items(unusable, items_rng):
        items.append(row)
        counts[reason] += 1

    review_lines = [orjson.dumps(row) for row in reviews]
    malformed = dirt.malformed_lines(review_lines, dirt_rng)
    review_lines = _shuffled(review_lines + malformed, dirt_rng)
    # The reviews are written last: where there are reviews, the other files belong to them.
    (folder / "reviews.jsonl").unlink(missing_ok=True)
    _write_lines(
        folder / "truth" / "users.jsonl", (orjson.dumps(_user_truth(model, reviewer)) for reviewer in reviewers)
    )
    _write_lines(folder / TOKEN_TRUTH, (orjson.dumps(_review_truth(model, review)) for review in written))
    write_json(folder / WORLD, _world_truth(world, users, seed))
    _write_lines(folder / "items.jsonl", _shuffled([orjson.dumps(row) for row in items], dirt_rng))
    _write_lines(folder / "reviews.jsonl", review_lines)
    return SampleSummary(
        folder=folder,
        users=users,
        cold_users=len(reviewers) - users,
        items=usable,
        review_rows=len(review_lines),
        item_rows=len(items),
        malformed_lines=len(malformed),
        dirt=dict(counts),
    )


def _item_count(users: int) -> int:
    """Return the number of items for `users` regular users; never fewer than one of them may review."""
    low, high = REGULAR_REVIEWS
    return max(high + 4, round(users * (low + high) / 2 / REVIEWERS_PER_ITEM))


def _shuffled(lines: list[bytes], rng: np.random.Generator) -> list[bytes]:
    return [lines[int(index)] for index in rng.permutation(len(lines))]


def _write_lines(path: Path, lines: Iterable[bytes]) -> None:
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.writelines(line + b"\n" for line in lines)


def _user_truth(world: World, reviewer: Reviewer) -> dict[str, Any]:
    """Return a user's kind, and the styles that the user holds in all reviews."""
    main, second, _ = tastes(world)[reviewer.taste]
    names = [style.name for style in world.aspects[0].styles]
    truth = {"user_id": reviewer.user_id, "kind": reviewer.kind, "style": names[main]}
    return truth if second is None else truth | {"second": names[second]}


def _review_truth(world: World, review: WrittenReview) -> dict[str, Any]:
    """Return the drawn words of one review: those of taste with their exact effects, and those of item and rating."""
    spans = [asdict(span) | {"aspect": span.source, "effect": span.effect} for span in review.body.spans]
    truth = {
        "user_id": review.reviewer.user_id,
        "parent_asin": review.item.asin,
        "timestamp": review.timestamp_ms,
        "spans": [{name: span[name] for name in TASTE_WORD} for span in spans if span["driver"] == "taste"],
        "controls": [{name: span[name] for name in CONTROL_WORD} for span in spans if span["driver"] != "taste"],
    }
    return truth | {"off": review.body.off} if world.p_off else truth


def _world_truth(name: str, users: int, seed: int) -> dict[str, Any]:
    """Return the parameters from which the category was made."""
    world = asdict(WORLDS[name])
    if name == PLAIN:
        del world["p_second"], world["p_off"]
    return {
        "seed": seed,
        "users": users,
        **({} if name == PLAIN else {"world": name}),
        **world,
        "item_words": lexicon.ITEM_WORDS,
        "rating_words": lexicon.RATING_WORDS,
        "effect": "P(word | style, x, words before) - P(word | x, words before)",
    }
