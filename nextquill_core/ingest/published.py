"""The protocol `published`: the examples of the files as they are, with their splits, targets and histories.

A raw row is an example: its own review is the target, and its profile is the history. A user with several rows has most
reviews in several profiles. They are stored once: the reviews of all rows are merged into one sequence, in an order in
which every profile keeps its own. An example then names its target and its history by their places in this sequence.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from operator import itemgetter
from typing import Any

import polars as pl

from nextquill_core.config import IngestConfig, ProtocolConfig
from nextquill_core.ingest.cohort import SPLIT, TARGET

ANOTHER_EXAMPLE, NO_TARGET = "in_another_example", "example_without_target"
OPEN = ProtocolConfig(
    min_text_chars=0,
    min_description_chars=0,
    max_description_chars=1 << 31,
    require_rating=False,
    require_review_title=False,
    require_item_title=False,
    require_categories=False,
    require_rating_number=False,
)
"""The rules for single rows under which every review with a text passes."""


@dataclass(frozen=True)
class PublishedExamples:
    """The published examples of a category.

    Attributes:
        rows: The reviews of every sequence: `row`, `user`, `item`, `time`, `target` (false: `examples` names targets)
            and `split` (null); sorted by user, then in the order of the sequence.
        examples: `user`, `split`, `target` (i32) and `history` (list of i32), the places of reviews in the sequence of
            their user; sorted by user and target.
        dropped: Number of rows that are in no sequence, by reason.
    """

    rows: pl.DataFrame
    examples: pl.DataFrame
    dropped: Counter[str]


def without_thresholds(config: IngestConfig) -> IngestConfig:
    """Return the same settings with a protocol that every review with a text passes."""
    return config.model_copy(update={"protocol": OPEN})


def published_examples(rows: pl.DataFrame, *, dated: bool) -> PublishedExamples:
    """Merge the rows of every user into a sequence.

    Args:
        rows: `row`, `user`, `item`, `key` (u64: equal for the same review in several profiles), `time`, `split`,
            `example` and `own`, in file order.
        dated: Whether times are dates; otherwise the order of each profile stands for time, and the place in the
            sequence becomes the time.
    """
    targeted = rows.filter("own").select("example").unique()
    complete = rows.join(targeted, on="example", how="semi", maintain_order="left")
    users: list[tuple[int, int, int]] = []
    examples: list[tuple[int, str, int, list[int]]] = []
    for user, mine in _by_user(complete):
        order, found = merged(mine, dated=dated)
        users += [(user, row, time if dated else place) for place, (row, time) in enumerate(order, 1)]
        examples += [(user, *example) for example in found]
    sequences = pl.DataFrame(users, {"user": rows.schema["user"], "row": pl.Int64, "time": pl.Int64}, orient="row")
    chosen = sequences.join(rows.select("row", "item"), on="row", how="left", maintain_order="left")
    kinds: dict[str, Any] = {
        "user": rows.schema["user"],
        SPLIT: pl.String,
        TARGET: pl.Int32,
        "history": pl.List(pl.Int32),
    }
    return PublishedExamples(
        chosen.select("row", "user", "item", "time", pl.lit(False).alias(TARGET), pl.lit(None, pl.String).alias(SPLIT)),
        pl.DataFrame(examples, kinds, orient="row").sort("user", TARGET),
        Counter({NO_TARGET: rows.height - complete.height, ANOTHER_EXAMPLE: complete.height - chosen.height}),
    )


@dataclass(frozen=True, slots=True)
class RawExample:
    """One raw row: `reviews` are (row, key, time) of its profile, oldest first, and of its target at the end."""

    split: str
    reviews: tuple[tuple[int, int, int], ...]


def merged(
    examples: Sequence[RawExample], *, dated: bool
) -> tuple[list[tuple[int, int]], list[tuple[str, int, list[int]]]]:
    """Merge the reviews of a user's raw rows into one sequence.

    A review that occurs in several rows is one review of the sequence, unless it occurs twice in the same row, or is
    the target of two rows: then it is there as often, so that every example has a separate target that is not in its
    history.

    Args:
        examples: The raw rows, in file order.
        dated: Whether times decide where the profiles do not.

    Returns:
        (row, time) of each review of the sequence, oldest first; and (split, place of the target, places of the
        history, oldest first) of each example.
    """
    nodes: dict[tuple[int, int], int] = {}
    reviews: list[tuple[int, int]] = []
    targets: set[int] = set()
    paths: list[list[int]] = []
    for example in examples:
        occurrences: Counter[int] = Counter()
        path: list[int] = []
        for place, (row, key, time) in enumerate(example.reviews, 1):
            is_target = place == len(example.reviews)
            node = nodes.setdefault((key, occurrences[key]), len(reviews))
            occurrences[key] += 1
            if is_target and node in targets:
                node = len(reviews)
            if node == len(reviews):
                reviews.append((row, time))
            path.append(node)
        targets.add(path[-1])
        paths.append(path)
    priority = [(time if dated else 0, node) for node, (_, time) in enumerate(reviews)]
    order = _in_order_of(paths, priority)
    places = {node: place for place, node in enumerate(order)}
    found = [
        (example.split, places[path[-1]], [places[node] for node in path[:-1]])
        for example, path in zip(examples, paths, strict=True)
    ]
    return [reviews[node] for node in order], found


def _in_order_of(paths: Sequence[Sequence[int]], priority: Sequence[tuple[int, int]]) -> list[int]:
    """Return all nodes so that each path keeps its order, as far as the paths agree; else by priority."""
    later: list[set[int]] = [set() for _ in priority]
    for path in paths:
        for one, other in pairwise(path):
            later[one].add(other)
    waiting = [0] * len(priority)
    for successors in later:
        for node in successors:
            waiting[node] += 1
    ready = [priority[node] for node, count in enumerate(waiting) if not count]
    heapq.heapify(ready)
    rest = iter(sorted(priority))
    order: list[int] = []
    done: set[int] = set()
    while len(order) < len(priority):
        # Paths that contradict each other leave none ready: then the first of the others is taken.
        _, node = heapq.heappop(ready) if ready else next(entry for entry in rest if entry[1] not in done)
        if node in done:
            continue
        order.append(node)
        done.add(node)
        for successor in later[node]:
            waiting[successor] -= 1
            if not waiting[successor] and successor not in done:
                heapq.heappush(ready, priority[successor])
    return order


def _by_user(rows: pl.DataFrame) -> Iterator[tuple[int, list[RawExample]]]:
    """Yield the raw rows of each user, users in order of their number."""
    columns = ("user", "example", "split", "row", "key", "time")
    user_of, example_of, review_of = itemgetter(0), itemgetter(1, 2), itemgetter(3, 4, 5)
    in_order = rows.sort("user", "example", "own", "time", "row").select(columns)
    for user, mine in groupby(in_order.iter_rows(), user_of):
        by_example = groupby(mine, example_of)
        yield user, [RawExample(split, tuple(map(review_of, found))) for (_, split), found in by_example]
