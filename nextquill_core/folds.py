"""Which fold of the users somebody belongs to.

Cross-fitting scores each user by a model that was trained without that user. The fold follows from the id alone: no
list is kept, an ingest with more users moves nobody who was there before, and a person with reviews in two categories
is in one fold for both. Needs the standard library and nothing else, since ranks and scorers import it.
"""

from __future__ import annotations

import hashlib


def fold_of(user_id: str, folds: int) -> int:
    """The fold of a user, the same on every machine and in every process.

    Ids are spread by the first eight bytes of their SHA-256, each fold being equally likely: of n users, n / `folds`
    are expected in each, give or take about √(n / `folds`). A fold of a very small cohort may be empty.

    Args:
        user_id: As it stands in the examples, so the pseudonym where ids are replaced.
        folds: How many there are.

    Returns:
        A number from 0 to `folds` - 1.

    Raises:
        ValueError: `folds` is less than 1.
    """
    if folds < 1:
        raise ValueError(f"there must be one fold at least, not {folds}")
    return int.from_bytes(hashlib.sha256(user_id.encode()).digest()[:8], "big") % folds
