"""Contents of a store: what it holds, whether it is intact, what is still needed, and removing the rest."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from storage.errors import Busy, UserError
from storage.manifest import InputRef, Manifest
from storage.pointers import FOLDER as POINTERS
from storage.staging import Basis
from storage.store import ASIDE, Artifact, Progress, Store

Name = tuple[str, str]  # kind, fingerprint
State = Literal["complete", "damaged", "running", "failed", "interrupted", "removed"]
DAY_S = 86_400.0
UNFINISHED = ("running", "failed", "interrupted")


@dataclass(frozen=True)
class StoredItem:
    """An artifact, unfinished work or a leftover in a store.

    Attributes:
        kind: Kind of the artifact.
        fingerprint: Its fingerprint.
        state: `complete` for an artifact, or `damaged` if its manifest cannot be read; the state of unfinished work;
            `removed` for what a killed removal left behind.
        bytes: Size of its files; a file that artifacts share by hard links counts for each.
        age_s: Seconds since it was made, or since unfinished work last changed.
        inputs: The artifacts it is made from.
        manifest: The manifest of an artifact.
        linked: Whether a symbolic link is in its place; links are listed and never removed.
    """

    kind: str
    fingerprint: str
    state: State
    bytes: int
    age_s: float
    inputs: frozenset[Name] = frozenset()
    manifest: Manifest | None = None
    linked: bool = False

    @property
    def name(self) -> Name:
        """The kind and the fingerprint."""
        return self.kind, self.fingerprint


class CachedStore(Store):
    """A read-only view of a store for one look, in which each manifest is read at most once.

    Args:
        store: The store, in a folder or remote.
    """

    def __init__(self, store: Store) -> None:
        super().__init__(store.root)
        self._store = store
        self._faults: dict[Name, str] = {}
        self._found: dict[Name, Artifact | None] = {}
        self._listed: dict[str, tuple[list[Artifact], Iterator[Artifact]]] = {}

    def location(self, kind: str, fingerprint: str) -> str:
        """Return the place of this artifact in the store, for messages."""
        return self._store.location(kind, fingerprint)

    def find(self, kind: str, fingerprint: str) -> Artifact | None:
        """Return the artifact as it was first found, or None if there was none."""
        if (kind, fingerprint) not in self._found:
            self._found[kind, fingerprint] = self._store.find(kind, fingerprint)
        return self._found[kind, fingerprint]

    def newest_first(self, kind: str) -> Iterator[Artifact]:
        """Yield the artifacts of this kind as they were first listed; the listing is read on demand."""
        seen, rest = self._listed.setdefault(kind, ([], self._store.newest_first(kind)))
        index = 0
        while True:
            if index == len(seen):
                artifact = next(rest, None)
                if artifact is None:
                    return
                seen.append(artifact)
                self._found[kind, artifact.manifest.fingerprint] = artifact
            yield seen[index]
            index += 1

    def fault(self, artifact: Artifact) -> str:
        """Return the fault of an artifact as it was first found."""
        name = (artifact.manifest.kind, artifact.manifest.fingerprint)
        if name not in self._faults:
            self._faults[name] = self._store.fault(artifact)
        return self._faults[name]

    def manifest_fault(self, kind: str, fingerprint: str) -> str:
        """Return what is wrong with an artifact's manifest at present."""
        return self._store.manifest_fault(kind, fingerprint)

    def refresh(self, kind: str, fingerprint: str) -> None:
        """Drop what is cached of an artifact, so that the store is asked again."""
        self._found.pop((kind, fingerprint), None)
        self._faults.pop((kind, fingerprint), None)
        self._store.refresh(kind, fingerprint)

    def progress(self, kind: str, fingerprint: str) -> tuple[Progress, str]:
        """Return the state of unfinished work at present."""
        return self._store.progress(kind, fingerprint)

    def note_names(self, folder: str) -> list[str]:
        """Return the names of the notes in a folder at present."""
        return self._store.note_names(folder)

    def note_location(self, folder: str, name: str) -> str:
        """Return the place of a note, for messages."""
        return self._store.note_location(folder, name)

    def read_note(self, folder: str, name: str) -> str | None:
        """Return the text of a note at present, or None if there is none."""
        return self._store.read_note(folder, name)


