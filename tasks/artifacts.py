"""Keys of artifacts in Prefect's UI, which keeps a history for each key: runs on other data have other keys."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from nextquill_core.config import Config
from tasks.progress import artifact_key

LONGEST = 60


def data_key(name: str, config: Config) -> str:
    """Return the key of an artifact about one configuration's data: `report-books`, or `report-books-cds`.

    Args:
        name: What the artifact is.
        config: The configuration; its categories become part of the key.
    """
    return artifact_key(name, _slug([raw.category for raw in config.ingest.inputs]))


def _slug(categories: Sequence[str]) -> str:
    """Return the categories in the letters of a key; a digest keeps those apart that would look the same."""
    words = [artifact_key(category) for category in categories]
    text = "-".join(words)
    if len(text) <= LONGEST and all(map(_same_letters, words, categories)):
        return text
    digest = hashlib.sha256("\n".join(categories).encode()).hexdigest()[:8]
    return f"{text[:LONGEST].strip('-')}-{digest}".strip("-")


def _same_letters(word: str, category: str) -> bool:
    return word.replace("-", "") == "".join(filter(str.isalnum, category.lower()))
