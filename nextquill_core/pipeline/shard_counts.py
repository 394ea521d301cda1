"""Counts of a stage that writes its artifact in shards, so that an interrupted stage counts what was done before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from storage import Staging, UserError
from storage.files import write_json
from storage.stored_json import read_checked


class ShardCounts:
    """Sums of counts over all shards, those of earlier processes included.

    The counts of a shard stand in the scratch folder, which goes when the artifact is complete.

    Args:
        staging: Folder of the new artifact.
        names: The counts, which begin at 0.

    Attributes:
        total: The sums so far.
    """

    def __init__(self, staging: Staging, *names: str) -> None:
        self._staging = staging
        self.total: Counter[str] = Counter(dict.fromkeys(names, 0))

    def add(self, shard: str, counts: Mapping[str, int]) -> None:
        """Add and store the counts of a shard; call it before the shard's file is finished.

        Args:
            shard: Name of the shard; a slash is allowed.
            counts: The counts.
        """
        write_json(self._staging.scratch / self._name(shard), dict(counts))
        self.total.update(counts)

    def restore(self, shard: str) -> bool:
        """Add the counts of a shard that an earlier process finished.

        Args:
            shard: Name of the shard.

        Returns:
            Whether they are known; if not, the shard is to be made again, which gives the same bytes.
        """
        try:
            counts = read_checked(self._staging.scratch / self._name(shard), dict[str, int], "make the shard again")
        except UserError:
            return False
        self.total.update(counts)
        return True

    def _name(self, shard: str) -> str:
        return f"counts-{shard.replace('/', '-')}.json"
