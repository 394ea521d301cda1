"""The store on an object store such as S3: the same artifacts behind the same interface, and a working copy here.

`URI/KIND/FINGERPRINT/GENERATION/…` holds the files of one writer, `URI/KIND/FINGERPRINT/manifest.json`, put last, says
whose generation counts. So an upload that was interrupted, or overtaken by another writer's, never touches an artifact,
and one artifact takes another's place in a single put. The copy has the layout of a store in a folder: work is staged
there as it is in any store, and the files of an artifact are brought there when somebody asks for them.
"""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from filelock import FileLock, Timeout

from storage.cache import CACHE, cache_folder
from storage.errors import Busy, DamagedManifest, NewerManifest, UserError
from storage.files import atomic_path, sha256_of, write_text
from storage.fingerprint import fingerprint as digest
from storage.integrity import Damaged
from storage.lease import Lease, held, held_elsewhere
from storage.locks import WriterLock
from storage.manifest import MANIFEST_NAME, InputRef, Manifest, Shard
from storage.objects import Objects, endpoint
from storage.staging import RECORDS
from storage.store import Artifact, Progress, Store

T = TypeVar("T")
Name = tuple[str, str]

GENERATION = ".generation"
STREAMS = 4
"""Files under way at a time."""
REMEMBERED = 5.0
"""Seconds for which a manifest that was read is not read again; a plan asks for the same one many times."""
ABANDONED = 86_400.0
"""Seconds after which files that no manifest names belong to nobody who is still at work."""


