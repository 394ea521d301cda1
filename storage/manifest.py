"""The manifest: what an artifact is and how it was made. It is written last, so its existence means "complete"."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

from storage.errors import DamagedManifest, NewerManifest
from storage.files import read_text
from storage.fingerprint import fingerprint
from storage.stored_json import type_adapter

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"
_NO_OTHER_FIELDS = {"extra": "forbid"}
MOST_SECONDS = 1e10
"""A longer duration means that the manifest is damaged: three hundred years."""
LONGEST_NAME, LONGEST_PATH = 255, 1024
"""Bytes of a file's name, and of its path within an artifact; file systems refuse longer ones with an error."""


@dataclass(frozen=True)
class Shard:
    """One file of an artifact.

    Attributes:
        path: Relative to the artifact's folder, with forward slashes.
        rows: Number of rows of a table; None for other files.
        log: Whether the file only describes the run (timings, curves) and is not part of the content.
    """

    __pydantic_config__: ClassVar = _NO_OTHER_FIELDS

    path: str
    rows: int | None
    bytes: int
    sha256: str
    log: bool = False


@dataclass(frozen=True)
class InputRef:
    """An input of an artifact, by kind and fingerprint; `content` is its content digest when it was read."""

    __pydantic_config__: ClassVar = _NO_OTHER_FIELDS

    kind: str
    fingerprint: str
    content: str


@dataclass(frozen=True)
class Manifest:
    """The manifest of an artifact.

    Attributes:
        kind: Kind of the artifact.
        fingerprint: Hash of `identity`.
        identity: The settings and inputs that decide the content.
        config: The full configuration of the run that made it, operational settings included.
        inputs: The artifacts it was made from.
        shards: Its files.
        stats: Counts and measurements of the run.
        provenance: Code version, host, times and library versions.
        content: Digest of the paths and hashes of all shards that are not logs: equal content, equal digest.
        generation: Subfolder of the files; "" if they are beside the manifest. An object store cannot rename, so each
            writer there has its own subfolder, and the manifest names the one that counts.
        schema_version: Version of this record.
    """

    __pydantic_config__: ClassVar = _NO_OTHER_FIELDS

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
        """The number of rows of all tables."""
        return sum(shard.rows or 0 for shard in self.shards)

    @property
    def bytes(self) -> int:
        """The size of all files in bytes, without the manifest."""
        return sum(shard.bytes for shard in self.shards)

    @property
    def seconds(self) -> float:
        """The time in seconds that it took to make; 0 if the provenance does not say."""
        found = self.provenance.get("seconds")
        return float(found) if isinstance(found, int | float) and 0 <= found < MOST_SECONDS else 0.0

    @property
    def ended(self) -> float | None:
        """When it was made by its writer's clock, in seconds since 1970; None if the provenance does not say."""
        try:
            return datetime.fromisoformat(self.provenance["end"]).timestamp()
        except (KeyError, ValueError, TypeError):
            return None

    def to_json(self) -> str:
        """Return indented JSON with one trailing newline."""
        values = asdict(self)
        if not self.generation:
            del values["generation"]
        return json.dumps(values, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def read(cls, folder: Path) -> Manifest | None:
        """Return the manifest in an artifact's folder, or None if there is none, and so no artifact.

        Raises:
            DamagedManifest: The file is damaged.
            NewerManifest: A newer version wrote it.
        """
        path = folder / MANIFEST_NAME
        try:
            text = read_text(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise DamagedManifest(
                f"the manifest cannot be read ({error.strerror})", str(path), "run its stage again, or delete it"
            ) from None
        except ValueError:
            text = ""
        return cls.parse(text, str(path))

    @classmethod
    def parse(cls, text: str, where: str) -> Manifest:
        """Return the manifest in a JSON text that was read at `where`.

        Raises:
            DamagedManifest: It is damaged, or names what is no place in its folder.
            NewerManifest: A newer version wrote it.
        """
        damaged = DamagedManifest("the manifest is damaged", where, "run its stage again")
        try:
            values = json.loads(text)
        except (ValueError, RecursionError):
            raise damaged from None
        version = values.get("schema_version") if isinstance(values, dict) else None
        if type(version) is int and SCHEMA_VERSION < version < 1000:
            raise NewerManifest(
                f"manifest schema {version}, this version reads {SCHEMA_VERSION}",
                where,
                "use the version that wrote it, or delete the folder",
            )
        if version != SCHEMA_VERSION:
            raise damaged
        try:
            manifest: Manifest = type_adapter(Manifest).validate_python(values)
        except (ValueError, RecursionError):  # pydantic's error is a ValueError
            raise damaged from None
        for name in (
            manifest.kind,
            manifest.fingerprint,
            manifest.generation,
            *(name for ref in manifest.inputs for name in (ref.kind, ref.fingerprint)),
            *(shard.path for shard in manifest.shards),
        ):
            if name.startswith("/") or ".." in name.split("/") or not name.isprintable() or not _fits(name):
                shown = name if len(name) <= 80 else f"{name[:80]}…"
                raise DamagedManifest(
                    f"the manifest names {shown!r}, which is no place in its folder", where, "run its stage again"
                )
        return manifest


def _fits(name: str) -> bool:
    """Return whether file systems can have a relative path of this length."""
    return len(name.encode()) <= LONGEST_PATH and all(len(part.encode()) <= LONGEST_NAME for part in name.split("/"))


def content_digest(shards: tuple[Shard, ...]) -> str:
    """Return the digest of the content, which does not depend on logs, times and the order of writing."""
    return fingerprint(sorted((shard.path, shard.sha256) for shard in shards if not shard.log))
