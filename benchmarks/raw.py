"""Generator of a category of any size in the Amazon 2023 layout, with heavy users, popular items, long and short texts.

Only its shape matters (lengths, escapes, how often users and items recur), so all texts are cut from one random text.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

BATCH = 100_000
POOL_WORDS = 400_000
LONGEST = 12_000
CLUB_SHARE = 0.02


@dataclass(frozen=True)
class RawCategory:
    """The two raw files of a category."""

    reviews: Path
    items: Path


def write_category(folder: Path, rows: int, seed: int = 0) -> RawCategory:
    """Write reviews, and a sixtieth as many items, as JSON lines of about 650 bytes.

    Args:
        folder: Folder for the two files.
        rows: Number of reviews.
        seed: Seed of all random draws.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    pool = _pool(rng)
    starts = np.flatnonzero(np.frombuffer(pool.encode("utf-32-le"), np.uint32) == ord(" ")) + 1
    starts = starts[starts < len(pool) - LONGEST]

    def cut(place: int, length: int) -> str:
        return pool[place : place + length].rstrip("\\")  # a cut must not end within an escape

    users, items = max(rows // 8, 20), max(rows // 60, 5)
    members = max(int(rows * CLUB_SHARE / 40), 1)  # each has about 40 reviews
    files = RawCategory(folder / "reviews.jsonl", folder / "items.jsonl")
    with files.items.open("w", encoding="utf-8") as file:
        for start in range(0, items, BATCH):
            size = min(BATCH, items - start)
            lengths = np.clip(rng.lognormal(6.0, 0.8, size), 0, 4000).astype(int)
            places = rng.choice(starts, size)
            for i, (length, place) in enumerate(zip(lengths.tolist(), places.tolist(), strict=True), start):
                file.write(
                    f'{{"main_category": "Books", "title": "{cut(place, 30)}", "average_rating": 4.5, '
                    f'"rating_number": {i % 90 + 1}, "features": ["{cut(place, 60)}"], '
                    f'"description": ["{cut(place, length)}"], "price": 9.5, "images": [], "videos": [], '
                    f'"categories": ["Books", "Fiction"], "details": {{"Pages": "{i}"}}, "parent_asin": "B{i:09d}"}}\n'
                )
    with files.reviews.open("w", encoding="utf-8") as file:
        for start in range(0, rows, BATCH):
            size = min(BATCH, rows - start)
            # A power law: the first users wrote hundreds of reviews, most users a few.
            who = (users * rng.random(size) ** 1.7).astype(int)
            what = (items * rng.random(size) ** 2.5).astype(int)
            # A club of users with the same items: only they pass the published thresholds.
            club = rng.random(size) < CLUB_SHARE
            who = np.where(club, users + rng.integers(0, members, size), who).tolist()
            what = np.where(club, rng.integers(0, members, size) % items, what).tolist()
            lengths = np.clip(rng.lognormal(5.4, 1.1, size), 4, LONGEST).astype(int).tolist()
            places = rng.choice(starts, size).tolist()
            times = rng.integers(1_000_000_000_000, 1_690_000_000_000, size).tolist()
            stars = rng.integers(1, 6, size).tolist()
            file.writelines(
                f'{{"rating": {star}.0, "title": "{cut(place, 24)}", "text": "{cut(place, length)}", '
                f'"images": [], "asin": "B{item:09d}", "parent_asin": "B{item:09d}", '
                f'"user_id": "AE{user:026d}", "timestamp": {time}, "helpful_vote": 0, "verified_purchase": true}}\n'
                for user, item, length, place, time, star in zip(who, what, lengths, places, times, stars, strict=True)
            )
    return files


def _pool(rng: np.random.Generator) -> str:
    """Return random words with some line breaks, quotes and accented letters, escaped as inside a JSON string."""
    letters = np.array(list("eeeetttaaaooiinnsshrdlucmfwypvbgk"))
    words = ["".join(rng.choice(letters, rng.integers(2, 10))) for _ in range(5000)]
    words += ["<br />", '"quoted"', "café", "naïve", "—", "it's", "don't", "line\nbreak"]
    text = " ".join(np.array(words)[rng.integers(0, len(words), POOL_WORDS)].tolist())
    return json.dumps(text, ensure_ascii=False)[1:-1]