def inventory(store: Store) -> list[StoredItem]:
    """Return everything in a store, kind by kind: the newest artifact first, damaged ones, then unfinished work.

    A store that is only read besides it is left out, here as in all functions that remove.
    """
    store = store.own
    found: list[StoredItem] = []
    for kind in sorted(name for name in store.kinds() if name != POINTERS and name[0] != "."):
        linked = (store.root / kind).is_symlink()
        for artifact in store.newest_first(kind):
            manifest = artifact.manifest
            folder = store.folder(kind, manifest.fingerprint)
            found.append(
                StoredItem(
                    kind,
                    manifest.fingerprint,
                    "complete",
                    manifest.bytes,
                    _age(manifest, folder),
                    _names(manifest.inputs),
                    manifest,
                    linked or folder.is_symlink(),
                )
            )
        for name in store.unreadable(kind):
            folder = store.folder(kind, name)
            size_and_age = _size_and_age(folder) if folder.exists() else (0, 0.0)
            found.append(StoredItem(kind, name, "damaged", *size_and_age, linked=linked or folder.is_symlink()))
        found += (_unfinished(store, ref, linked) for ref in store.unfinished(kind))
        for name, (size, age) in store.orphans(kind).items():
            state: State = "running" if store.progress(kind, name)[0] == "running" else "interrupted"
            found.append(StoredItem(kind, name, state, size, age))
        for leftover in (store.root / kind).glob(f"{ASIDE}*"):
            name = leftover.name.removeprefix(ASIDE)
            found.append(StoredItem(kind, name, "removed", *_size_and_age(leftover), linked=linked))
    return found


def verify_artifacts(store: Store) -> Iterator[tuple[Name, str]]:
    """Compare every file of every artifact with its manifest.

    Yields:
        The name of each artifact when it is verified, and what is wrong with it, or "".
    """
    store = store.own
    for kind in sorted(name for name in store.kinds() if name != POINTERS):
        for artifact in store.newest_first(kind):
            fault = store.verify(artifact)
            while fault and (newer := store.successor(artifact)):
                artifact = newer
                fault = store.verify(artifact)
            yield (kind, artifact.manifest.fingerprint), fault
        for name, fault in store.unreadable(kind).items():
            yield (kind, name), fault


def dependents(found: Iterable[StoredItem], names: Iterable[Name]) -> set[Name]:
    """Return the artifacts that were made from any of `names`, directly or indirectly."""
    children: dict[Name, set[Name]] = {}
    for item in found:
        for origin in item.inputs:
            children.setdefault(origin, set()).add(item.name)
    waiting, reached = list(names), set[Name]()
    while waiting:
        for child in children.get(waiting.pop(), set()) - reached:
            reached.add(child)
            waiting.append(child)
    return reached


def needed(found: Iterable[StoredItem], wanted: Iterable[Name], *, younger_than_s: float = 0.0) -> set[Name]:
    """Return what must stay: what is wanted, running, recent or linked, and everything that it is made from.

    Args:
        found: The items of the store, from `inventory`.
        wanted: The artifacts that configurations or pointers ask for.
        younger_than_s: Artifacts of a lower age stay.
    """
    origins: dict[Name, frozenset[Name]] = {}
    waiting = list(wanted)
    for item in found:
        origins[item.name] = origins.get(item.name, frozenset()) | item.inputs
        recent = item.state == "complete" and item.age_s < younger_than_s
        if item.state == "running" or recent or item.linked or (item.state in UNFINISHED and item.age_s < DAY_S):
            waiting.append(item.name)
    kept: set[Name] = set()
    while waiting:
        name = waiting.pop()
        if name not in kept:
            kept.add(name)
            waiting += origins.get(name, ())
    return kept


def removable(found: Iterable[StoredItem], kept: set[Name]) -> list[StoredItem]:
    """Return what is not kept, in the order of removal: each artifact after all that are made from it."""
    doomed = [item for item in found if not item.linked and (item.state == "removed" or item.name not in kept)]
    depths = _depths({item.name: item.inputs for item in doomed if item.state != "removed"})
    return sorted(doomed, key=lambda item: (-depths.get(item.name, 1), item.name))


