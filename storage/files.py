"""Files that are there whole or not at all, and what is in them."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xxhash


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary sibling to write to; it takes the name `path` only if the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class DigestCache:
    """XXH3 (128 bits) of raw files, remembered by path, size, inode and modification time.

    A file is read once; later runs only look at its directory entry. A change that keeps all four (writing in place
    and setting the clock back) is not seen. Raw files run to tens of gigabytes and nobody forges them, so their digest
    is one that is as fast as memory; what an artifact holds goes by SHA-256.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._known: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self._known = {}

    def __call__(self, file: Path) -> str:
        """The digest of `file`.

        Raises:
            OSError: The file cannot be read.
        """
        stat = file.stat()
        key = f"{file.resolve()}|{stat.st_size}|{stat.st_ino}|{stat.st_mtime_ns}"
        if key not in self._known:
            with file.open("rb", buffering=0) as opened:
                self._known[key] = hashlib.file_digest(opened, xxhash.xxh3_128).hexdigest()
            write_json(self._path, self._known)
        return self._known[key]
