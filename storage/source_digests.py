"""Digests of large raw files, without reading them as a whole each time."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from storage.errors import UserError
from storage.files import discard_temporaries, write_json
from storage.locks import WriterLock
from storage.stored_json import read_checked

SAMPLES = 64
SAMPLE_BYTES = 64 << 10


@dataclass(frozen=True)
class _Known:
    """What is known of a file in one state.

    Attributes:
        digest: The digest that identifies it.
        sample: Digest of its size and of pieces of it.
        whole: Digest of all its bytes, if they have been read.
    """

    digest: str
    sample: str
    whole: str | None = None


class DigestCache:
    """Digests of large files (XXH3, 128 bits), remembered by path, size, inode and modification time.

    A new raw file is identified by a digest of its size and of 64 pieces of 64 kB spread over it. A file that agrees
    with a known one in all of these, but was touched, copied or written again, is read as a whole and compared with
    the other's bytes. So a change is seen unless size, inode and modification time all stay the same (writing in place
    and setting the clock back). Two stores that have never seen both files cannot tell that they differ only between
    the pieces.

    Args:
        path: JSON file of the known digests; it need not exist.
        save: Whether to write new digests to it. Commands that only read a store do not change it.
    """

    def __init__(self, path: Path, *, save: bool = True) -> None:
        self._path = path
        self._save = save
        self._known = _load(path)

    def __call__(self, file: Path) -> str:
        """Return the digest that identifies `file`.

        Raises:
            OSError: The file cannot be read.
        """
        key = _state_of(file)
        if key not in self._known:
            sample = _sample(file)
            alike = {other: known for other, known in self._known.items() if known.sample == sample}
            if not alike:
                self._remember(key, _Known(sample, sample))
            else:
                whole = _whole(file)
                same = (known for other, known in alike.items() if self._whole_of(other) == whole)
                found = next(same, None)
                self._remember(key, _Known(found.digest if found else whole, sample, whole))
        return self._known[key].digest

    def whole(self, file: Path) -> str:
        """Return the digest of all bytes of `file`.

        Raises:
            OSError: The file cannot be read.
        """
        self(file)
        return self._whole_of(_state_of(file)) or _whole(file)

    def confirm(self, file: Path, whole: str) -> None:
        """Record the digest of all bytes of `file`, from a caller that had to read them anyway."""
        self(file)
        key = _state_of(file)
        self._remember(key, replace(self._known[key], whole=whole))

    def _whole_of(self, key: str) -> str | None:
        """Return the digest of all bytes of a known file, or None if it has changed since and they were never read."""
        known = self._known[key]
        file = Path(key.rsplit("|", 3)[0])
        if known.whole is None and file.exists() and _state_of(file) == key:
            known = replace(known, whole=_whole(file))
            self._remember(key, known)
        return known.whole

    def _remember(self, key: str, known: _Known) -> None:
        if self._known.get(key) != known:
            self._known[key] = known
            if self._save:
                self._write()

    def _write(self) -> None:
        """Write the known digests, together with those that other processes have written since."""
        lock = WriterLock(self._path.with_name(f".lock-{self._path.stem.lstrip('.')}"))
        with suppress(OSError):  # a read-only store remembers nothing
            lock.acquire(timeout=-1)
            try:
                discard_temporaries(self._path)
                self._known = _load(self._path) | self._known
                write_json(self._path, {key: asdict(value) for key, value in self._known.items()})
            finally:
                lock.release()


def _load(path: Path) -> dict[str, _Known]:
    """Return the known digests; none if the file is missing or damaged, because the raw files can be read again."""
    try:
        known: dict[str, _Known] = read_checked(path, dict[str, _Known], "remove it")
    except UserError:
        return {}
    return known


def _state_of(file: Path) -> str:
    stat = file.stat()
    return f"{file.resolve()}|{stat.st_size}|{stat.st_ino}|{stat.st_mtime_ns}"


def _sample(file: Path) -> str:
    import xxhash  # late: GPU images score and train without it

    size = file.stat().st_size
    digest = xxhash.xxh3_128(str(size).encode())
    with file.open("rb", buffering=0) as opened:
        for piece in range(SAMPLES):
            opened.seek(piece * max(size - SAMPLE_BYTES, 0) // (SAMPLES - 1))
            digest.update(opened.read(SAMPLE_BYTES))
    return digest.hexdigest()


def _whole(file: Path) -> str:
    import xxhash

    with file.open("rb", buffering=0) as opened:
        return hashlib.file_digest(opened, xxhash.xxh3_128).hexdigest()