class RemoteStore(Store):
    """Artifacts under a URI.

    Args:
        objects: What is under the URI.
        root: The working copy, a folder of this URI's own.
    """

    def __init__(self, objects: Objects, root: Path) -> None:
        super().__init__(root)
        self.objects = objects
        self._seen: dict[Name, tuple[float, Manifest]] = {}
        self._writing: dict[Name, tuple[Manifest | None, Lease]] = {}
        self._strays: dict[Name, list[str]] = {}

    @classmethod
    def at(cls, uri: str) -> RemoteStore:
        """The store at a URI, its working copy in $NEXTQUILL_CACHE or `~/.cache/nextquill`.

        Raises:
            UserError: It cannot be used, or the copy cannot be written.
        """
        objects = Objects(uri)
        root = cache_folder() / digest([objects.uri, endpoint()])
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)  # reviews are nobody else's business
            if not (root / "store.txt").exists():
                write_text(root / "store.txt", f"{objects.uri}\n")
        except OSError as error:
            raise UserError(f"cannot be written ({error.strerror})", str(root), f"name a folder in {CACHE}") from error
        return cls(objects, root)

    def location(self, kind: str, fingerprint: str) -> str:
        """The URI of this artifact."""
        return f"{self.objects}/{kind}/{fingerprint}"

    def find(self, kind: str, fingerprint: str) -> Artifact | None:
        """The artifact, if it is complete; its files stay where they are until they are asked for."""
        known = self._seen.get((kind, fingerprint))
        if known and time.monotonic() - known[0] < REMEMBERED:
            manifest: Manifest | None = known[1]
        else:
            manifest = self._readable(kind, fingerprint)
        if manifest is None:
            # What the store no longer has, its copy must not keep.
            shutil.rmtree(self.folder(kind, fingerprint), ignore_errors=True)
            return None
        home = self.folder(kind, fingerprint) / _copy_name(manifest)
        return Artifact(home, manifest, self.location(kind, fingerprint), partial(self._fetch, home, manifest))

    def look_again(self, kind: str, fingerprint: str) -> None:
        """As in a folder: the manifest is read again."""
        self._seen.pop((kind, fingerprint), None)

    def fault(self, artifact: Artifact) -> str:
        """As in a folder, by what the store lists; nothing is downloaded."""
        manifest = artifact.manifest
        name = (manifest.kind, manifest.fingerprint)
        listed = self.objects.sizes("/".join(name))
        self._strays[name] = sorted(listed.keys() - {_manifest_key(*name), *self._keys(*name, manifest)})
        for shard in manifest.shards:
            key = _file_key(manifest.kind, manifest.fingerprint, manifest.generation, shard.path)
            size = listed.get(key)
            if size != shard.bytes:  # a listing may lag behind
                size = self.objects.size(key)
            if size is None:
                return f"file {shard.path} is missing"
            if size != shard.bytes:
                return f"file {shard.path} is damaged ({size:,} bytes, {shard.bytes:,} expected)"
        return ""

    def verify(self, artifact: Artifact) -> str:
        """As in a folder; every file is downloaded once to be compared."""
        manifest = artifact.manifest
        if fault := self.fault(artifact):
            return fault
        for shard in manifest.shards:
            key = _file_key(manifest.kind, manifest.fingerprint, manifest.generation, shard.path)
            with TemporaryDirectory(dir=self.root) as folder:
                copy = Path(folder, "copy")
                self.objects.download(key, copy)
                if sha256_of(copy) != shard.sha256:
                    return f"file {shard.path} is damaged (its SHA-256 is not the manifest's)"
        return ""

    def sweep(self, kind: str, fingerprint: str) -> None:
        """As in a folder; and what killed writers left in the store long ago, if the last look has listed it."""
        super().sweep(kind, fingerprint)
        if not any(self.objects.age(key) > ABANDONED for key in self._strays.pop((kind, fingerprint), ())):
            return
        with suppress(Busy), self.alone(kind, fingerprint, patience=0):
            standing, _ = self._writing[kind, fingerprint]
            if standing:
                self._sweep(kind, fingerprint, standing.generation)

    def newest_first(self, kind: str) -> Iterator[Artifact]:
        """All complete artifacts of this kind that the store lists or this machine knows, the last made first."""

        def found_here(name: str) -> Artifact | None:
            with suppress(NewerManifest):
                return self.find(kind, name)
            return None

        found = [artifact for artifact in _side_by_side(found_here, self._names(kind)) if artifact]
        yield from sorted(found, key=lambda artifact: _ended(artifact.manifest), reverse=True)

    def commit(self, kind: str, fingerprint: str) -> Artifact:
        """Upload a sealed staging folder, the manifest last, in the place of what stood there when it was begun.

        If another writer came first, its artifact is the one that counts, and ours is dropped.

        Raises:
            UserError: The other's was made from other inputs, or the lease was lost while replacing.
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
        standing = self._read(kind, fingerprint)
        if standing == before:
            self._upload(kind, fingerprint, staging, manifest, resumed=resumed)
            standing = self._put(kind, fingerprint, manifest, before, lease)
        if standing is None or standing.generation != manifest.generation:
            return self._take_theirs(kind, fingerprint, manifest, standing)
        self._seen[name] = (time.monotonic(), manifest)
        self._settle(kind, fingerprint, manifest.generation)
        if before and before.generation != manifest.generation:
            self.objects.delete(self._keys(kind, fingerprint, before))
        self._sweep(kind, fingerprint, manifest.generation)
        artifact = self.find(kind, fingerprint)
        if artifact is None:
            raise RuntimeError(f"{self.location(kind, fingerprint)}: gone right after it was committed")
        return artifact

    def progress(self, kind: str, fingerprint: str) -> tuple[Progress, str]:
        """As in a folder; a writer on another machine is seen by its lease."""
        state, message = super().progress(kind, fingerprint)
        if state != "running" and held_elsewhere(self.objects, _lease_key(kind, fingerprint), self._place):
            return ("absent", "") if self.find(kind, fingerprint) else ("running", "")
        return state, message

    def remove_with_descendants(self, doomed: Iterable[InputRef]) -> list[str]:
        """As in a folder: here, in the store, and with what interrupted uploads left, whose inputs nobody can name."""
        doomed = list(doomed)
        if doomed:
            for kind in self.kinds():
                names = [name for name in self._names(kind) if self._readable(kind, name) is None]
                doomed += [InputRef(kind, name, "") for name in names]
        return super().remove_with_descendants(doomed)

    def remove(self, kind: str, fingerprint: str) -> None:
        """As in a folder: here and in the store, the manifest first."""
        manifest = self._readable(kind, fingerprint)
        self.objects.delete([_manifest_key(kind, fingerprint)])
        self._seen.pop((kind, fingerprint), None)
        super().remove(kind, fingerprint)
        prefix = f"{kind}/{fingerprint}"
        self.objects.delete(
            [*(self._keys(kind, fingerprint, manifest) if manifest else ()), *self.objects.keys(prefix)]
        )
        self.objects.drop_parts(prefix)

    def unnamed(self, kind: str) -> dict[str, tuple[int, float]]:
        """Return what interrupted uploads and removals left in the store, as far as it lists them."""
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
        """As in a folder; and what is in the store, if no manifest names it."""
        super().remove_unfinished(kind, fingerprint)
        if self.objects.size(_manifest_key(kind, fingerprint)) is None:
            self.remove(kind, fingerprint)

    @contextmanager
    def alone(self, kind: str, fingerprint: str, patience: float) -> Iterator[None]:
        """As in a folder: among the processes of this machine, and by a lease among those of all."""
        name = (kind, fingerprint)
        lease_key = _lease_key(kind, fingerprint)
        with (
            super().alone(kind, fingerprint, patience),
            held(self.objects, lease_key, self._place, f"{kind} {fingerprint}", patience) as lease,
        ):
            try:
                before = self._read(kind, fingerprint)
            except DamagedManifest:  # the holder of the lease replaces or removes it
                self.objects.delete([_manifest_key(kind, fingerprint)])
                before = None
            self._writing[name] = (before, lease)
            try:
                yield
            finally:
                del self._writing[name]

    @property
    def _place(self) -> str:
        """A name for this working copy, the same for all processes that share its file locks."""
        path = self.root / ".place"
        with FileLock(self.root / ".place.lock"):
            if not path.exists():
                write_text(path, uuid.uuid4().hex)
        return path.read_text(encoding="utf-8")

    def _manifest(self, kind: str, fingerprint: str) -> Manifest | None:
        return self._read(kind, fingerprint)

    def _readable(self, kind: str, fingerprint: str) -> Manifest | None:
        """Return the manifest as the store has it now; None also for a damaged one."""
        try:
            return self._read(kind, fingerprint)
        except DamagedManifest:
            return None

    def _read(self, kind: str, fingerprint: str) -> Manifest | None:
        """Return the manifest as the store has it now.

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
        """Bring the shards that are not here yet, several at a time; each is here whole or not at all."""
        kind, fingerprint, generation = manifest.kind, manifest.fingerprint, manifest.generation

        def missing() -> list[Shard]:
            return [shard for shard in shards if self.verification.fault(home, manifest, [shard], read=True)]

        def bring(shard: Shard) -> None:
            key = _file_key(kind, fingerprint, generation, shard.path)
            with atomic_path(home / shard.path) as temporary:
                self.objects.download(key, temporary)
                if sha256_of(temporary) != shard.sha256:
                    raise Damaged(
                        "its bytes are not those that its manifest names",
                        f"{self.objects}/{key}",
                        "make it again: `nextquill verify --repair`, or run its stage with --force",
                    )

        if missing():
            self._settle(kind, fingerprint, generation)
        try:
            _side_by_side(bring, missing())
        except FileNotFoundError:
            self._seen.pop((kind, fingerprint), None)
            raise UserError(
                "it was removed or replaced while it was read",
                self.location(kind, fingerprint),
                "run the same command again",
            ) from None
        self.verification.remember(manifest)

    def _upload(self, kind: str, fingerprint: str, staging: Path, manifest: Manifest, *, resumed: bool) -> None:
        """Stream the files that are not there yet, several at a time."""
        if resumed:
            self.objects.drop_parts(f"{kind}/{fingerprint}/{manifest.generation}")

        def send(shard: Shard) -> None:
            key = _file_key(kind, fingerprint, manifest.generation, shard.path)
            if resumed and self.objects.size(key) == shard.bytes:
                return
            self.objects.upload(staging / shard.path, key)
            if self.objects.size(key) != shard.bytes:
                raise UserError("it did not arrive whole", f"{self.objects}/{key}", "run the same command again")

        _side_by_side(send, manifest.shards)

    def _put(
        self, kind: str, fingerprint: str, manifest: Manifest, before: Manifest | None, lease: Lease
    ) -> Manifest | None:
        """Put the manifest, if nobody came first.

        Returns:
            The manifest that stands then.
        """
        key, value = _manifest_key(kind, fingerprint), manifest.to_json().encode()
        if before is None:
            return manifest if self.objects.create(key, value) else self._read(kind, fingerprint)
        if lease.lost:
            raise UserError(
                "another process has begun to replace it", self.location(kind, fingerprint), "run the command again"
            )
        self.objects.put(key, value)
        return manifest

    def _take_theirs(self, kind: str, fingerprint: str, ours: Manifest, theirs: Manifest | None) -> Artifact:
        self.objects.delete(self._keys(kind, fingerprint, ours))
        shutil.rmtree(self.staging_folder(kind, fingerprint), ignore_errors=True)
        artifact = self.find(kind, fingerprint)
        if theirs is None or artifact is None or artifact.manifest.inputs != ours.inputs:
            raise UserError(
                "another process changed it meanwhile", self.location(kind, fingerprint), "run the same command again"
            )
        return artifact

    def _settle(self, kind: str, fingerprint: str, generation: str) -> None:
        """Make the staging folder that was uploaded as this generation the working copy; a killed run may not have."""
        staging, folder = self.staging_folder(kind, fingerprint), self.folder(kind, fingerprint)
        try:
            if not generation or (staging / GENERATION).read_text(encoding="utf-8") != generation:
                return
        except (FileNotFoundError, NotADirectoryError):
            return
        lock = WriterLock(self._lock_path(kind, fingerprint))
        try:
            if (kind, fingerprint) not in self._writing:  # the writer has the lock already
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

    def _sweep(self, kind: str, fingerprint: str, generation: str) -> None:
        """Remove files of writers that stopped long ago."""
        prefix = f"{kind}/{fingerprint}/"
        keys = self.objects.keys(prefix.rstrip("/"))
        others = [key for key in keys if key != prefix + MANIFEST_NAME and not key.startswith(f"{prefix}{generation}/")]
        self.objects.delete([key for key in others if self.objects.age(key) > ABANDONED])
        self.objects.drop_parts(prefix.rstrip("/"), older_than_s=ABANDONED)

    def _keys(self, kind: str, fingerprint: str, manifest: Manifest) -> list[str]:
        return [_file_key(kind, fingerprint, manifest.generation, shard.path) for shard in manifest.shards]

    def kinds(self) -> set[str]:
        """Names of the kinds of which there is something, here or in the store."""
        return {name for name in (*super().kinds(), *self.objects.children()) if not name.startswith(".")}

    def _names(self, kind: str) -> list[str]:
        """Fingerprints of this kind: the store's listing, and what this machine has seen, which a listing may lack."""
        local = self.root / kind
        here = [path.name for path in local.iterdir() if path.is_dir()] if local.is_dir() else []
        return sorted(name for name in {*here, *self.objects.children(kind)} if not name.startswith("."))

    def _age(self, kind: str, fingerprint: str) -> float:
        artifact = self.find(kind, fingerprint)
        return time.time() - _ended(artifact.manifest) if artifact else 0.0


def _side_by_side(work: Callable[..., T], things: Iterable[object]) -> list[T]:
    """Do the same with each thing, several at a time; the first failure ends it."""
    pool = ThreadPoolExecutor(STREAMS)
    try:
        return list(pool.map(work, things))
    finally:
        pool.shutdown(cancel_futures=True)


def _ended(manifest: Manifest) -> float:
    """When an artifact was made, by its maker's clock; seconds since 1970."""
    try:
        return datetime.fromisoformat(manifest.provenance["end"]).timestamp()
    except (KeyError, ValueError, TypeError):
        return 0.0


def _copy_name(manifest: Manifest) -> str:
    """The copy's folder: an artifact that takes another's place never mixes with the other's files."""
    return manifest.generation or f"copy-{digest([(shard.path, shard.sha256) for shard in manifest.shards])}"


def _manifest_key(kind: str, fingerprint: str) -> str:
    return f"{kind}/{fingerprint}/{MANIFEST_NAME}"


def _lease_key(kind: str, fingerprint: str) -> str:
    return f"{kind}/.lease-{fingerprint}.json"


def _file_key(kind: str, fingerprint: str, generation: str, path: str) -> str:
    return "/".join(part for part in (kind, fingerprint, generation, path) if part)
