"""What is in a store, what of it is still needed, and taking the rest away."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from storage.errors import Busy
from storage.manifest import InputRef, Manifest
from storage.pointers import KIND as POINTERS
from storage.staging import Basis
from storage.store import ASIDE, Artifact, Progress, Store

Name = tuple[str, str]  # kind, fingerprint
State = Literal["complete", "damaged", "running", "failed", "interrupted", "removed"]
DAY_S = 86_400.0
UNFINISHED = ("running", "failed", "interrupted")


@dataclass(frozen=True)
class Held:
    """Something in a store.

    Attributes:
        state: Of an artifact `complete`, or `damaged` where its manifest cannot be read; of unfinished work what became
            of it; `removed` is what a removal that was killed left behind.
        bytes: Of its files; parts that artifacts have in common by hard links count for each.
        age_s: Seconds since it was made, or since unfinished work was last touched.
        inputs: What it is made from.
        manifest: Of an artifact.
        linked: Whether a symbolic link stands in its place; such things are looked at and never removed.
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
        """Kind and fingerprint."""
        return self.kind, self.fingerprint


class Glance(Store):
    """A store as it stands while somebody looks at it once: no manifest is read twice.

    Args:
        store: What is looked at; a folder or a remote store.
    """

    def __init__(self, store: Store) -> None:
        super().__init__(store.root)
        self._store = store
        self._faults: dict[Name, str] = {}
        self._found: dict[Name, Artifact | None] = {}
        self._listed: dict[str, tuple[list[Artifact], Iterator[Artifact]]] = {}

    def location(self, kind: str, fingerprint: str) -> str:
        """As the store says."""
        return self._store.location(kind, fingerprint)

    def find(self, kind: str, fingerprint: str) -> Artifact | None:
        """As the store found it first."""
        if (kind, fingerprint) not in self._found:
            self._found[kind, fingerprint] = self._store.find(kind, fingerprint)
        return self._found[kind, fingerprint]

    def newest_first(self, kind: str) -> Iterator[Artifact]:
        """As the store lists them; read as far as somebody wants to know."""
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
        """As the store found it first."""
        name = (artifact.manifest.kind, artifact.manifest.fingerprint)
        if name not in self._faults:
            self._faults[name] = self._store.fault(artifact)
        return self._faults[name]

    def manifest_fault(self, kind: str, fingerprint: str) -> str:
        """As the store says now."""
        return self._store.manifest_fault(kind, fingerprint)

    def look_again(self, kind: str, fingerprint: str) -> None:
        """Ask the store once more for this artifact."""
        self._found.pop((kind, fingerprint), None)
        self._faults.pop((kind, fingerprint), None)

    def progress(self, kind: str, fingerprint: str) -> tuple[Progress, str]:
        """As the store says now."""
        return self._store.progress(kind, fingerprint)


