"""Stores by URI: a folder, or an object store such as S3 with a working copy on this machine.

In an object store `URI/KIND/FINGERPRINT/GENERATION/…` holds the files of one writer, and
`URI/KIND/FINGERPRINT/manifest.json`, put last, names the generation that counts. So an upload that is interrupted, or
overtaken by another writer, never touches an artifact, and an artifact is replaced by a single put. The working copy
has the layout of a store in a folder: work is staged there, and the files of an artifact are downloaded on demand.
"""

from __future__ import annotations

import errno
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from filelock import FileLock, Timeout

from storage.errors import Busy, Damaged, DamagedManifest, NewerManifest, UserError
from storage.file_systems import CACHE, cache_folder, endpoint
from storage.files import atomic_path, sha256_of, user_path, write_text
from storage.fingerprint import fingerprint as digest
from storage.lease import Lease, is_leased_elsewhere
from storage.locks import WriterLock
from storage.manifest import MANIFEST_NAME, Manifest, Shard
from storage.objects import Objects
from storage.staging import RECORDS
from storage.store import ANOTHER_STORE, Artifact, Progress, Store

T = TypeVar("T")
Name = tuple[str, str]

GENERATION = ".generation"
"""File in a staging folder with the name of the generation it is uploaded as."""
STREAMS = 4
"""Files transferred at a time."""
REMEMBERED = 5.0
"""Seconds for which a manifest is cached; a plan asks for the same one many times."""
ABANDONED = 86_400.0
"""Seconds after which files that no manifest names belong to no running writer."""


def open_store(uri: str) -> Store:
    """Return the store at a URI: a folder that need not exist yet, or a prefix such as s3://bucket/prefix.

    Raises:
        UserError: There is a file at this path, or the folder cannot be listed. Or the object store cannot be used:
            its library is missing, or the URI holds credentials.
    """
    protocol, separator, rest = uri.partition("://")
    if separator and protocol != "file":
        return RemoteStore.at(uri)
    named = rest if separator else uri
    with user_path(named, ANOTHER_STORE):
        root = Path(named).expanduser().resolve()
        nearest = next(path for path in (root, *root.parents) if path.exists())
        if not nearest.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "it is a file" if nearest == root else f"{nearest} is a file")
        if nearest == root:
            next(root.iterdir(), None)  # raises here if the folder may not be listed
    return Store(root)


