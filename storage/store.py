"""The store in a folder: `STORE/KIND/FINGERPRINT/` is an artifact, complete from the moment it has that name."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from storage.digests import DigestCache
from storage.errors import Busy, UserError
from storage.manifest import MANIFEST_NAME, InputRef, Manifest, Shard
from storage.staging import FAILURE, RECORDS, Basis, Staging

STAGING, ASIDE = ".staging-", ".aside-"
Progress = Literal["absent", "running", "failed", "interrupted"]


def _all_here(shards: list[Shard]) -> None:
    """Nothing has to be brought where the store is a folder."""


@dataclass(frozen=True)
class Artifact:
    """A committed artifact.

    Attributes:
        home: The folder of its files on this machine; those of a remote store are there once they have been asked for.
        manifest: What is known of it.
        location: Where the store has it: a folder or a URI, for people to read.
        fetch: Brings shards into `home`; where home is the store's own folder there is nothing to bring.
    """

    home: Path
    manifest: Manifest
    location: str
    fetch: Callable[[list[Shard]], None] = field(default=_all_here, repr=False, compare=False)

    @property
    def folder(self) -> Path:
        """Its folder, with every file in it."""
        self.fetch(list(self.manifest.shards))
        return self.home

    def shards(self, prefix: str) -> list[Shard]:
        """The shards whose path starts with `prefix`, in order."""
        return [shard for shard in self.manifest.shards if shard.path.startswith(prefix)]

    def files(self, prefix: str) -> list[Path]:
        """Their files."""
        shards = self.shards(prefix)
        self.fetch(shards)
        return [self.home / shard.path for shard in shards]

    @property
    def ref(self) -> InputRef:
        """How another artifact's manifest refers to this one."""
        return InputRef(self.manifest.kind, self.manifest.fingerprint, self.manifest.content)


