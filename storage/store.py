"""The store in a folder: `STORE/KIND/FINGERPRINT/` is an artifact, and complete as soon as it has that name."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from filelock import Timeout

from storage.errors import (
    Busy,
    Damaged,
    DamagedManifest,
    NewerManifest,
    UnreadableManifest,
    UserError,
    explain_full_disk,
)
from storage.files import read_json, read_text, replace_folder, require_writable, sync, write_text
from storage.integrity import VERIFIED, Verification
from storage.locks import WriterLock, is_held
from storage.manifest import MANIFEST_NAME, InputRef, Manifest, Shard
from storage.source_digests import DigestCache
from storage.staging import FAILURE, RECORDS, Basis, Staging

STAGING, ASIDE = ".staging-", ".aside-"
"""Name prefixes of folders: unfinished work, and what is being removed."""
ANOTHER_STORE = "name a folder that you can write to, with --store or `store`"
Progress = Literal["absent", "running", "failed", "interrupted"]


@dataclass(frozen=True)
class Artifact:
    """A committed artifact.

    Attributes:
        home: The folder of its files on this machine. Files of a remote store are downloaded to it on demand.
        manifest: Its manifest.
        location: Its place in the store, a folder or a URI, for messages.
        fetch: Makes sure that shards are in `home` and intact; called before the path of any file is returned.
    """

    home: Path
    manifest: Manifest
    location: str
    fetch: Callable[[list[Shard]], None] = field(repr=False, compare=False)

    @property
    def folder(self) -> Path:
        """The folder of its files, all of which are present and intact.

        Raises:
            Damaged: A file differs from its manifest.
        """
        self.fetch(list(self.manifest.shards))
        return self.home

    def shards(self, prefix: str) -> list[Shard]:
        """Return the shards whose path starts with `prefix`, in order."""
        return [shard for shard in self.manifest.shards if shard.path.startswith(prefix)]

    def files(self, prefix: str) -> list[Path]:
        """Return the files of the shards whose path starts with `prefix`, in order; they are present and intact.

        Raises:
            Damaged: A file differs from its manifest.
        """
        shards = self.shards(prefix)
        self.fetch(shards)
        return [self.home / shard.path for shard in shards]

    @property
    def ref(self) -> InputRef:
        """The reference to this artifact in the manifests of artifacts made from it."""
        return InputRef(self.manifest.kind, self.manifest.fingerprint, self.manifest.content)


class Store:
    """A folder of artifacts. Readers need no lock; each artifact has one writer at a time."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.verification = Verification(root / VERIFIED)

    @property
    def own(self) -> Store:
        """The store that is written; another one may be read besides it (`storage.read_through`)."""
        return self

    @property
    def name(self) -> str:
        """The place of the store, for people and as a key."""
        return self.location("", "").rstrip("/")

    def require_writable(self) -> None:
        """Check that artifacts can be written, before hours go into one.

        Raises:
            UserError: They cannot be written.
        """
        require_writable(self.root, ANOTHER_STORE)

    def folder(self, kind: str, fingerprint: str) -> Path:
        """Return the folder that this artifact has on this machine once it is complete."""
        return self.root.joinpath(kind, fingerprint)

    def location(self, kind: str, fingerprint: str) -> str:
        """Return the place of this artifact in the store, for messages."""
        return str(self.folder(kind, fingerprint))

    def find(self, kind: str, fingerprint: str) -> Artifact | None:
        """Return the artifact, or None if there is none; an artifact with a damaged manifest counts as absent.

        Raises:
            NewerManifest: A newer version wrote the manifest.
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

    def refresh(self, kind: str, fingerprint: str) -> None:
        """Drop what is cached of an artifact; a store in a folder caches nothing."""

    def successor(self, artifact: Artifact) -> Artifact | None:
        """Return the artifact that has replaced another one since that was found, or None.

        A reader that has the old manifest and finds the new files would take them for damaged.
        """
        kind, fingerprint = artifact.manifest.kind, artifact.manifest.fingerprint
        self.refresh(kind, fingerprint)
        current = self.find(kind, fingerprint)
        return current if current and current.manifest != artifact.manifest else None

    def fault(self, artifact: Artifact) -> str:
        """Return which file of a committed artifact is missing or damaged, or "".

        Existence and size of every file are checked, and the bytes of those files that changed since they were
        verified. Nothing is written.
        """
        return self.verification.fault(artifact.home, artifact.manifest, artifact.manifest.shards, read=False)

    def verify(self, artifact: Artifact) -> str:
        """Compare the bytes of every file with the manifest and record the result; return the fault as `fault` does."""
        shards = artifact.manifest.shards
        fault = self.verification.fault(artifact.home, artifact.manifest, shards, read=True, everything=True)
        self.verification.remember(artifact.manifest)
        return fault

    def _verify(self, home: Path, manifest: Manifest, shards: list[Shard]) -> None:
        if fault := self.verification.fault(home, manifest, shards, read=True):
            if self._manifest(manifest.kind, manifest.fingerprint) != manifest:
                raise UserError("the artifact was replaced while it was read", str(home), "run the same command again")
            raise Damaged(fault, str(home), "fix it with `nextquill verify --repair`, or run its stage again")

    def newest_first(self, kind: str) -> Iterator[Artifact]:
        """Yield all complete artifacts of this kind, the last committed first."""
        for _, name in sorted(self._committed(kind), reverse=True):
            with suppress(NewerManifest):
                if artifact := self.find(kind, name):
                    yield artifact

    def _committed(self, kind: str) -> Iterator[tuple[int, str]]:
        """Yield the time of commit (ns) and the fingerprint of each artifact of this kind.

        Raises:
            UserError: The folder of this kind cannot be listed.
        """
        folder = self.root / kind
        try:
            names = [path.name for path in folder.iterdir() if path.name[0] != "."]
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            what = f"the folder cannot be listed ({error.strerror})"
            raise UserError(what, str(folder), "give yourself permission to read it") from None
        for name in names:
            path = folder / name / MANIFEST_NAME
            try:
                yield path.lstat().st_mtime_ns, name
            except PermissionError:
                yield 0, name  # reading the manifest raises the error
            except OSError:
                continue  # there is no manifest, or it is a broken link

    @contextmanager
    def write(self, kind: str, fingerprint: str, basis: Basis, *, restart: bool = False) -> Iterator[Staging]:
        """Open the artifact's staging folder as its only writer; call `commit` after `Staging.seal`.

        An error in the block is recorded in the folder and raised again. An interruption is not recorded.

        Args:
            kind: Kind of the artifact.
            fingerprint: Its fingerprint.
            basis: What the work starts from. Shards that an interrupted run finished are kept if its basis was the
                same.
            restart: Discard what an interrupted run finished.

        Raises:
            Busy: Another process is writing this artifact.
        """
        with self.writer_lock(kind, fingerprint, patience=2):
            folder = self.staging_folder(kind, fingerprint)
            if restart or not (Basis.of(folder) == basis or Staging.is_complete(folder, basis.inputs)):
                shutil.rmtree(folder, ignore_errors=True)
            staging = Staging(folder, basis)
            try:
                with explain_full_disk(self.root):
                    yield staging
            except Exception as error:
                with suppress(OSError):  # the error itself matters more than its record
                    staging.fail(error)
                raise

    def commit(self, kind: str, fingerprint: str) -> Artifact:
        """Rename a sealed staging folder to its artifact's name, replacing an older artifact of the same fingerprint.

        A run that is killed before the rename leaves sealed work, and after it a complete artifact. What is removed
        before the rename is needed for neither, so a kill never loses work.
        """
        staging, folder = self.staging_folder(kind, fingerprint), self.folder(kind, fingerprint)
        shutil.rmtree(staging / RECORDS, ignore_errors=True)
        sync(staging)
        aside = self.aside(staging)
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
        """Return the state of unfinished work on an artifact; nothing is locked or written.

        Returns:
            "running" while a writer holds the lock; "failed" with the error's message, or "interrupted", for work
            that stopped; "absent" if there is none.
        """
        if is_held(self._lock_path(kind, fingerprint)):
            return "running", ""
        staging = self.staging_folder(kind, fingerprint)
        try:
            unfinished = staging.is_dir()
        except PermissionError:  # the parent folder is not readable; reading the manifest raises the error
            unfinished = False
        if not unfinished:
            return "absent", ""
        try:
            return "failed", str(read_json(staging / FAILURE)["message"])
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            return "interrupted", ""

    def remove_leftovers(self, kind: str, fingerprint: str) -> None:
        """Remove what a writer that was killed after its commit left beside the artifact."""
        aside = self.aside(self.staging_folder(kind, fingerprint))
        if not (aside.exists() or self.staging_folder(kind, fingerprint).exists()):
            return
        with suppress(Busy, OSError), self.writer_lock(kind, fingerprint, patience=0):
            shutil.rmtree(self.set_aside(self.staging_folder(kind, fingerprint)), ignore_errors=True)

    def unreadable(self, kind: str) -> dict[str, str]:
        """Return what is wrong with each artifact of this kind whose manifest cannot be read, by fingerprint."""
        faults = {name: self.manifest_fault(kind, name) for _, name in self._committed(kind)}
        return {name: fault for name, fault in faults.items() if fault}

    def manifest_fault(self, kind: str, fingerprint: str) -> str:
        """Return what is wrong with an artifact's manifest; "" if it is intact or there is no artifact."""
        try:
            self._manifest(kind, fingerprint)
        except UnreadableManifest as error:
            return error.what
        return ""

    def _manifest(self, kind: str, fingerprint: str) -> Manifest | None:
        return Manifest.read(self.folder(kind, fingerprint))

    def unfinished(self, kind: str) -> list[InputRef]:
        """Return references to the unfinished work of this kind; their content digests are not known yet."""
        folders = (self.root / kind).glob(f"{STAGING}*")
        return [InputRef(kind, path.name.removeprefix(STAGING), "") for path in folders if path.is_dir()]

    def orphans(self, kind: str) -> dict[str, tuple[int, float]]:
        """Return the files in the store that belong to no manifest and no staging folder on this machine.

        An interrupted upload or removal leaves them in an object store; a store in a folder has none.

        Returns:
            By fingerprint, their bytes and the seconds since the last of them was written.
        """
        return {}

    def set_aside(self, folder: Path) -> Path:
        """Rename a folder for removal in one step, so that it is never an artifact with a part missing."""
        aside = self.aside(folder)
        if folder.exists():
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
        return aside

    def aside(self, folder: Path) -> Path:
        """Return the name that `set_aside` gives a folder."""
        return folder.with_name(f"{ASIDE}{folder.name.lstrip('.')}")

    def remove(self, kind: str, fingerprint: str) -> None:
        """Remove an artifact and unfinished work on it; the caller holds the writer lock."""
        for folder in (self.folder(kind, fingerprint), self.staging_folder(kind, fingerprint)):
            self.set_aside(folder)
        if (self.root / kind).is_dir():
            sync(self.root / kind)
        self.verification.forget(kind, fingerprint)

    def remove_unfinished(self, kind: str, fingerprint: str) -> None:
        """Remove unfinished work on an artifact, not the artifact itself; the caller holds the writer lock."""
        self.set_aside(self.staging_folder(kind, fingerprint))

    def kinds(self) -> set[str]:
        """Return the kinds of which the store holds anything."""
        return {path.name for path in self.root.glob("[!.]*") if path.is_dir()}

    def raw_digests(self, *, save: bool) -> DigestCache:
        """Return the digests of raw files that this store remembers; new ones are written to it only with `save`."""
        return DigestCache(self.root / ".digests.json", save=save)

    def staging_folder(self, kind: str, fingerprint: str) -> Path:
        """Return the folder in which the artifact is made until it is committed."""
        return self.root / kind / f"{STAGING}{fingerprint}"

    def note_names(self, folder: str) -> list[str]:
        """Return the names of the notes in a folder; a note is a small text that is replaced in one step."""
        return [path.name for path in (self.root / folder).glob("[!.]*")]

    def note_location(self, folder: str, name: str) -> str:
        """Return the place of a note, for messages."""
        return str(self.root / folder / name)

    def read_note(self, folder: str, name: str) -> str | None:
        """Return the text of a note, or None if there is none.

        Raises:
            UserError: The note cannot be read.
        """
        path = self.root / folder / name
        try:
            return read_text(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            fault = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise UserError(f"the file cannot be read ({fault})", str(path), "fix or delete it") from None

    def write_note(self, folder: str, name: str, text: str) -> None:
        """Write or replace a note.

        Args:
            folder: Folder of the note.
            name: Name of its file.
            text: Its text.
        """
        write_text(self.root / folder / name, text)
        sync(self.root / folder)

    @contextmanager
    def writer_lock(self, kind: str, fingerprint: str, patience: float) -> Iterator[None]:
        """Hold the lock of an artifact's only writer.

        Args:
            kind: Kind of the artifact.
            fingerprint: Its fingerprint.
            patience: Seconds to wait for another writer.

        Raises:
            Busy: Another process still holds it.
        """
        lock = WriterLock(self._lock_path(kind, fingerprint))
        with explain_full_disk(self.root):
            try:
                lock.acquire(timeout=patience)
            except Timeout:
                what = f"another process is making {kind} {fingerprint}"
                raise Busy(what, str(self.root), "wait for it, or stop it") from None
            try:
                yield
            finally:
                lock.release()

    def _lock_path(self, kind: str, fingerprint: str) -> Path:
        return self.root / kind / f".lock-{fingerprint}"
