"""The control in which each user gets a stranger's history: what remains of a gain then owes nothing to the person."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace

from nextquill_core.errors import DataError
from nextquill_core.schemas import Example, Review

QUOTABLE = 50  # characters; a shorter text may stand in another by chance


def with_strangers_history(examples: Sequence[Example], seed: int) -> list[Example]:
    """Each example with the history of another user of the same category and split, and without a summary.

    The users are put in a circle, in the order of a hash of seed and id, and each takes the history of the next: nobody
    keeps their own, everybody's is given once, and the order of the examples does not matter. Of a user with several
    examples, the first takes that of the stranger's first, and so on; where the stranger has fewer, of the last.

    The whole history is taken, so that as many reviews are shown as the prompt's limits allow. Left out of it are
    reviews of the very item that is to be reviewed, told by its title, since what a stranger says of the item would
    help whoever the user is, and reviews that are, or quote, the text that is to be written.

    Args:
        examples: Of any categories and splits.
        seed: Decides who is whose stranger.

    Returns:
        The examples in their order, with the same targets.

    Raises:
        DataError: A category has examples of a single user.
    """
    groups: dict[tuple[str, str], dict[str, list[Example]]] = {}
    for example in examples:
        group = groups.setdefault((example.category, example.split), {})
        group.setdefault(example.user_id, []).append(example)
    found: dict[str, Example] = {}
    for (category, split), by_user in groups.items():
        if len(by_user) < 2:
            raise DataError(
                "no stranger can be found for the only user", f"{category}, split {split}", "take in more users"
            )
        circle = sorted(by_user, key=_hashes(f"{seed}:{category}:"))
        for user, stranger in zip(circle, [*circle[1:], circle[0]], strict=True):
            theirs = sorted(by_user[stranger], key=_time)
            for number, example in enumerate(sorted(by_user[user], key=_time)):
                other = theirs[min(number, len(theirs) - 1)]
                kept = tuple(past for past in other.history if not _tells(past, example.target))
                found[example.example_id] = replace(example, history=kept, summary="")
    return [found[example.example_id] for example in examples]


def _hashes(salt: str) -> Callable[[str], bytes]:
    return lambda user: hashlib.sha256((salt + user).encode()).digest()


def _time(example: Example) -> tuple[int, str]:
    return example.target.timestamp_ms, example.example_id


def _tells(past: Review, target: Review) -> bool:
    """Whether a past review is about the target's item, or holds its text."""
    if _same(past.item.title, target.item.title) or _same(past.text, target.text):
        return True
    text = target.text.strip()
    return len(text) >= QUOTABLE and text in past.text


def _same(one: str, other: str) -> bool:
    return one.strip().casefold() == other.strip().casefold()
