"""A store that finds artifacts in a second one, too, and never writes there.

Everything new is written to the first store, and what it has takes precedence: an artifact that was made again there
hides the one of the second store, and what was made from the hidden one is stale.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from storage.errors import UserError
from storage.remote import RemoteStore, open_store
from storage.store import Artifact, Store


def open_stores(write: str, read: str) -> Store:
    """Return the store at `write` that also finds the artifacts of the store at `read`.

    Args:
        write: URI of the store that new artifacts are written to.
        read: URI of the store that is only read.

    Raises:
        UserError: One of them cannot be used, or one lies in the other.
    """
    own, source = open_store(write), open_store(read)
    here, there = (f"{store.location('', '').rstrip('/')}/" for store in (own, source))
    if here.startswith(there) or there.startswith(here):
        what = "the store that is written lies in the one that is only read, or the other way round"
        raise UserError(what, f"{write}, {read}", "set store and read_store to separate places")
    if isinstance(own, RemoteStore):
        return _RemoteReadThrough(own, source)
    return _FolderReadThrough(own, source)


class _ReadThrough(Store):
    """What a store adds to find artifacts in another one.

    Attributes:
        source: The other store. Its records of verified files are kept in the first store.
    """

    _own: Store
    source: Store

    def _add(self, own: Store, source: Store) -> None:
        self._own, self.source = own, source
        source.verification = self.verification

    @property
    def own(self) -> Store:
        """The store that is written, alone."""
        return self._own

    @property
    def name(self) -> str:
        """Both places."""
        return f"{self._own.name} (reads {self.source.name} too)"

    def find(self, kind: str, fingerprint: str) -> Artifact | None:
        """Return the artifact of this store, or else that of the other one."""
        return super().find(kind, fingerprint) or self.source.find(kind, fingerprint)

    def location(self, kind: str, fingerprint: str) -> str:
        """Return the place of this artifact in the store that has it; of one that neither has, in this one."""
        if fingerprint and self._own.find(kind, fingerprint) is None and self.source.find(kind, fingerprint):
            return self.source.location(kind, fingerprint)
        return super().location(kind, fingerprint)

    def refresh(self, kind: str, fingerprint: str) -> None:
        """Drop what is cached of an artifact in both stores."""
        super().refresh(kind, fingerprint)
        self.source.refresh(kind, fingerprint)

    def fault(self, artifact: Artifact) -> str:
        """Return which file of an artifact is missing or damaged, in the store that has it."""
        is_of_source = artifact.home.is_relative_to(self.source.root)
        return self.source.fault(artifact) if is_of_source else super().fault(artifact)

    def newest_first(self, kind: str) -> Iterator[Artifact]:
        """Yield the artifacts of this store, and then those that only the other one has, each the newest first."""
        seen = set()
        for artifact in chain(super().newest_first(kind), self.source.newest_first(kind)):
            if artifact.manifest.fingerprint not in seen:
                seen.add(artifact.manifest.fingerprint)
                yield artifact

    def manifest_fault(self, kind: str, fingerprint: str) -> str:
        """Return what is wrong with an artifact's manifest in this store; if it has none, in the other one."""
        fault = super().manifest_fault(kind, fingerprint)
        if fault or super().find(kind, fingerprint):
            return fault
        return self.source.manifest_fault(kind, fingerprint)

    def note_names(self, folder: str) -> list[str]:
        """Return the names of the notes in a folder of both stores."""
        return list(dict.fromkeys([*super().note_names(folder), *self.source.note_names(folder)]))

    def note_location(self, folder: str, name: str) -> str:
        """Return the place of a note in the store that has it; of one that neither has, in this one."""
        if super().read_note(folder, name) is None and self.source.read_note(folder, name) is not None:
            return self.source.note_location(folder, name)
        return super().note_location(folder, name)

    def read_note(self, folder: str, name: str) -> str | None:
        """Return the text of a note of this store, or else of the other one."""
        own = super().read_note(folder, name)
        return self.source.read_note(folder, name) if own is None else own


class _FolderReadThrough(_ReadThrough):
    """A store in a folder that finds artifacts in another store, too."""

    def __init__(self, own: Store, source: Store) -> None:
        super().__init__(own.root)
        self._add(own, source)


class _RemoteReadThrough(_ReadThrough, RemoteStore):
    """A store in an object store that finds artifacts in another store, too."""

    def __init__(self, own: RemoteStore, source: Store) -> None:
        RemoteStore.__init__(self, own.objects, own.root)
        self._add(own, source)