def inventory(store: Store) -> list[Held]:
    """Return everything in a store, kind by kind: the newest artifact first, damaged ones, then unfinished work."""
    found: list[Held] = []
    for kind in sorted(name for name in store.kinds() if name != POINTERS and name[0] != "."):
        linked = (store.root / kind).is_symlink()
        for artifact in store.newest_first(kind):
            manifest = artifact.manifest
            folder = store.folder(kind, manifest.fingerprint)
            found.append(
                Held(
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
            measured = _measured(folder) if folder.exists() else (0, 0.0)
            found.append(Held(kind, name, "damaged", *measured, linked=linked or folder.is_symlink()))
        found += (_unfinished(store, ref, linked) for ref in store.unfinished(kind))
        for name, (size, age) in store.unnamed(kind).items():
            shown: State = "running" if store.progress(kind, name)[0] == "running" else "interrupted"
            found.append(Held(kind, name, shown, size, age))
        for leftover in (store.root / kind).glob(f"{ASIDE}*"):
            found.append(Held(kind, leftover.name.removeprefix(ASIDE), "removed", *_measured(leftover), linked=linked))
    return found


def damaged(store: Store) -> Iterator[tuple[Name, str]]:
    """Compare every file of every artifact with its manifest.

    Yields:
        Each artifact as it is done, and what is wrong with it; "" for nothing.
    """
    for kind in sorted(name for name in store.kinds() if name != POINTERS):
        for artifact in store.newest_first(kind):
            fault = store.verify(artifact)
            while fault and (newer := store.successor(artifact)):
                artifact = newer
                fault = store.verify(artifact)
            yield (kind, artifact.manifest.fingerprint), fault
        for name, fault in store.unreadable(kind).items():
            yield (kind, name), fault


def dependents(found: Iterable[Held], names: Iterable[Name]) -> set[Name]:
    """Return the artifacts that were made from any of these, directly or not."""
    children: dict[Name, set[Name]] = {}
    for held in found:
        for origin in held.inputs:
            children.setdefault(origin, set()).add(held.name)
    waiting, reached = list(names), set[Name]()
    while waiting:
        for child in children.get(waiting.pop(), set()) - reached:
            reached.add(child)
            waiting.append(child)
    return reached


def needed(found: Iterable[Held], wanted: Iterable[Name], *, younger_than_s: float = 0.0) -> set[Name]:
    """What has to stay: what is wanted, being made, young or linked, and everything that any of it is made from.

    Args:
        found: As from `inventory`.
        wanted: What somebody asks for.
        younger_than_s: Artifacts of a lower age stay.
    """
    origins: dict[Name, frozenset[Name]] = {}
    waiting = list(wanted)
    asked = set(waiting)
    for held in found:
        origins[held.name] = origins.get(held.name, frozenset()) | held.inputs
        young = held.state == "complete" and held.age_s < younger_than_s
        if held.state == "running" or young or held.linked or (held.state in UNFINISHED and held.age_s < DAY_S):
            waiting.append(held.name)
    kept: set[Name] = set()
    while waiting:
        name = waiting.pop()
        if name not in kept:
            kept.add(name)
            waiting += origins.get(name, ())
    return kept | asked


def removable(found: Iterable[Held], kept: set[Name]) -> list[Held]:
    """What may go, in the order in which it has to: nothing before what is made from it."""
    doomed = [held for held in found if not held.linked and (held.state == "removed" or held.name not in kept)]
    origins = {held.name: held.inputs for held in doomed if held.state != "removed"}
    depths: dict[Name, int] = {}

    def depth(name: Name) -> int:
        if name not in depths:
            depths[name] = 0  # a manifest that named itself would lead round and round
            depths[name] = 1 + max((depth(origin) for origin in origins.get(name, ())), default=0)
        return depths[name]

    return sorted(doomed, key=lambda held: (-depth(held.name), held.name))


def remove(store: Store, doomed: Iterable[Held]) -> Iterator[tuple[Held, bool]]:
    """Remove things one by one, and say of each whether it is gone; what somebody is making now stays.

    An artifact loses its name before it loses a file, so one that is half removed is none.
    """
    for held in doomed:
        if held.state == "removed":
            shutil.rmtree(store.root / held.kind / f"{ASIDE}{held.fingerprint}", ignore_errors=True)
            yield held, True
            continue
        try:
            with store.alone(held.kind, held.fingerprint, patience=0):
                if held.state in ("complete", "damaged"):
                    store.remove(held.kind, held.fingerprint)
                else:
                    store.remove_unfinished(held.kind, held.fingerprint)
        except Busy:
            yield held, False
            continue
        for aside in (store.folder(held.kind, held.fingerprint), store.staging_folder(held.kind, held.fingerprint)):
            shutil.rmtree(aside.with_name(f"{ASIDE}{aside.name.lstrip('.')}"), ignore_errors=True)
        yield held, True


def _unfinished(store: Store, ref: InputRef, linked: bool) -> Held:
    state, _ = store.progress(ref.kind, ref.fingerprint)
    folder = store.staging_folder(ref.kind, ref.fingerprint)
    basis = Basis.of(folder) or Basis()
    size, age = _measured(folder)
    shown: State = "interrupted" if state == "absent" else state
    return Held(ref.kind, ref.fingerprint, shown, size, age, _names(basis.inputs), None, linked or folder.is_symlink())


def _names(refs: Iterable[InputRef]) -> frozenset[Name]:
    return frozenset((ref.kind, ref.fingerprint) for ref in refs)


def _age(manifest: Manifest, folder: Path) -> float:
    try:
        made = datetime.fromisoformat(manifest.provenance["end"]).timestamp()
    except (KeyError, ValueError, TypeError):
        try:
            made = folder.stat().st_mtime
        except OSError:
            return 0.0
    return max(0.0, time.time() - made)


def _measured(folder: Path) -> tuple[int, float]:
    """Bytes in a folder and seconds since anything in it changed; links are not followed."""
    size, newest = 0, folder.lstat().st_mtime
    for path in folder.rglob("*"):
        try:
            status = path.lstat()
        except OSError:
            continue  # its writer has just renamed it
        size += status.st_size if path.is_file() else 0
        newest = max(newest, status.st_mtime)
    return size, max(0.0, time.time() - newest)


def total_bytes(found: Iterable[Held]) -> int:
    """Of all of them."""
    return sum(held.bytes for held in found)


def by_kind(found: Iterable[Held]) -> Mapping[str, tuple[int, int]]:
    """(count, bytes) of each kind."""
    sums: dict[str, tuple[int, int]] = {}
    for held in found:
        count, size = sums.get(held.kind, (0, 0))
        sums[held.kind] = (count + 1, size + held.bytes)
    return sums
