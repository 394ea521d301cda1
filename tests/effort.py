"""How many random trials a test makes: all of them, or a quarter in `make check`."""

from __future__ import annotations

import os

QUICK = "NEXTQUILL_QUICK_TESTS" in os.environ
"""Set by `make fast`, and with it by `make check`."""


def trials(count: int) -> int:
    """Return the number of random trials to make.

    Args:
        count: The number that `make test` makes.
    """
    return max(1, count // 4) if QUICK else count
