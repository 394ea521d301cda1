"""The folder for copies of what is kept elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

CACHE = "NEXTQUILL_CACHE"


def cache_folder() -> Path:
    """Return $NEXTQUILL_CACHE, or `~/.cache/nextquill`."""
    return Path(os.environ.get(CACHE) or "~/.cache/nextquill").expanduser().resolve()
