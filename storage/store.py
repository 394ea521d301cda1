"""The store in a folder: `STORE/KIND/FINGERPRINT/` is an artifact, complete from the moment it has that name."""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from filelock import Timeout

from storage.errors import Busy, DamagedManifest, NewerManifest, UnreadableManifest, UserError, space_needed
from storage.files import read_json, replace_folder, require_writable, sync, user_path
from storage.integrity import FOLDER as VERIFIED
from storage.integrity import Damaged, Verification
from storage.locks import WriterLock, is_held
from storage.manifest import MANIFEST_NAME, InputRef, Manifest, Shard
from storage.source_digests import DigestCache
from storage.staging import FAILURE, RECORDS, Basis, Staging

STAGING, ASIDE = ".staging-", ".aside-"
ANOTHER_STORE = "name a folder that you can write to, with --store or `store`"
Progress = Literal["absent", "running", "failed", "interrupted"]


@dataclass(frozen=True)
class Artifact:
    """A committed artifact.

    Attributes:
        home: The folder of its files on this machine; those of a remote store are there once they have been asked for.
        manifest: What is known of it.
        location: Where the store has it: a folder or a URI, for people to read.
        fetch: Brings shards into `home` and verifies them; called before any file is handed out.
    """

    home: Path
    manifest: Manifest
    location: str
    fetch: Callable[[list[Shard]], None] = field(repr=False, compare=False)

    @property
    def folder(self) -> Path:
        """Its folder, with every file in it.

        Raises:
            Damaged: A file is not the one that the manifest names.
        """
        self.fetch(list(self.manifest.shards))
        return self.home

    def shards(self, prefix: str) -> list[Shard]:
        """The shards whose path starts with `prefix`, in order."""
        return [shard for shard in self.manifest.shards if shard.path.startswith(prefix)]

    def files(self, prefix: str) -> list[Path]:
        """The files of the shards whose path starts with `prefix`, in order.

        Raises:
            Damaged: A file is not the one that the manifest names.
        """
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
        self.verification = Verification(root / VERIFIED)

    @classmethod
    def open(cls, uri: str) -> Store:
        """The store at `uri`: a folder that need not exist yet, or a prefix on an object store such as s3://bucket/prefix.

        Raises:
            UserError: There is a file in its place, or it cannot be listed. Or the remote store cannot be used: its
                library is missing, or the URI has credentials in it.
        """
        scheme, separator, rest = uri.partition("://")
        if separator and scheme != "file":
            from storage.remote import RemoteStore  # late: a folder needs no network library

            return RemoteStore.at(uri)
        named = rest if separator else uri
        with user_path(named, ANOTHER_STORE):
            root = Path(named).expanduser().resolve()
            nearest = next(path for path in (root, *root.parents) if path.exists())
            if not nearest.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, "it is a file" if nearest == root else f"{nearest} is a file")
            if nearest == root:
                next(root.iterdir(), None)  # one that may not be listed shows here
        return cls(root)

    def require_writable(self) -> None:
        """Make sure that artifacts can be written, before hours go into one.

        Raises:
            UserError: They cannot.
        """
        require_writable(self.root, ANOTHER_STORE)

    def folder(self, kind: str, fingerprint: str) -> Path:
        """Where this artifact stands on this machine once it is complete."""
        return self.root.joinpath(kind, fingerprint)

    def location(self, kind: str, fingerprint: str) -> str:
        """Where the store has this artifact, for people to read."""
        return str(self.folder(kind, fingerprint))

    def find(self, kind: str, fingerprint: str) -> Artifact | None:
        """Return the artifact, or None where there is none; one with a damaged manifest counts as absent.

        Raises:
            NewerManifest: A newer version wrote it.
        """
        folder = self.folder(kind, fingerprint)
        try:
            manifest = self._manifest(kind, fingerprint)
        except DamagedManifest:
            return None
        if manifest is None:
            return None
        home = folder / manifest.generation
        return Artifact(home, manifest, str(folder), partial(self._verify, home, manifest))

    def look_again(self, kind: str, fingerprint: str) -> None:
        """Forget what is remembered of an artifact, for a reader whose looks contradict each other."""

    def successor(self, artifact: Artifact) -> Artifact | None:
        """Return the artifact that has taken another's place since that was found, or None.

        A reader that found the old manifest and then looks at the new files would believe that they are damaged.
        """
        kind, fingerprint = artifact.manifest.kind, artifact.manifest.fingerprint
        self.look_again(kind, fingerprint)
        current = self.find(kind, fingerprint)
        return current if current and current.manifest != artifact.manifest else None

    def fault(self, artifact: Artifact) -> str:
        """Return which file of a committed artifact is missing or damaged, or "".

        Existence and size of every file are compared, and the bytes of those that were touched since they were
        verified. Nothing is written.
        """
        return self.verification.fault(artifact.home, artifact.manifest, artifact.manifest.shards, read=False)

    def verify(self, artifact: Artifact) -> str:
        """As `fault`, and compare the bytes of every file, whatever is remembered; remember the result."""
        shards = artifact.manifest.shards
        fault = self.verification.fault(artifact.home, artifact.manifest, shards, read=True, everything=True)
        self.verification.remember(artifact.manifest)
        return fault

    def _verify(self, home: Path, manifest: Manifest, shards: list[Shard]) -> None:
        if fault := self.verification.fault(home, manifest, shards, read=True):
            if self._manifest(manifest.kind, manifest.fingerprint) != manifest:
                raise UserError("it was replaced while it was read", str(home), "run the same command again")
            raise Damaged(fault, str(home), "make it again: `nextquill verify --repair`, or run its stage again")

    def newest_first(self, kind: str) -> Iterator[Artifact]:
        """All complete artifacts of this kind, the last committed first."""
        for _, name in sorted(self._committed(kind), reverse=True):
            with suppress(NewerManifest):
                if artifact := self.find(kind, name):
                    yield artifact

    def _committed(self, kind: str) -> Iterator[tuple[int, str]]:
        """When each artifact of this kind was committed, in nanoseconds, and its fingerprint.

        Raises:
            UserError: The folder of this kind cannot be listed.
        """
        folder = self.root / kind
        try:
            names = [path.name for path in folder.iterdir() if path.name[0] != "."]
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise UserError(f"cannot be listed ({error.strerror})", str(folder), "allow yourself to read it") from None
        for name in names:
            path = folder / name / MANIFEST_NAME
            try:
                yield path.lstat().st_mtime_ns, name
            except PermissionError:
                yield 0, name  # reading it will say so
            except OSError:
                continue  # no manifest, or one that is a link to nowhere

    @contextmanager
    def write(self, kind: str, fingerprint: str, basis: Basis, *, restart: bool = False) -> Iterator[Staging]:
        """Open the artifact's staging folder as its only writer; call `commit` when `Staging.seal` has been called.

        What an earlier, interrupted run finished is still there, unless `restart` is set or `basis` is no longer what
        it was. An error leaves a note in the folder and passes on. An interruption leaves none.

        Raises:
            Busy: Another process is writing this artifact.
        """
        with self.alone(kind, fingerprint, patience=2):
            folder = self.staging_folder(kind, fingerprint)
            if restart or not (Basis.of(folder) == basis or Staging.is_complete(folder, basis.inputs)):
                shutil.rmtree(folder, ignore_errors=True)
            staging = Staging(folder, basis)
            try:
                with space_needed(self.root):
                    yield staging
            except Exception as error:
                with suppress(OSError):  # the note matters less than the error
                    staging.fail(error)
                raise

    def commit(self, kind: str, fingerprint: str) -> Artifact:
        """Give a sealed staging folder its name, in place of an older artifact of the same fingerprint.

        Until the rename, a killed run finds sealed work; from the rename on it finds the artifact. What is removed
        before is not needed to find either, so no moment loses work.
        """
        staging, folder = self.staging_folder(kind, fingerprint), self.folder(kind, fingerprint)
        shutil.rmtree(staging / RECORDS, ignore_errors=True)
        sync(staging)
        aside = self._aside(staging)
        shutil.rmtree(aside, ignore_errors=True)
        replace_folder(staging, folder, aside)
        sync(folder.parent)
        shutil.rmtree(aside, ignore_errors=True)
        artifact = self.find(kind, fingerprint)
        if artifact is None:
            raise RuntimeError(f"{folder}: committed without a manifest")
        self.verification.trust(artifact.home, artifact.manifest)
        return artifact

    def progress(self, kind: str, fingerprint: str) -> tuple[Progress, str]:
        """Return how unfinished work on an artifact stands; nothing is locked or written.

        Returns:
            "running" while a writer holds the lock; "failed", with its message, or "interrupted" for work that
            stopped; "absent" where there is none.
        """
        if is_held(self._lock_path(kind, fingerprint)):
            return "running", ""
        staging = self.staging_folder(kind, fingerprint)
        try:
            unfinished = staging.is_dir()
        except PermissionError:  # of the folder above; reading the manifest says so
            unfinished = False
        if not unfinished:
            return "absent", ""
        try:
            return "failed", str(read_json(staging / FAILURE)["message"])
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            return "interrupted", ""

    def sweep(self, kind: str, fingerprint: str) -> None:
        """Remove what a writer that was killed after its commit left beside the artifact."""
        aside = self._aside(self.staging_folder(kind, fingerprint))
        if not (aside.exists() or self.staging_folder(kind, fingerprint).exists()):
            return
        with suppress(Busy, OSError), self.alone(kind, fingerprint, patience=0):
            shutil.rmtree(self.set_aside(self.staging_folder(kind, fingerprint)), ignore_errors=True)

    def remove_with_descendants(self, doomed: Iterable[InputRef]) -> list[str]:
        """Remove artifacts, all that was made from them, and unfinished work on what would be.

        Returns:
            What was removed, as `KIND/FINGERPRINT`, the last made first.

        Raises:
            UserError: Another process is making one of them; what can be removed then is.
        """
        gone = {(ref.kind, ref.fingerprint) for ref in doomed}
        lineage = dict(entry for kind in self.kinds() for entry in self._lineage(kind))
        if gone:  # an artifact that cannot say what it was made from may hold what must go
            gone |= {(kind, name) for kind in self.kinds() for name in self.unreadable(kind)}
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

    def unreadable(self, kind: str) -> dict[str, str]:
        """Return what is wrong with each artifact of this kind whose manifest cannot be read, by fingerprint."""
        faults = {name: self.manifest_fault(kind, name) for _, name in self._committed(kind)}
        return {name: fault for name, fault in faults.items() if fault}

    def manifest_fault(self, kind: str, fingerprint: str) -> str:
        """Return what is wrong with an artifact's manifest, or "" where there is nothing wrong or no artifact."""
        try:
            self._manifest(kind, fingerprint)
        except UnreadableManifest as error:
            return error.what
        return ""

    def _manifest(self, kind: str, fingerprint: str) -> Manifest | None:
        return Manifest.read(self.folder(kind, fingerprint))

    def unfinished(self, kind: str) -> list[InputRef]:
        """Unfinished work of this kind; what it will hold is not known yet."""
        folders = (self.root / kind).glob(f"{STAGING}*")
        return [InputRef(kind, path.name.removeprefix(STAGING), "") for path in folders if path.is_dir()]

    def unnamed(self, kind: str) -> dict[str, tuple[int, float]]:
        """Return the files in the store of which neither a manifest nor a staging folder here tells.

        An interrupted upload or removal leaves them in an object store; a store in a folder has none.

        Returns:
            Their bytes, and the seconds since the last of them was written, by fingerprint.
        """
        return {}

    def set_aside(self, folder: Path) -> Path:
        """Take a folder's name away in one step, so that it is never an artifact with a part missing."""
        aside = self._aside(folder)
        if folder.exists():
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
        return aside

    def _aside(self, folder: Path) -> Path:
        return folder.with_name(f"{ASIDE}{folder.name.lstrip('.')}")

    def remove(self, kind: str, fingerprint: str) -> None:
        """Take an artifact and unfinished work on it away; the caller is its only writer."""
        for folder in (self.folder(kind, fingerprint), self.staging_folder(kind, fingerprint)):
            self.set_aside(folder)
        if (self.root / kind).is_dir():
            sync(self.root / kind)
        self.verification.forget(kind, fingerprint)

    def remove_unfinished(self, kind: str, fingerprint: str) -> None:
        """Take unfinished work on an artifact away; the caller is its only writer, and the artifact itself stays."""
        self.set_aside(self.staging_folder(kind, fingerprint))

    def kinds(self) -> set[str]:
        """Names of the kinds of which there is something."""
        return {path.name for path in self.root.glob("[!.]*") if path.is_dir()}

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
        return self.raw_digests(save=True)

    def raw_digests(self, *, save: bool) -> DigestCache:
        """Return the digests of raw files that this store remembers; new ones are written to it only with `save`."""
        return DigestCache(self.root / ".digests.json", save=save)

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
        lock = WriterLock(self._lock_path(kind, fingerprint))
        with space_needed(self.root):
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

    def _lock_path(self, kind: str, fingerprint: str) -> Path:
        return self.root / kind / f".lock-{fingerprint}"