class Store:
    """A folder of artifacts. Readers need no lock; each artifact has one writer at a time."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def open(cls, uri: str) -> Store:
        """The store at `uri`: a folder that need not exist yet, or a prefix on an object store such as s3://bucket/prefix.

        Raises:
            UserError: The remote store cannot be used: its library is missing, or the URI has credentials in it.
        """
        scheme, separator, rest = uri.partition("://")
        if separator and scheme != "file":
            from storage.remote import RemoteStore  # late: a folder needs no network library

            return RemoteStore.at(uri)
        return cls(Path(rest if separator else uri).expanduser().resolve())

    def folder(self, kind: str, fingerprint: str) -> Path:
        """Where this artifact stands on this machine once it is complete."""
        return self.root.joinpath(kind, fingerprint)

    def location(self, kind: str, fingerprint: str) -> str:
        """Where the store has this artifact, for people to read."""
        return str(self.folder(kind, fingerprint))

    def find(self, kind: str, fingerprint: str) -> Artifact | None:
        """The artifact, if it is complete."""
        folder = self.folder(kind, fingerprint)
        manifest = Manifest.read(folder)
        return Artifact(folder / manifest.generation, manifest, str(folder)) if manifest else None

    def newest_first(self, kind: str) -> Iterator[Artifact]:
        """All complete artifacts of this kind, the last committed first."""
        for _, name in sorted(self._committed(kind), reverse=True):
            if artifact := self.find(kind, name):
                yield artifact

    def _committed(self, kind: str) -> Iterator[tuple[int, str]]:
        """When each artifact of this kind was committed, in nanoseconds, and its fingerprint."""
        for folder in (self.root / kind).glob("[!.]*"):
            with suppress(FileNotFoundError, NotADirectoryError):
                yield (folder / MANIFEST_NAME).stat().st_mtime_ns, folder.name

    @contextmanager
    def write(self, kind: str, fingerprint: str, basis: Basis, *, restart: bool = False) -> Iterator[Staging]:
        """Open the artifact's staging folder as its only writer; call `commit` when `Staging.seal` has been called.

        What an earlier, interrupted run finished is still there, unless `restart` is set or `basis` is no longer what
        it was. An error leaves a note in the folder and passes on.

        Raises:
            Busy: Another process is writing this artifact.
        """
        with self.alone(kind, fingerprint, patience=2):
            folder = self.staging_folder(kind, fingerprint)
            if restart or Basis.of(folder) != basis:
                shutil.rmtree(folder, ignore_errors=True)
            staging = Staging(folder, basis)
            try:
                yield staging
            except BaseException as error:
                staging.fail(error)
                raise

    def commit(self, kind: str, fingerprint: str) -> Artifact:
        """Give a sealed staging folder its name, in the place of an older artifact of the same fingerprint."""
        staging, folder = self.staging_folder(kind, fingerprint), self.folder(kind, fingerprint)
        shutil.rmtree(staging / RECORDS, ignore_errors=True)
        replaced = self.set_aside(folder)
        staging.rename(folder)
        shutil.rmtree(replaced, ignore_errors=True)
        artifact = self.find(kind, fingerprint)
        if artifact is None:
            raise RuntimeError(f"{folder}: committed without a manifest")
        return artifact

    def progress(self, kind: str, fingerprint: str) -> tuple[Progress, str]:
        """What stands in the way of an artifact that is not there: nobody, a writer at work, or one that stopped."""
        staging = self.staging_folder(kind, fingerprint)
        if not staging.is_dir():
            return "absent", ""
        try:
            with self._lock(kind, fingerprint).acquire(timeout=0):
                pass
        except Timeout:
            return "running", ""
        try:
            return "failed", json.loads((staging / FAILURE).read_text(encoding="utf-8"))["message"]
        except (OSError, ValueError, KeyError):
            return "interrupted", ""

    def remove_with_descendants(self, doomed: Iterable[InputRef]) -> list[str]:
        """Remove artifacts, all that was made from them, and unfinished work on what would be.

        Returns:
            What was removed, as `KIND/FINGERPRINT`, the last made first.

        Raises:
            UserError: Another process is making one of them; what can be removed then is.
        """
        gone = {(ref.kind, ref.fingerprint) for ref in doomed}
        lineage = dict(entry for kind in self.kinds() for entry in self._lineage(kind))
        while grown := {name for name, inputs in lineage.items() if inputs & gone} - gone:
            gone |= grown
        removed, busy = [], []
        for kind, name in sorted(gone, key=lambda entry: self._age(*entry)):
            try:
                with self.alone(kind, name, patience=0):
                    self.remove(kind, name)
                removed.append(f"{kind}/{name}")
            except Busy:
                busy.append(f"{kind}/{name}")
        for leftover in self.root.glob(f"*/{ASIDE}*"):  # those of a process that was killed here as well
            shutil.rmtree(leftover)
        if busy:
            raise UserError(
                f"{', '.join(busy)} must be removed, but is being made", str(self.root), "stop that process"
            )
        return removed

    def unfinished(self, kind: str) -> list[InputRef]:
        """Unfinished work of this kind; what it will hold is not known yet."""
        folders = (self.root / kind).glob(f"{STAGING}*")
        return [InputRef(kind, path.name.removeprefix(STAGING), "") for path in folders if path.is_dir()]

    def set_aside(self, folder: Path) -> Path:
        """Take a folder's name away in one step, so that it is never an artifact with a part missing."""
        aside = folder.with_name(f"{ASIDE}{folder.name.lstrip('.')}")
        if folder.exists():
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
        return aside

    def remove(self, kind: str, fingerprint: str) -> None:
        """Take an artifact and unfinished work on it away; the caller is its only writer."""
        for folder in (self.folder(kind, fingerprint), self.staging_folder(kind, fingerprint)):
            self.set_aside(folder)

    def kinds(self) -> set[str]:
        """Names of the kinds of which there is something."""
        return {path.name for path in self.root.glob("*") if path.is_dir()}

    def _lineage(self, kind: str) -> Iterator[tuple[tuple[str, str], set[tuple[str, str]]]]:
        """Each artifact and each unfinished work of a kind, with what it is made from."""
        complete = set()
        for artifact in self.newest_first(kind):
            complete.add(artifact.manifest.fingerprint)
            inputs = {(ref.kind, ref.fingerprint) for ref in artifact.manifest.inputs}
            yield (kind, artifact.manifest.fingerprint), inputs
        for ref in self.unfinished(kind):
            basis = Basis.of(self.staging_folder(kind, ref.fingerprint)) or Basis()
            if ref.fingerprint not in complete:
                yield (kind, ref.fingerprint), {(origin.kind, origin.fingerprint) for origin in basis.inputs}

    def _age(self, kind: str, fingerprint: str) -> float:
        folder = self.folder(kind, fingerprint)
        return time.time() - folder.stat().st_mtime if folder.exists() else 0.0

    @property
    def digests(self) -> DigestCache:
        """Digests of raw files, remembered in this store."""
        return DigestCache(self.root / ".digests.json")

    def staging_folder(self, kind: str, fingerprint: str) -> Path:
        """Where the artifact is made, until it is committed."""
        return self.root / kind / f"{STAGING}{fingerprint}"

    @contextmanager
    def alone(self, kind: str, fingerprint: str, patience: float) -> Iterator[None]:
        """Be this artifact's only writer.

        Args:
            kind: Of what.
            fingerprint: Of what.
            patience: Seconds to wait for another to finish.

        Raises:
            Busy: Another process still is.
        """
        lock = self._lock(kind, fingerprint)
        try:
            lock.acquire(timeout=patience)
        except Timeout:
            raise Busy(
                f"another process is making {kind} {fingerprint}", str(self.root), "wait for it, or stop it"
            ) from None
        try:
            yield
        finally:
            lock.release()

    def _lock(self, kind: str, fingerprint: str) -> FileLock:
        path = self.root / kind / f".lock-{fingerprint}"
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(path)
