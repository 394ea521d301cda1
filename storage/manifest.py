"""What an artifact is and how it came to be: the record that is written last and whose existence means "complete"."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from storage.errors import UserError
from storage.fingerprint import fingerprint

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"


@dataclass(frozen=True)
class Shard:
    """One file of an artifact.

    Attributes:
        path: Relative to the artifact's folder, with forward slashes.
        rows: Rows of a table; None for other files.
        log: True for a file that tells how the work went (timings, curves) and is not part of what was made.
    """

    path: str
    rows: int | None
    bytes: int
    sha256: str
    log: bool = False


@dataclass(frozen=True)
class InputRef:
    """An artifact this one was made from; `content` is its content digest at that moment."""

    kind: str
    fingerprint: str
    content: str


@dataclass(frozen=True)
class Manifest:
    """The whole record.

    Attributes:
        identity: The fields behind the fingerprint.
        config: The full configuration of the run that made it, operational fields too.
        content: Digest over the paths and hashes of all shards that are not logs: equal content, equal digest.
        generation: The subfolder that holds the files; "" where they stand beside the manifest. An object store cannot
            rename, so each writer there has a subfolder of its own, and the manifest says whose counts.
    """

    kind: str
    fingerprint: str
    identity: Mapping[str, Any]
    config: Mapping[str, Any]
    inputs: tuple[InputRef, ...]
    shards: tuple[Shard, ...]
    stats: Mapping[str, Any]
    provenance: Mapping[str, Any]
    content: str = ""
    generation: str = ""
    schema_version: int = field(default=SCHEMA_VERSION)

    @property
    def rows(self) -> int:
        """Rows of all tables."""
        return sum(shard.rows or 0 for shard in self.shards)

    @property
    def bytes(self) -> int:
        """Bytes of all files, the manifest itself left out."""
        return sum(shard.bytes for shard in self.shards)

    def to_json(self) -> str:
        """Indented JSON, one trailing newline."""
        values = asdict(self)
        if not self.generation:
            del values["generation"]
        return json.dumps(values, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def read(cls, folder: Path) -> Manifest | None:
        """The manifest of an artifact's folder, or None where there is none: no manifest, no artifact.

        Raises:
            UserError: The file is damaged or was written by a newer version.
        """
        path = folder / MANIFEST_NAME
        try:
            text = path.read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ValueError:
            text = ""
        return cls.parse(text, str(path))

    @classmethod
    def parse(cls, text: str, where: str) -> Manifest:
        """The manifest whose JSON was read at `where`.

        Raises:
            UserError: It is damaged, names files outside its folder, or was written by a newer version.
        """
        try:
            values = json.loads(text)
        except ValueError:
            raise UserError("the manifest is damaged", where, "delete the folder; it is made again") from None
        if values.get("schema_version") != SCHEMA_VERSION:
            raise UserError(
                f"manifest schema {values.get('schema_version')}, this version reads {SCHEMA_VERSION}",
                where,
                "use the version that wrote it, or delete the folder",
            )
        values["inputs"] = tuple(InputRef(**ref) for ref in values["inputs"])
        values["shards"] = tuple(Shard(**shard) for shard in values["shards"])
        manifest = cls(**values)
        for name in (manifest.generation, *(shard.path for shard in manifest.shards)):
            if name.startswith("/") or ".." in name.split("/"):
                raise UserError(f"the manifest names {name}, outside its folder", where, "delete the folder")
        return manifest


def content_digest(shards: tuple[Shard, ...]) -> str:
    """Digest of what was made, independent of logs, times and order of writing."""
    return fingerprint(sorted((shard.path, shard.sha256) for shard in shards if not shard.log))
