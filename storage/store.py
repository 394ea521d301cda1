"""The artifact store: `STORE/KIND/FINGERPRINT/` is an artifact, complete from the moment the folder has that name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from storage.errors import UserError
from storage.files import DigestCache
from storage.manifest import MANIFEST_NAME, InputRef, Manifest, Shard
from storage.staging import FAILURE, RECORDS, Staging

Progress = Literal["absent", "running", "failed", "interrupted"]


@dataclass(frozen=True)
class Artifact:
    """A committed artifact: its folder and its manifest."""

    folder: Path
    manifest: Manifest

    def shards(self, prefix: str) -> list[Shard]:
        """The shards whose path starts with `prefix`, in order."""
        return [shard for shard in self.manifest.shards if shard.path.startswith(prefix)]

    def files(self, prefix: str) -> list[Path]:
        """Their files."""
        return [self.folder / shard.path for shard in self.shards(prefix)]

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
        """The store at `uri`, a folder that need not exist yet.

        Raises:
            UserError: The URI names a remote store.
        """
        scheme, separator, rest = uri.partition("://")
        if separator and scheme != "file":
            raise UserError(f"stores on {scheme}:// are not supported", uri, "name a folder in `store`")
        return cls(Path(rest if separator else uri).expanduser().resolve())

    def folder(self, kind: str, fingerprint: str) -> Path:
        """Where this artifact stands once it is complete."""
        return self.root / kind / fingerprint

    def find(self, kind: str, fingerprint: str) -> Artifact | None:
        """The artifact, if it is complete."""
        folder = self.folder(kind, fingerprint)
        manifest = Manifest.read(folder)
        return Artifact(folder, manifest) if manifest else None

    def newest_first(self, kind: str) -> Iterator[Artifact]:
        """All complete artifacts of this kind, the last committed first."""
        manifests = [path for path in (self.root / kind).glob(f"*/{MANIFEST_NAME}") if path.parent.name[0] != "."]
        for path in sorted(manifests, key=lambda path: path.stat().st_mtime_ns, reverse=True):
            if artifact := self.find(kind, path.parent.name):
                yield artifact

    @contextmanager
    def write(self, kind: str, fingerprint: str, basis: str, *, restart: bool = False) -> Iterator[Staging]:
        """Open the artifact's staging folder as its only writer; call `commit` when `Staging.seal` has been called.

        What an earlier, interrupted run finished is still there, unless `restart` is set or `basis`, a digest of what
        the inputs hold, is no longer what it was. An error leaves a note in the folder and passes on.

        Raises:
            UserError: Another process is writing this artifact.
        """
        lock = self._lock(kind, fingerprint)
        try:
            lock.acquire(timeout=2)
        except Timeout:
            raise UserError(
                f"another process is making {kind} {fingerprint}", str(self.root), "wait for it, or stop it"
            ) from None
        try:
            folder = self._staging(kind, fingerprint)
            if restart or not Staging.is_based_on(folder, basis):
                shutil.rmtree(folder, ignore_errors=True)
            staging = Staging(folder, basis)
            try:
                yield staging
            except BaseException as error:
                staging.fail(error)
                raise
        finally:
            lock.release()

    def commit(self, kind: str, fingerprint: str) -> Artifact:
        """Give a sealed staging folder its name, in the place of an older artifact of the same fingerprint."""
        staging, folder = self._staging(kind, fingerprint), self.folder(kind, fingerprint)
        shutil.rmtree(staging / RECORDS, ignore_errors=True)
        replaced = staging.with_name(f".replaced-{fingerprint}")
        if folder.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            folder.rename(replaced)
        staging.rename(folder)
        shutil.rmtree(replaced, ignore_errors=True)
        artifact = self.find(kind, fingerprint)
        if artifact is None:
            raise RuntimeError(f"{folder}: committed without a manifest")
        return artifact

    def progress(self, kind: str, fingerprint: str) -> tuple[Progress, str]:
        """What stands in the way of an artifact that is not there: nobody, a writer at work, or one that stopped."""
        staging = self._staging(kind, fingerprint)
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

    @property
    def digests(self) -> DigestCache:
        """Digests of raw files, remembered in this store."""
        return DigestCache(self.root / ".digests.json")

    def _staging(self, kind: str, fingerprint: str) -> Path:
        return self.root / kind / f".staging-{fingerprint}"

    def _lock(self, kind: str, fingerprint: str) -> FileLock:
        path = self.root / kind / f".lock-{fingerprint}"
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(path)
