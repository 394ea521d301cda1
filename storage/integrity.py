"""Verification of the files of an artifact against its manifest.

Existence and size are checked at every look. The SHA-256 of a file is compared once before it is read; the file then
counts as verified while its inode, size and times stay the same. A writer records the files that it has just hashed,
so usually no file is hashed twice. Readers keep what they verified in memory only.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from storage.files import read_json, sha256_of
from storage.manifest import Manifest, Shard

VERIFIED = ".verified"
"""Folder of a store for the records of verified files."""
Stamp = list[int]
DAMAGED: Stamp = []
"""Stamp recorded for a damaged file; no file has this stamp, so it is hashed at every look."""


class Verification:
    """Records which files of a store have been compared with their manifests.

    Args:
        folder: Folder of the records, one JSON file per artifact. It can be deleted at any time.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._memory: dict[str, dict[str, Stamp]] = {}

    def fault(
        self, home: Path, manifest: Manifest, shards: Iterable[Shard], *, read: bool, everything: bool = False
    ) -> str:
        """Return what is wrong with the first damaged file, or "".

        Args:
            home: Folder of the artifact's files.
            manifest: The artifact's manifest.
            shards: The files to check.
            read: Whether the files are about to be read: files that were never verified are then hashed. A verified
                file that has changed since is always hashed.
            everything: Hash all of them, because a disk that loses bits does not change the times of a file.
        """
        known = self._known(manifest)
        for shard in shards:
            path = home / shard.path
            stamp = stamp_of(path)
            if stamp is None:
                return f"file {shard.path} is missing"
            if stamp[1] != shard.bytes:
                return f"file {shard.path} is damaged ({stamp[1]:,} bytes, {shard.bytes:,} expected)"
            before = known.get(shard.path)
            if not everything and (before == stamp or (before is None and not read)):
                continue
            try:
                same = sha256_of(path) == shard.sha256
            except OSError as error:
                return f"file {shard.path} cannot be read ({error.strerror})"
            if not same:
                known[shard.path] = DAMAGED
                return f"file {shard.path} is damaged (its SHA-256 is not the manifest's)"
            known[shard.path] = stamp
        return ""

    def remember(self, manifest: Manifest) -> None:
        """Write the record of an artifact; only writers call it.

        The file is neither written atomically nor synced, because a lost or damaged record only means that nothing
        counts as verified.
        """
        known = self._known(manifest)
        if known == self._load(manifest):
            return
        text = json.dumps({"content": manifest.content, "files": known})
        with suppress(OSError):  # the next process verifies again
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file(manifest).write_text(text, encoding="utf-8")

    def trust(self, home: Path, manifest: Manifest) -> None:
        """Record all files of an artifact as verified, for a writer that has just hashed them."""
        stamps = {shard.path: stamp_of(home / shard.path) for shard in manifest.shards}
        self._memory[_name(manifest)] = {path: stamp for path, stamp in stamps.items() if stamp is not None}
        self.remember(manifest)

    def forget(self, kind: str, fingerprint: str) -> None:
        """Drop the record of an artifact that is removed."""
        self._memory = {
            name: known for name, known in self._memory.items() if not name.startswith(f"{kind}-{fingerprint}")
        }
        with suppress(OSError):
            (self._folder / f"{kind}-{fingerprint}.json").unlink(missing_ok=True)

    def _known(self, manifest: Manifest) -> dict[str, Stamp]:
        name = _name(manifest)
        if name not in self._memory:
            self._memory[name] = self._load(manifest)
        return self._memory[name]

    def _load(self, manifest: Manifest) -> dict[str, Stamp]:
        try:
            values = read_json(self._file(manifest))
            if values["content"] != manifest.content:
                return {}
            return {str(path): [int(part) for part in stamp] for path, stamp in values["files"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
            return {}

    def _file(self, manifest: Manifest) -> Path:
        return self._folder / f"{manifest.kind}-{manifest.fingerprint}.json"


def stamp_of(path: Path) -> Stamp | None:
    """Return a file's inode, size, modification and status-change time (ns); None where there is no ordinary file."""
    try:
        status = path.stat()
    except (OSError, ValueError):  # a name with a NUL in it is a ValueError
        return None
    if not stat.S_ISREG(status.st_mode):  # reading a pipe would never end
        return None
    return [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _name(manifest: Manifest) -> str:
    return f"{manifest.kind}-{manifest.fingerprint}-{manifest.generation}-{manifest.content}"
