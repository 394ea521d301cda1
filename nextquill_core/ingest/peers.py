"""Peers: what other users wrote about the items of a user, from the tables of an ingest artifact.

Two things need them. A metric compares a generated text with what others wrote about the same item, whenever that was.
A method that shows or learns how a user differs from others must not see more than was known before its target: its
peers are older than the target, and no target of val or test is among them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from nextquill_core.ingest.reader import read_items, review_of
from nextquill_core.records import Example, Item, Review
from storage.tables import read_table

HELD_OUT = ("val", "test")
"""Splits whose targets are never among the peers that a method uses."""


class Place(NamedTuple):
    """Where a review is: its user and its position among that user's reviews, oldest first."""

    category: str
    user_id: str
    position: int


class Peers:
    """All reviews of an ingest artifact by user and by item; they are in memory together.

    Args:
        folder: The artifact's folder.
        dated: Whether the source's timestamps are dates. Those of other sources say nothing about who wrote first, so
            that `known_before` cannot leave later reviews out.
    """

    def __init__(self, folder: Path, *, dated: bool = True) -> None:
        self._dated = dated
        self._reviews: dict[tuple[str, str], list[Review]] = {}
        self._item_of: dict[Place, str] = {}
        self._about: dict[tuple[str, str], list[Place]] = {}
        self._targets: dict[str, Place] = {}
        self._histories: dict[str, list[Place]] = {}
        self._held_out: set[Place] = set()
        items = read_items(folder)
        for path in sorted((folder / "sequences").glob("*.parquet")):
            for row in read_table(path).to_pylist():
                self._add(row["category"], row["user_id"], row["reviews"], items)
            for row in read_table(folder / "examples" / path.name).to_pylist():
                user = row["category"], row["user_id"]
                target = Place(*user, row["target"])
                self._targets[row["example_id"]] = target
                self._histories[row["example_id"]] = [Place(*user, position) for position in row["history"]]
                if row["split"] in HELD_OUT:
                    self._held_out.add(target)

    def _add(
        self, category: str, user_id: str, rows: Sequence[Mapping[str, Any]], items: Mapping[tuple[str, str], Item]
    ) -> None:
        self._reviews[category, user_id] = [review_of(row, items[category, row["item_id"]]) for row in rows]
        for position, row in enumerate(rows):
            place = Place(category, user_id, position)
            self._item_of[place] = str(row["item_id"])
            self._about.setdefault((category, str(row["item_id"])), []).append(place)

    def review(self, place: Place) -> Review:
        """Return the review at a place."""
        return self._reviews[place.category, place.user_id][place.position]

    def place(self, category: str, review: Review) -> Place:
        """Return the place of a review; of equal reviews, the last one."""
        return self._place_of[category, review]

    @cached_property
    def _place_of(self) -> dict[tuple[str, Review], Place]:
        return {(place.category, self.review(place)): place for place in self._item_of}

    def history(self, example: Example) -> list[Place]:
        """Return the places of an example's past reviews, oldest first."""
        return self._histories[example.example_id]

    def others(self, place: Place) -> list[Place]:
        """Return other users' reviews of the item that is reviewed at a place, in the order of the tables."""
        about = self._about[place.category, self._item_of[place]]
        return [other for other in about if other.user_id != place.user_id]

    def of_target(self, example: Example) -> list[Place]:
        """Return other users' reviews of an example's item, whenever they were written."""
        return self.others(self._targets[example.example_id])

    def others_of_user(self, example: Example) -> list[Place]:
        """Return all other reviews of the example's user, later ones included, but none of the target's item."""
        target = self._targets[example.example_id]
        return [place for place in self._of_user(target) if self._item_of[place] != self._item_of[target]]

    def known_before(self, example: Example, place: Place) -> list[Place]:
        """Return the peers of a past review that a method may use for an example.

        Args:
            example: The example; its target's time is the limit.
            place: The past review.
        """
        return [other for other in self.others(place) if self._is_known(example, other)]

    def users_before(self, example: Example, place: Place) -> list[Place]:
        """Return one review by each peer of a past review: the oldest of those in `known_before`.

        A method that chooses among users counts one who wrote about the item several times once.

        Args:
            example: The example; its target's time is the limit.
            place: The past review.
        """
        first: dict[str, Place] = {}
        for other in self.known_before(example, place):  # a user's places are in the order of time
            first.setdefault(other.user_id, other)
        return list(first.values())

    def profile_before(self, example: Example, place: Place) -> list[Place]:
        """Return all reviews of the user of a peer's review that a method may use for an example.

        Args:
            example: The example; its target's time is the limit.
            place: A review of the other user.
        """
        return [other for other in self._of_user(place) if self._is_known(example, other)]

    def _of_user(self, place: Place) -> list[Place]:
        reviews = self._reviews[place.category, place.user_id]
        return [place._replace(position=position) for position in range(len(reviews))]

    def _is_known(self, example: Example, place: Place) -> bool:
        if place in self._held_out:
            return False
        return not self._dated or self.review(place).timestamp_ms < example.target.timestamp_ms
