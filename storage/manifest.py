"""What an artifact is and how it came to be: the record that is written last and whose existence means "complete"."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from storage.errors import DamagedManifest, NewerManifest
from storage.files import read_text
from storage.fingerprint import fingerprint

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"
_NO_OTHER_FIELDS = {"extra": "forbid"}
MOST_SECONDS = 1e10
"""A longer time of making is damage: three hundred years."""


@dataclass(frozen=True)
class Shard:
    """One file of an artifact.

    Attributes:
        path: Relative to the artifact's folder, with forward slashes.
        rows: Rows of a table; None for other files.
        log: True for a file that tells how the work went (timings, curves) and is not part of what was made.
    """

    __pydantic_config__: ClassVar = _NO_OTHER_FIELDS

    path: str
    rows: int | None
    bytes: int
    sha256: str
    log: bool = False


@dataclass(frozen=True)
class InputRef:
    """An artifact this one was made from; `content` is its content digest at that moment."""

    __pydantic_config__: ClassVar = _NO_OTHER_FIELDS

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
        """Rows of all tables."""
        return sum(shard.rows or 0 for shard in self.shards)

    @property
    def bytes(self) -> int:
        """Bytes of all files, the manifest itself left out."""
        return sum(shard.bytes for shard in self.shards)

    @property
    def seconds(self) -> float:
        """How long it took to make, in seconds; 0 where the provenance does not say."""
        found = self.provenance.get("seconds")
        return float(found) if isinstance(found, int | float) and 0 <= found < MOST_SECONDS else 0.0

    def to_json(self) -> str:
        """Indented JSON, one trailing newline."""
        values = asdict(self)
        if not self.generation:
            del values["generation"]
        return json.dumps(values, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def read(cls, folder: Path) -> Manifest | None:
        """Return the manifest of an artifact's folder, or None where there is none: no manifest, no artifact.

        Raises:
            DamagedManifest: The file is damaged.
            NewerManifest: It was written by a newer version.
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
        """Return the manifest whose JSON was read at `where`.

        Raises:
            DamagedManifest: It is damaged or names files outside its folder.
            NewerManifest: It was written by a newer version.
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
            manifest: Manifest = _checker().validate_python(values)
        except (ValueError, RecursionError):  # pydantic's error is a ValueError
            raise damaged from None
        for name in (
            manifest.kind,
            manifest.fingerprint,
            manifest.generation,
            *(shard.path for shard in manifest.shards),
        ):
            if name.startswith("/") or ".." in name.split("/") or not name.isprintable():
                raise DamagedManifest(f"the manifest names {name!r}, outside its folder", where, "run its stage again")
        return manifest


@cache
def _checker() -> Any:
    """Return what checks the types of a manifest's fields; unknown fields are refused."""
    from pydantic import TypeAdapter  # late: a GPU worker that only writes shards needs no check

    return TypeAdapter(Manifest)


def content_digest(shards: tuple[Shard, ...]) -> str:
    """Digest of what was made, independent of logs, times and order of writing."""
    return fingerprint(sorted((shard.path, shard.sha256) for shard in shards if not shard.log))
