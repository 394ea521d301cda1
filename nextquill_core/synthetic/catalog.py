"""The items of the synthetic world: books whose title and description show what reviews may mention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from nextquill_core.synthetic import lexicon
from nextquill_core.synthetic.world import pick

ASIN_LETTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, slots=True)
class CatalogItem:
    """A book.

    Attributes:
        words: The book's word of every kind in `lexicon.ITEM_WORDS`; title and description show them.
        description: Two paragraphs, together 100 to 300 characters.
        quality: Mean of its ratings before the reviewer's leniency, in stars.
    """

    asin: str
    words: dict[str, str]
    title: str
    description: tuple[str, str]
    quality: float


def make_catalog(count: int, rng: np.random.Generator) -> list[CatalogItem]:
    """Draw `count` books, all titles different."""
    titles: set[str] = set()
    items: list[CatalogItem] = []
    for asin in unique_codes(count, "B0", 8, rng):
        words = {kind: pick(values, rng) for kind, values in lexicon.ITEM_WORDS.items()}
        items.append(
            CatalogItem(
                asin=asin,
                words=words,
                title=_new_title(words, titles, rng),
                description=(
                    pick(lexicon.DESCRIPTION_OPENINGS, rng).format(**words),
                    pick(lexicon.DESCRIPTION_CLOSINGS, rng),
                ),
                quality=float(rng.normal(3.9, 0.5)),
            )
        )
    return items


def item_row(item: CatalogItem, ratings: int, rng: np.random.Generator) -> dict[str, Any]:
    """Return the item as a row of the raw metadata.

    As in the published data, `price`, `images`, `videos` and `details` change type from row to row.

    Args:
        item: The item.
        ratings: Number of its ratings.
        rng: Source of randomness.
    """
    description = list(item.description) if rng.random() < 0.7 else [" ".join(item.description)]
    if rng.random() < 0.1:
        description.insert(0, "Product Description")
    price = round(float(rng.uniform(3, 25)), 2)
    picture = f"https://images.example.com/{item.asin}.jpg"
    return {
        "main_category": "Books",
        "title": item.title,
        "average_rating": round(min(max(item.quality, 1.0), 5.0), 1),
        "rating_number": max(ratings, 1),
        "features": [f"A {item.words['genre']} novel"],
        "description": description,
        "price": pick((price, None, f"from {price}"), rng),
        "images": pick(([], [{"large": picture, "variant": "MAIN"}], {"large": [picture]}), rng),
        "videos": pick(([], {"title": [], "url": []}), rng),
        "store": "Riverside Press",
        "categories": ["Books", "Literature & Fiction", item.words["genre"].capitalize()],
        "details": pick(({"Language": "English"}, {"Pages": int(rng.integers(120, 600))}, None), rng),
        "parent_asin": item.asin,
        "bought_together": None,
    }


def unique_codes(count: int, prefix: str, letters: int, rng: np.random.Generator) -> list[str]:
    """Draw different identifiers.

    Args:
        count: How many.
        prefix: What each begins with.
        letters: Number of random digits and capitals that follow.
        rng: Source of randomness.
    """
    codes: dict[str, None] = {}
    while len(codes) < count:
        drawn = rng.integers(len(ASIN_LETTERS), size=letters)
        codes[prefix + "".join(ASIN_LETTERS[int(i)] for i in drawn)] = None
    return list(codes)


def _new_title(words: dict[str, str], taken: set[str], rng: np.random.Generator) -> str:
    """Draw a title that is not in `taken`, and add it there. Once the names run out, books become series."""
    capital = {kind: word.capitalize() for kind, word in words.items()}
    for _ in range(20):
        title = pick(lexicon.TITLE_FRAMES, rng).format(adjective=pick(lexicon.TITLE_WORDS, rng), **capital)
        if title not in taken:
            break
    base, volume = title, 2
    while title in taken:
        title, volume = f"{base}, Book {volume}", volume + 1
    taken.add(title)
    return title
