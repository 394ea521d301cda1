"""Whether the files of an artifact are still those that its manifest names.

Existence and size are compared whenever an artifact is looked at. The SHA-256 of a file is compared once before it is
read; the file then counts as verified for as long as its inode, size and times stay the same. A writer remembers the
files it has just hashed, so nothing is hashed twice in the usual case. Readers keep what they verified in memory only.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from storage.errors import UserError
from storage.files import read_json, sha256_of
from storage.manifest import Manifest, Shard

FOLDER = ".verified"
Stamp = list[int]
DAMAGED: Stamp = []
"""Remembered of a file that was found to be damaged; no file has this stamp, so it is hashed at every look."""


class Damaged(UserError):  # noqa: N818  it says what the artifact is
    """A file of an artifact is missing, or its bytes are not those that the manifest names."""


class Verification:
    """Remembers which files of a store have been compared with their manifests.

    Args:
        folder: Where the memory is kept: one JSON file an artifact. It can be deleted at any time.
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
            shards: Which of its files to look at.
            read: Whether the files are about to be read: those that were never verified are then hashed. A verified
                file that was touched since is hashed in any case.
            everything: Hash all of them. A disk that loses bits changes no time of a file.
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
        """Write down what is verified of an artifact; called by writers only, and lost without harm.

        The file is neither written atomically nor synced: one that cannot be read means that nothing is verified.
        """
        known = self._known(manifest)
        if known == self._load(manifest):
            return
        text = json.dumps({"content": manifest.content, "files": known})
        with suppress(OSError):  # a store that cannot be written verifies again in the next process
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file(manifest).write_text(text, encoding="utf-8")

    def trust(self, home: Path, manifest: Manifest) -> None:
        """Count all files of an artifact as verified; for a writer that has just hashed them."""
        stamps = {shard.path: stamp_of(home / shard.path) for shard in manifest.shards}
        self._memory[_name(manifest)] = {path: stamp for path, stamp in stamps.items() if stamp is not None}
        self.remember(manifest)

    def forget(self, kind: str, fingerprint: str) -> None:
        """Drop what is known of an artifact that is removed."""
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
