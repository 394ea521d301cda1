"""Work in progress: a folder that fills shard by shard and becomes an artifact in one rename.

A shard is finished once its record stands in `.shards/`; a killed run finds the finished ones again and makes the
rest. The manifest is written when all files are there, and only then does the folder get its name.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storage.errors import UnreadableManifest
from storage.files import TEMPORARY, atomic_path, read_json, sha256_of, sync, sync_folders, write_json, write_text
from storage.integrity import stamp_of
from storage.manifest import MANIFEST_NAME, InputRef, Manifest, Shard, content_digest

if TYPE_CHECKING:
    import pyarrow as pa

RECORDS = ".shards"
SCRATCH = "scratch"
FAILURE = "failure.json"
BASIS = f"{RECORDS}/basis.json"


@dataclass(frozen=True)
class Basis:
    """What unfinished work was begun with; if any of it changes, the work begins anew.

    Attributes:
        inputs: The artifacts it is made from, and what they held.
        tools: What else decides the bytes of the parts, such as a library's version.
    """

    inputs: tuple[InputRef, ...] = ()
    tools: str = ""

    @classmethod
    def of(cls, folder: Path) -> Basis | None:
        """The basis of the work standing in `folder`, or None where that cannot be told."""
        try:
            values = read_json(folder / BASIS)
            return cls(tuple(InputRef(**ref) for ref in values["inputs"]), values["tools"])
        except (OSError, ValueError, KeyError, TypeError):
            return None


class Staging:
    """The unfinished form of one artifact; made by `Store.write`, under its lock."""

    def __init__(self, folder: Path, basis: Basis) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FAILURE).unlink(missing_ok=True)
        self.discard_unfinished()
        write_json(folder / BASIS, asdict(basis))

    @classmethod
    def attach(cls, folder: Path) -> Staging:
        """The work that stands in `folder`, for a process that helps the writer who opened it.

        Nothing is swept or begun anew, because others may be at work. Helpers may finish different shards side by
        side: file and record get their names in one step each, and the record comes last. Only the writer seals.

        Raises:
            FileNotFoundError: Nobody has opened it.
        """
        if not (folder / BASIS).is_file():
            raise FileNotFoundError(f"{folder}: no unfinished work stands here")
        staging = cls.__new__(cls)
        staging.folder = folder
        return staging

    @property
    def sealed(self) -> bool:
        """Whether all is done but the rename: a run was killed between the manifest and `Store.commit`."""
        return (self.folder / MANIFEST_NAME).is_file()

    @property
    def scratch(self) -> Path:
        """A subfolder for what resuming needs and the artifact does not keep."""
        path = self.folder / SCRATCH
        path.mkdir(exist_ok=True)
        return path

    def path(self, name: str) -> Path:
        """Where the file `name` of the artifact stands for now; its folder exists."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def has(self, name: str) -> bool:
        """Return whether this shard is finished and its file is still the one that was finished.

        A file that was touched since is hashed; a damaged one counts as unfinished.
        """
        return self._finished(self._record(name)) is not None

    def write_table(self, name: str, table: pa.Table, *, log: bool = False) -> Shard:
        """Write a table as a Parquet shard; same rows, same bytes."""
        from storage.tables import write_table  # late: a process that only looks at a store needs no Arrow

        with atomic_path(self.path(name)) as temporary:
            write_table(temporary, table)
        return self.finish(name, rows=table.num_rows, log=log)

    def finish(self, name: str, rows: int | None = None, *, log: bool = False) -> Shard:
        """Record a file that is complete under `name`; its bytes are on disk before the record names them."""
        path = self.folder / name
        path.chmod(0o666 & ~_umask())  # some libraries write files that only their owner may read
        sync(path)
        shard = Shard(name, rows, path.stat().st_size, sha256_of(path), log)
        self._write_record(shard)
        return shard

    def adopt(self, source: Path, shards: Iterable[Shard]) -> None:
        """Take finished shards over from another artifact's folder, by hard link where the file system has them."""
        for shard in shards:
            with atomic_path(self.path(shard.path)) as temporary:
                try:
                    os.link(source / shard.path, temporary)
                except OSError:
                    shutil.copyfile(source / shard.path, temporary)
            self._write_record(shard)

    def finished(self) -> list[Shard]:
        """The finished shards, in the order of their paths."""
        basis = self.folder / BASIS
        records = [path for path in (self.folder / RECORDS).rglob("*.json") if path != basis]
        shards = (self._finished(record) for record in records)
        return sorted((shard for shard in shards if shard), key=lambda shard: shard.path)

    def discard_unfinished(self) -> None:
        """Remove temporary files that a killed run left behind."""
        for leftover in self.folder.rglob(f".*{TEMPORARY}"):
            leftover.unlink()

    def discard(self) -> None:
        """Drop the work, for a writer who finds that somebody else has finished it."""
        shutil.rmtree(self.folder)

    def fail(self, error: BaseException) -> None:
        """Leave a note of why the work stopped, for `status` to show; finished shards stay."""
        if not self.folder.is_dir():
            return  # committed or discarded already
        message = str(error) or type(error).__name__
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
        """Record the files that have no record yet, drop the scratch folder, write the manifest."""
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
        """Return whether the work in `folder` was sealed, from these inputs, and nothing of it was damaged since.

        Such work only lacks its name: a run was killed between the manifest and the rename. The shard records may be
        gone already.
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
        write_json(self._record(shard.path), {"shard": asdict(shard), "stamp": stamp_of(self.folder / shard.path)})

    def _finished(self, record: Path) -> Shard | None:
        """Return the shard of a record, or None where there is no record or the file is not the recorded one."""
        try:
            values = read_json(record)
            shard, recorded = Shard(**values["shard"]), values["stamp"]
            path = self.folder / shard.path
            stamp = stamp_of(path)
            if self._record(shard.path) != record or stamp is None or stamp[1] != shard.bytes:
                return None
            return shard if stamp == recorded or sha256_of(path) == shard.sha256 else None
        except (OSError, ValueError, KeyError, TypeError):
            return None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