def remove(store: Store, doomed: Iterable[StoredItem]) -> Iterator[tuple[StoredItem, bool]]:
    """Remove items one by one, and yield whether each is gone; an item that a process is making stays.

    An artifact loses its name before it loses a file, so a killed removal leaves no artifact with a part missing.
    """
    for item in doomed:
        if item.state == "removed":
            shutil.rmtree(store.root / item.kind / f"{ASIDE}{item.fingerprint}", ignore_errors=True)
            yield item, True
            continue
        try:
            with store.writer_lock(item.kind, item.fingerprint, patience=0):
                if item.state in ("complete", "damaged"):
                    store.remove(item.kind, item.fingerprint)
                else:
                    store.remove_unfinished(item.kind, item.fingerprint)
        except Busy:
            yield item, False
            continue
        for folder in (store.folder(item.kind, item.fingerprint), store.staging_folder(item.kind, item.fingerprint)):
            shutil.rmtree(store.aside(folder), ignore_errors=True)
        yield item, True


def remove_with_dependents(store: Store, refs: Iterable[InputRef]) -> list[str]:
    """Remove artifacts, everything that was made from them, and unfinished work on what would be.

    Artifacts with an unreadable manifest and files without one go too, because their inputs are unknown.

    Returns:
        What was removed, as `KIND/FINGERPRINT`, the last made first.

    Raises:
        UserError: Another process is making one of them; the others are removed.
    """
    doomed = {(ref.kind, ref.fingerprint) for ref in refs}
    removed, busy = [], []
    if doomed:
        found = inventory(store)
        doomed |= {(kind, name) for kind in store.kinds() for name in (*store.unreadable(kind), *store.orphans(kind))}
        doomed |= dependents(found, doomed)
        depths = _depths({item.name: item.inputs for item in found})
        for kind, name in sorted(doomed, key=lambda name: (-depths.get(name, 1), name)):
            try:
                with store.writer_lock(kind, name, patience=0):
                    store.remove(kind, name)
                removed.append(f"{kind}/{name}")
            except Busy:
                busy.append(f"{kind}/{name}")
    for leftover in store.root.glob(f"*/{ASIDE}*"):  # also those of a process that was killed during a removal
        shutil.rmtree(leftover)
    if busy:
        what = f"{', '.join(busy)} must be removed, but is being made"
        raise UserError(what, str(store.root), "stop that process, then run the same command again")
    return removed


def total_bytes(found: Iterable[StoredItem]) -> int:
    """Return the total size of the items in bytes."""
    return sum(item.bytes for item in found)


def by_kind(found: Iterable[StoredItem]) -> Mapping[str, tuple[int, int]]:
    """Return the number of items of each kind and their size in bytes."""
    sums: dict[str, tuple[int, int]] = {}
    for item in found:
        count, size = sums.get(item.kind, (0, 0))
        sums[item.kind] = (count + 1, size + item.bytes)
    return sums


def _depths(inputs: Mapping[Name, Iterable[Name]]) -> dict[Name, int]:
    """Return the length of the longest chain of inputs that ends in each artifact."""
    depths: dict[Name, int] = {}

    def depth(name: Name) -> int:
        if name not in depths:
            depths[name] = 0  # a damaged manifest may name itself
            depths[name] = 1 + max((depth(origin) for origin in inputs.get(name, ())), default=0)
        return depths[name]

    for name in inputs:
        depth(name)
    return depths


def _unfinished(store: Store, ref: InputRef, linked: bool) -> StoredItem:
    progress, _ = store.progress(ref.kind, ref.fingerprint)
    folder = store.staging_folder(ref.kind, ref.fingerprint)
    basis = Basis.of(folder) or Basis()
    state: State = "interrupted" if progress == "absent" else progress
    return StoredItem(
        ref.kind,
        ref.fingerprint,
        state,
        *_size_and_age(folder),
        _names(basis.inputs),
        linked=linked or folder.is_symlink(),
    )


def _names(refs: Iterable[InputRef]) -> frozenset[Name]:
    return frozenset((ref.kind, ref.fingerprint) for ref in refs)


def _age(manifest: Manifest, folder: Path) -> float:
    made = manifest.ended
    if made is None:
        try:
            made = folder.stat().st_mtime
        except OSError:
            return 0.0
    return max(0.0, time.time() - made)


def _size_and_age(folder: Path) -> tuple[int, float]:
    """Return the bytes in a folder and the seconds since anything in it changed; links are not followed."""
    size, newest = 0, folder.lstat().st_mtime
    for path in folder.rglob("*"):
        try:
            status = path.lstat()
        except OSError:
            continue  # its writer has just renamed it
        size += status.st_size if path.is_file() else 0
        newest = max(newest, status.st_mtime)
    return size, max(0.0, time.time() - newest)
