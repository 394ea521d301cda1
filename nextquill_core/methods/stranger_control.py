"""The stranger control: each user is shown another user's history.

A gain that remains under it is due to the genre and not to the user.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace

from nextquill_core.errors import DataError
from nextquill_core.schemas import Example, Review

QUOTABLE = 50  # characters; a shorter text may stand in another by chance


def with_strangers_history(examples: Sequence[Example], seed: int) -> list[Example]:
    """Return each example with the history of another user of the same category and split, and without a summary.

    The users are put in a circle, in the order of a hash of seed and id, and each takes the history of the next. So no
    user keeps their own history, each history is used once, and the order of the examples does not matter. The n-th
    example of a user takes the history of the stranger's n-th example, or of the last one where there are fewer.

    The whole history is taken, so that as many reviews are shown as the prompt's limits allow. Two kinds of reviews are
    left out: those of the target's own item (by its title, or by its description where a source has no titles), which
    would help any user, and those that are, or quote, the text of the target.

    Args:
        examples: Examples of any categories and splits.
        seed: Decides which user is whose stranger.

    Returns:
        The examples in the given order, with the same targets.

    Raises:
        DataError: A category and split has examples of a single user.
    """
    groups: dict[tuple[str, str], dict[str, list[Example]]] = {}
    for example in examples:
        group = groups.setdefault((example.category, example.split), {})
        group.setdefault(example.user_id, []).append(example)
    found: dict[str, Example] = {}
    for (category, split), by_user in groups.items():
        if len(by_user) < 2:
            raise DataError(
                "the stranger control needs a second user",
                f"{category}, split {split}",
                "ingest more users, or set evaluate.control to none",
            )
        circle = sorted(by_user, key=_hashes(f"{seed}:{category}:"))
        for user, stranger in zip(circle, [*circle[1:], circle[0]], strict=True):
            theirs = sorted(by_user[stranger], key=_time)
            for number, example in enumerate(sorted(by_user[user], key=_time)):
                other = theirs[min(number, len(theirs) - 1)]
                kept = tuple(past for past in other.history if not _reveals(past, example.target))
                found[example.example_id] = replace(example, history=kept, summary="")
    return [found[example.example_id] for example in examples]


def _hashes(salt: str) -> Callable[[str], bytes]:
    return lambda user: hashlib.sha256((salt + user).encode()).digest()


def _time(example: Example) -> tuple[int, str]:
    return example.target.timestamp_ms, example.example_id


def _reveals(past: Review, target: Review) -> bool:
    """Return whether a past review is about the target's item, or contains its text."""
    item = _folded(target.item.title or target.item.description)  # LaMP's items have no title, and some nothing at all
    if item and item == _folded(past.item.title or past.item.description):
        return True
    text = target.text.strip()
    return _folded(past.text) == _folded(text) or (len(text) >= QUOTABLE and text in past.text)


def _folded(text: str) -> str:
    return text.strip().casefold()
