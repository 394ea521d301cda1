"""Staging: unfinished work in a folder that is filled shard by shard and becomes an artifact in one rename.

A shard is finished when its record is in `.shards/`. After a kill, the next run keeps the finished shards and makes the
rest. The manifest is written when all files are there, and only then is the folder renamed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storage.errors import UnreadableManifest, UserError
from storage.files import TEMPORARY, atomic_path, sha256_of, sync, sync_folders, write_json, write_text
from storage.integrity import stamp_of
from storage.manifest import MANIFEST_NAME, InputRef, Manifest, Shard, content_digest
from storage.redaction import redact
from storage.stored_json import read_checked

if TYPE_CHECKING:
    import pyarrow as pa

RECORDS = ".shards"
SCRATCH = "scratch"
FAILURE = "failure.json"
BASIS = f"{RECORDS}/basis.json"
_AGAIN = "run the same command again"
_UMASK = os.umask(0o077)  # it can only be read by setting it, so it is read once, before threads write files
os.umask(_UMASK)


@dataclass(frozen=True)
class Basis:
    """What unfinished work started from; if any of it changes, the work starts again.

    Attributes:
        inputs: The artifacts it is made from, with their content digests.
        tools: Anything else that decides the bytes of the shards, such as the version of a library.
    """

    inputs: tuple[InputRef, ...] = ()
    tools: str = ""

    @classmethod
    def of(cls, folder: Path) -> Basis | None:
        """Return the basis of the work in `folder`, or None if it is unknown."""
        try:
            basis: Basis = read_checked(folder / BASIS, cls, _AGAIN)
        except UserError:
            return None
        return basis


@dataclass(frozen=True)
class _Finished:
    """The record of a finished shard; `stamp` is that of its file when the record was written."""

    shard: Shard
    stamp: list[int] | None


class Staging:
    """The unfinished form of an artifact, opened by `Store.write` under the writer lock."""

    def __init__(self, folder: Path, basis: Basis) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FAILURE).unlink(missing_ok=True)
        for leftover in folder.rglob(f".*{TEMPORARY}"):  # of a killed run
            leftover.unlink()
        write_json(folder / BASIS, asdict(basis))

    @classmethod
    def attach(cls, folder: Path) -> Staging:
        """Return the work in `folder`, for a process that helps the writer that opened it.

        Nothing is removed, because other processes may be at work. Helpers may finish different shards at the same
        time: file and record are each renamed in one step, the record last. Only the writer seals.

        Raises:
            FileNotFoundError: No writer has opened the folder.
        """
        if not (folder / BASIS).is_file():
            raise FileNotFoundError(f"{folder}: there is no unfinished work here")
        staging = cls.__new__(cls)
        staging.folder = folder
        return staging

    @property
    def sealed(self) -> bool:
        """Whether only the rename is missing: a run was killed between the manifest and `Store.commit`."""
        return (self.folder / MANIFEST_NAME).is_file()

    @property
    def scratch(self) -> Path:
        """A subfolder for files that resuming needs and the artifact does not keep."""
        path = self.folder / SCRATCH
        path.mkdir(exist_ok=True)
        return path

    def path(self, name: str) -> Path:
        """Return the present path of the artifact's file `name`, and create its folder."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def has(self, name: str) -> bool:
        """Return whether this shard is finished and its file is unchanged.

        A file that was touched since is hashed; a damaged one counts as unfinished.
        """
        return self._finished(self._record(name)) is not None

    def write_table(self, name: str, table: pa.Table, group_rows: int | None = None) -> Shard:
        """Write a table as a Parquet shard of the artifact; equal rows give equal bytes.

        Args:
            name: Path of the file in the artifact.
            table: The rows.
            group_rows: As for `storage.tables.write_table`.
        """
        from storage.tables import write_table  # late: a process that only reads manifests needs no Arrow

        with atomic_path(self.path(name)) as temporary:
            write_table(temporary, table, group_rows)
        return self.finish(name, rows=table.num_rows)

    def finish(self, name: str, rows: int | None = None, *, log: bool = False) -> Shard:
        """Record a complete file as a finished shard; its bytes are on disk before the record is.

        Args:
            name: Path of the file in the artifact.
            rows: Number of rows of a table; None for other files.
            log: Whether the file only describes the run and is not part of the content.
        """
        path = self.folder / name
        path.chmod(0o666 & ~_UMASK)  # some libraries write files that only the owner can read
        sync(path)
        shard = Shard(name, rows, path.stat().st_size, sha256_of(path), log)
        self._write_record(shard)
        return shard

    def adopt(self, source: Path, shards: Iterable[Shard]) -> None:
        """Adopt shards from another artifact's folder.

        Within a store they are hard links, if the file system supports it. The files of another store are copied,
        because a link would change their status, and that store may be one that is only read.
        """
        linked = source.is_relative_to(self.folder.parents[1])
        for shard in shards:
            with atomic_path(self.path(shard.path)) as temporary:
                try:
                    if not linked:
                        raise OSError
                    os.link(source / shard.path, temporary)
                except OSError:
                    shutil.copyfile(source / shard.path, temporary)
            self._write_record(shard)

    def finished(self) -> list[Shard]:
        """Return the finished shards, sorted by path."""
        basis = self.folder / BASIS
        records = [path for path in (self.folder / RECORDS).rglob("*.json") if path != basis]
        shards = (self._finished(record) for record in records)
        return sorted((shard for shard in shards if shard), key=lambda shard: shard.path)

    def discard(self) -> None:
        """Discard the work, for a writer that finds that another process has finished it."""
        shutil.rmtree(self.folder)

    def fail(self, error: BaseException) -> None:
        """Record why the work stopped, for `status` to show, without secrets; finished shards stay."""
        if not self.folder.is_dir():
            return  # committed or discarded already
        message = redact(str(error) or type(error).__name__).encode(errors="replace").decode()
        write_json(self.folder / FAILURE, {"error": type(error).__name__, "message": message})

    def seal(
        self,
        *,
        kind: str,
        fingerprint: str,
        identity: Mapping[str, Any],
        config: Mapping[str, Any],
        inputs: Iterable[InputRef],
        stats: Mapping[str, Any],
        provenance: Mapping[str, Any],
    ) -> Manifest:
        """Record the remaining files, remove the scratch folder and write the manifest.

        Args:
            kind: Kind of the artifact.
            fingerprint: Its fingerprint.
            identity: The settings and inputs behind the fingerprint.
            config: The full configuration of the run.
            inputs: The artifacts it is made from.
            stats: Counts and measurements of the run.
            provenance: Where it comes from, see `storage.provenance`.
        """
        shutil.rmtree(self.folder / SCRATCH, ignore_errors=True)
        for path in self._files():
            name = path.relative_to(self.folder).as_posix()
            if not self.has(name):
                self.finish(name)
        shards = tuple(self.finished())
        manifest = Manifest(
            kind=kind,
            fingerprint=fingerprint,
            identity=identity,
            config=config,
            inputs=tuple(inputs),
            shards=shards,
            stats=stats,
            provenance=provenance,
            content=content_digest(shards),
        )
        sync_folders(self.folder)
        write_text(self.folder / MANIFEST_NAME, manifest.to_json())
        return manifest

    @classmethod
    def is_complete(cls, folder: Path, inputs: tuple[InputRef, ...]) -> bool:
        """Return whether the work in `folder` was sealed from these inputs and is undamaged.

        Only the rename of such work is missing, because a run was killed after the manifest was written. The shard
        records may be gone already.
        """
        try:
            manifest = Manifest.read(folder)
        except UnreadableManifest:
            return False
        if manifest is None or manifest.inputs != inputs:
            return False
        files = ((shard, folder / shard.path) for shard in manifest.shards)
        return all(path.is_file() and sha256_of(path) == shard.sha256 for shard, path in files)

    def _files(self) -> Iterator[Path]:
        for path in sorted(self.folder.rglob("*")):
            inside = path.relative_to(self.folder).parts
            if path.is_file() and inside[0] != RECORDS and inside[0] not in (MANIFEST_NAME, FAILURE):
                yield path

    def _record(self, name: str) -> Path:
        return self.folder / RECORDS / f"{name}.json"

    def _write_record(self, shard: Shard) -> None:
        write_json(self._record(shard.path), asdict(_Finished(shard, stamp_of(self.folder / shard.path))))

    def _finished(self, record: Path) -> Shard | None:
        """Return the shard of a record, or None if there is no record or the file has changed."""
        try:
            known: _Finished = read_checked(record, _Finished, _AGAIN)
            shard = known.shard
            path = self.folder / shard.path
            stamp = stamp_of(path)
            if self._record(shard.path) != record or stamp is None or stamp[1] != shard.bytes:
                return None
            return shard if stamp == known.stamp or sha256_of(path) == shard.sha256 else None
        except (UserError, OSError, ValueError):
            return None
