"""The fold of each user in cross-fitting, which scores a user by a model that was trained without that user.

The fold follows from the id alone. So no list is stored, an ingest with more users changes no user's fold, and a user
with reviews in two categories is in the same fold for both. Only the standard library is needed.
"""

from __future__ import annotations

import hashlib


def fold_of(user_id: str, folds: int) -> int:
    """Return the fold of a user, the same on every machine and in every process.

    The fold is the first eight bytes of the id's SHA-256 modulo `folds`, so all folds are equally likely: each is
    expected to have n / `folds` of n users, give or take about √(n / `folds`). A fold of a very small cohort may be
    empty.

    Args:
        user_id: The id in the examples, which is the pseudonym if ids are replaced.
        folds: Number of folds.

    Returns:
        A number from 0 to `folds` - 1.

    Raises:
        ValueError: `folds` is less than 1.
    """
    if folds < 1:
        raise ValueError(f"there must be at least one fold, not {folds}")
    return int.from_bytes(hashlib.sha256(user_id.encode()).digest()[:8], "big") % folds