class RemoteStore(Store):
    """A store in an object store.

    Args:
        objects: The objects under the URI.
        root: The working copy, a folder used for this URI alone.
    """

    def __init__(self, objects: Objects, root: Path) -> None:
        super().__init__(root)
        self.objects = objects
        self._seen: dict[Name, tuple[float, Manifest]] = {}
        self._writing: dict[Name, tuple[Manifest | None, Lease]] = {}
        self._unreferenced: dict[Name, list[str]] = {}

    @classmethod
    def at(cls, uri: str) -> RemoteStore:
        """Return the store at a URI, with its working copy in $NEXTQUILL_CACHE or `~/.cache/nextquill`.

        Raises:
            UserError: The store cannot be used, or the copy cannot be written.
        """
        objects = Objects(uri)
        root = cache_folder() / digest([objects.uri, endpoint()])
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)  # the data may be private
            if not (root / "store.txt").exists():
                write_text(root / "store.txt", f"{objects.uri}\n")
        except OSError as error:
            remedy = f"set {CACHE} to a writable folder"
            raise UserError(f"cannot be written ({error.strerror})", str(root), remedy) from error
        return cls(objects, root)

    def location(self, kind: str, fingerprint: str) -> str:
        """Return the URI of this artifact."""
        return f"{self.objects}/{kind}/{fingerprint}"

    def find(self, kind: str, fingerprint: str) -> Artifact | None:
        """Return the artifact, or None if there is none; its files are downloaded when they are asked for."""
        known = self._seen.get((kind, fingerprint))
        if known and time.monotonic() - known[0] < REMEMBERED:
            manifest: Manifest | None = known[1]
        else:
            manifest = self._readable(kind, fingerprint)
        if manifest is None:
            # The copy must not keep what the store no longer has.
            shutil.rmtree(self.folder(kind, fingerprint), ignore_errors=True)
            return None
        home = self.folder(kind, fingerprint) / _copy_name(manifest)
        return Artifact(home, manifest, self.location(kind, fingerprint), partial(self._fetch, home, manifest))

    def refresh(self, kind: str, fingerprint: str) -> None:
        """Drop the cached manifest of an artifact."""
        self._seen.pop((kind, fingerprint), None)

    def fault(self, artifact: Artifact) -> str:
        """Return which file is missing or has another size, or ""; nothing is downloaded."""
        manifest = artifact.manifest
        name = (manifest.kind, manifest.fingerprint)
        listed = self.objects.sizes("/".join(name))
        self._unreferenced[name] = sorted(listed.keys() - {_manifest_key(*name), *_file_keys(manifest)})
        for shard in manifest.shards:
            key = _file_key(manifest, shard.path)
            size = listed.get(key)
            if size != shard.bytes:  # a listing may lag behind
                size = self.objects.size(key)
            if size is None:
                return f"file {shard.path} is missing"
            if size != shard.bytes:
                return f"file {shard.path} is damaged ({size:,} bytes, {shard.bytes:,} expected)"
        return ""

    def verify(self, artifact: Artifact) -> str:
        """Download every file and compare it with the manifest; return the fault as `fault` does."""
        manifest = artifact.manifest
        if fault := self.fault(artifact):
            return fault
        for shard in manifest.shards:
            key = _file_key(manifest, shard.path)
            with TemporaryDirectory(dir=self.root) as folder:
                copy = Path(folder, "copy")
                self.objects.download(key, copy)
                if sha256_of(copy) != shard.sha256:
                    return f"file {shard.path} is damaged (its SHA-256 is not the manifest's)"
        return ""

    def remove_leftovers(self, kind: str, fingerprint: str) -> None:
        """Remove what killed writers left: here, and long ago in the store if the last call of `fault` has seen it."""
        super().remove_leftovers(kind, fingerprint)
        if not any(self.objects.age(key) > ABANDONED for key in self._unreferenced.pop((kind, fingerprint), ())):
            return
        with suppress(Busy), self.writer_lock(kind, fingerprint, patience=0):
            current, _ = self._writing[kind, fingerprint]
            if current:
                self._remove_abandoned(current)

    def newest_first(self, kind: str) -> Iterator[Artifact]:
        """Yield all complete artifacts of this kind that the store lists or this machine knows, the last made first."""

        def find(name: str) -> Artifact | None:
            with suppress(NewerManifest):
                return self.find(kind, name)
            return None

        found = [artifact for artifact in _in_parallel(find, self._names(kind)) if artifact]
        yield from sorted(found, key=lambda artifact: artifact.manifest.ended or 0.0, reverse=True)

    def commit(self, kind: str, fingerprint: str) -> Artifact:
        """Upload a sealed staging folder, the manifest last, replacing the artifact that was there at the beginning.

        If another writer was first, its artifact counts and ours is dropped.

        Raises:
            UserError: The other artifact was made from other inputs, or the lease was lost.
        """
        name, staging = (kind, fingerprint), self.staging_folder(kind, fingerprint)
        sealed = Manifest.read(staging)
        if sealed is None:
            raise RuntimeError(f"{staging}: committed without a manifest")
        before, lease = self._writing[name]
        resumed = (staging / GENERATION).is_file()
        if not resumed:
            write_text(staging / GENERATION, f"data-{uuid.uuid4().hex[:12]}")
        manifest = replace(sealed, generation=(staging / GENERATION).read_text(encoding="utf-8"))
        current = self._manifest(kind, fingerprint)
        if current == before:
            self._upload(staging, manifest, resumed=resumed)
            current = self._put(manifest, before, lease)
        if current is None or current.generation != manifest.generation:
            return self._adopt_other(manifest, current)
        self._seen[name] = (time.monotonic(), manifest)
        self._make_working_copy(manifest)
        if before and before.generation != manifest.generation:
            self.objects.delete(_file_keys(before))
        self._remove_abandoned(manifest)
        artifact = self.find(kind, fingerprint)
        if artifact is None:
            raise RuntimeError(f"{self.location(kind, fingerprint)}: gone right after it was committed")
        return artifact

    def progress(self, kind: str, fingerprint: str) -> tuple[Progress, str]:
        """Return the state of unfinished work here, or of a writer on another machine by its lease."""
        state, message = super().progress(kind, fingerprint)
        if state != "running" and is_leased_elsewhere(self.objects, _lease_key(kind, fingerprint), self._place):
            return ("absent", "") if self.find(kind, fingerprint) else ("running", "")
        return state, message

    def remove(self, kind: str, fingerprint: str) -> None:
        """Remove an artifact and unfinished work on it, here and in the store, the manifest first."""
        manifest = self._readable(kind, fingerprint)
        self.objects.delete([_manifest_key(kind, fingerprint)])
        self._seen.pop((kind, fingerprint), None)
        super().remove(kind, fingerprint)
        prefix = f"{kind}/{fingerprint}"
        self.objects.delete([*(_file_keys(manifest) if manifest else ()), *self.objects.keys(prefix)])
        self.objects.drop_parts(prefix)

    def orphans(self, kind: str) -> dict[str, tuple[int, float]]:
        """Return what interrupted uploads and removals left in the store, as far as it lists it."""
        staged = {ref.fingerprint for ref in self.unfinished(kind)}
        found = {}
        for name in self.objects.children(kind):
            if name.startswith(".") or name in staged or (kind, name) in self._seen:
                continue
            sizes = self.objects.sizes(f"{kind}/{name}")
            if sizes and self.objects.size(_manifest_key(kind, name)) is None:
                found[name] = (sum(sizes.values()), min(map(self.objects.age, sizes)))
        return found

    def remove_unfinished(self, kind: str, fingerprint: str) -> None:
        """Remove unfinished work here, and the files in the store if they have no manifest."""
        super().remove_unfinished(kind, fingerprint)
        if self.objects.size(_manifest_key(kind, fingerprint)) is None:
            self.remove(kind, fingerprint)

    @contextmanager
    def writer_lock(self, kind: str, fingerprint: str, patience: float) -> Iterator[None]:
        """Hold the lock among the processes of this machine, and the lease among those of all machines.

        Args:
            kind: Kind of the artifact.
            fingerprint: Its fingerprint.
            patience: Seconds to wait for another writer.

        Raises:
            Busy: Another process still holds it.
        """
        name, key = (kind, fingerprint), _lease_key(kind, fingerprint)
        with (
            super().writer_lock(kind, fingerprint, patience),
            Lease(self.objects, key, self._place).hold(f"{kind} {fingerprint}", patience) as lease,
        ):
            try:
                before = self._manifest(kind, fingerprint)
            except DamagedManifest:  # the holder of the lease may remove it
                self.objects.delete([_manifest_key(kind, fingerprint)])
                before = None
            self._writing[name] = (before, lease)
            try:
                yield
            finally:
                del self._writing[name]

    @property
    def _place(self) -> str:
        """The name of this working copy, the same for all processes that share its file locks."""
        path = self.root / ".place"
        with FileLock(self.root / ".place.lock"):
            if not path.exists():
                write_text(path, uuid.uuid4().hex)
        return path.read_text(encoding="utf-8")

    def _readable(self, kind: str, fingerprint: str) -> Manifest | None:
        """Return the manifest that the store has now; None if there is none or it is damaged."""
        try:
            return self._manifest(kind, fingerprint)
        except DamagedManifest:
            return None

    def _manifest(self, kind: str, fingerprint: str) -> Manifest | None:
        """Return the manifest that the store has now, or None if there is none.

        Raises:
            DamagedManifest: It cannot be read.
            NewerManifest: A newer version wrote it.
        """
        self._seen.pop((kind, fingerprint), None)
        value = self.objects.get(_manifest_key(kind, fingerprint))
        if value is None:
            return None
        where = f"{self.location(kind, fingerprint)}/{MANIFEST_NAME}"
        manifest = Manifest.parse(value.decode("utf-8", errors="replace"), where)
        self._seen[kind, fingerprint] = (time.monotonic(), manifest)
        return manifest

    def _fetch(self, home: Path, manifest: Manifest, shards: list[Shard]) -> None:
        """Download the shards that are not here yet, several at a time; each is here whole or not at all."""

        def missing() -> list[Shard]:
            return [shard for shard in shards if self.verification.fault(home, manifest, [shard], read=True)]

        def download(shard: Shard) -> None:
            key = _file_key(manifest, shard.path)
            with atomic_path(home / shard.path) as temporary:
                self.objects.download(key, temporary)
                if sha256_of(temporary) != shard.sha256:
                    remedy = "fix it with `nextquill verify --repair`, or run its stage with --force"
                    raise Damaged("the bytes differ from the manifest", f"{self.objects}/{key}", remedy)

        if missing():
            self._make_working_copy(manifest)
        try:
            _in_parallel(download, missing())
        except FileNotFoundError:
            self.refresh(manifest.kind, manifest.fingerprint)
            what = "the artifact was removed or replaced while it was read"
            raise UserError(
                what, self.location(manifest.kind, manifest.fingerprint), "run the same command again"
            ) from None
        self.verification.remember(manifest)

    def _upload(self, staging: Path, manifest: Manifest, *, resumed: bool) -> None:
        """Upload the files that are not there yet, several at a time."""
        if resumed:
            self.objects.drop_parts(f"{manifest.kind}/{manifest.fingerprint}/{manifest.generation}")

        def send(shard: Shard) -> None:
            key = _file_key(manifest, shard.path)
            if resumed and self.objects.size(key) == shard.bytes:
                return
            self.objects.upload(staging / shard.path, key)
            if self.objects.size(key) != shard.bytes:
                raise UserError("the file did not arrive whole", f"{self.objects}/{key}", "run the same command again")

        _in_parallel(send, manifest.shards)

    def _put(self, manifest: Manifest, before: Manifest | None, lease: Lease) -> Manifest | None:
        """Put the manifest, unless another writer was first.

        Returns:
            The manifest that is in the store afterwards.
        """
        kind, fingerprint = manifest.kind, manifest.fingerprint
        key, value = _manifest_key(kind, fingerprint), manifest.to_json().encode()
        if before is None:
            return manifest if self.objects.create(key, value) else self._manifest(kind, fingerprint)
        if lease.lost:
            what = "another process has begun to replace the artifact"
            raise UserError(what, self.location(kind, fingerprint), "run the same command again")
        self.objects.put(key, value)
        return manifest

    def _adopt_other(self, ours: Manifest, theirs: Manifest | None) -> Artifact:
        """Drop our files and return the artifact of the writer that was first."""
        kind, fingerprint = ours.kind, ours.fingerprint
        self.objects.delete(_file_keys(ours))
        shutil.rmtree(self.staging_folder(kind, fingerprint), ignore_errors=True)
        artifact = self.find(kind, fingerprint)
        if theirs is None or artifact is None or artifact.manifest.inputs != ours.inputs:
            what = "another process has changed the artifact in the meantime"
            raise UserError(what, self.location(kind, fingerprint), "run the same command again")
        return artifact

    def _make_working_copy(self, manifest: Manifest) -> None:
        """Make the staging folder that was uploaded as this artifact its working copy, if it is still there.

        A run that was killed between upload and this step leaves it.
        """
        kind, fingerprint, generation = manifest.kind, manifest.fingerprint, manifest.generation
        staging, folder = self.staging_folder(kind, fingerprint), self.folder(kind, fingerprint)
        try:
            if not generation or (staging / GENERATION).read_text(encoding="utf-8") != generation:
                return
        except (FileNotFoundError, NotADirectoryError):
            return
        lock = WriterLock(self._lock_path(kind, fingerprint))
        try:
            if (kind, fingerprint) not in self._writing:  # otherwise this process holds the lock
                lock.acquire(timeout=0)
        except Timeout:
            return
        try:
            shutil.rmtree(staging / RECORDS, ignore_errors=True)
            replaced = self.set_aside(folder)
            folder.mkdir(parents=True)
            staging.rename(folder / generation)
            for name in (GENERATION, MANIFEST_NAME):
                (folder / generation / name).unlink(missing_ok=True)
            shutil.rmtree(replaced, ignore_errors=True)
        finally:
            lock.release()

    def _remove_abandoned(self, manifest: Manifest) -> None:
        """Remove files beside this artifact's own whose writers stopped long ago."""
        folder = f"{manifest.kind}/{manifest.fingerprint}"
        own = {_manifest_key(manifest.kind, manifest.fingerprint), *_file_keys(manifest)}
        others = (key for key in self.objects.keys(folder) if key not in own)
        self.objects.delete([key for key in others if self.objects.age(key) > ABANDONED])
        self.objects.drop_parts(folder, older_than_s=ABANDONED)

    def kinds(self) -> set[str]:
        """Return the kinds of which there is anything, here or in the store."""
        return {name for name in (*super().kinds(), *self.objects.children()) if not name.startswith(".")}

    def _names(self, kind: str) -> list[str]:
        """Return the fingerprints that the store lists and those that this machine has, which a listing may lack."""
        local = self.root / kind
        here = [path.name for path in local.iterdir() if path.is_dir()] if local.is_dir() else []
        return sorted(name for name in {*here, *self.objects.children(kind)} if not name.startswith("."))

    def note_names(self, folder: str) -> list[str]:
        """Return the names of the notes in a folder, as far as the store lists them yet."""
        return self.objects.children(f".{folder}")

    def note_location(self, folder: str, name: str) -> str:
        """Return the URI of a note."""
        return f"{self.objects}/{_note_key(folder, name)}"

    def read_note(self, folder: str, name: str) -> str | None:
        """Return the text of a note, or None if there is none."""
        value = self.objects.get(_note_key(folder, name))
        return None if value is None else value.decode("utf-8", errors="replace")

    def write_note(self, folder: str, name: str, text: str) -> None:
        """Write or replace a note.

        Args:
            folder: Folder of the note.
            name: Name of its file.
            text: Its text.
        """
        self.objects.put(_note_key(folder, name), text.encode())


def _in_parallel(work: Callable[..., T], things: Iterable[object]) -> list[T]:
    """Call `work` with each thing, several at a time; the first failure ends it."""
    pool = ThreadPoolExecutor(STREAMS)
    try:
        return list(pool.map(work, things))
    finally:
        pool.shutdown(cancel_futures=True)


def _copy_name(manifest: Manifest) -> str:
    """Return the name of the copy's folder, so that files of successive artifacts never mix."""
    return manifest.generation or f"copy-{digest([(shard.path, shard.sha256) for shard in manifest.shards])}"


def _manifest_key(kind: str, fingerprint: str) -> str:
    return f"{kind}/{fingerprint}/{MANIFEST_NAME}"


def _lease_key(kind: str, fingerprint: str) -> str:
    return f"{kind}/.lease-{fingerprint}.json"


def _file_key(manifest: Manifest, path: str) -> str:
    return "/".join(part for part in (manifest.kind, manifest.fingerprint, manifest.generation, path) if part)


def _file_keys(manifest: Manifest) -> list[str]:
    return [_file_key(manifest, shard.path) for shard in manifest.shards]


def _note_key(folder: str, name: str) -> str:
    return f".{folder}/{name}"  # all names that begin with a dot are no artifacts
