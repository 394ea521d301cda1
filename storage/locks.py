"""File locks of writers, which readers can query without taking them."""

from __future__ import annotations

import fcntl
import os
import struct
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from storage.files import make_folder

# `struct flock` of 64-bit Linux: type, whence, start, length (0: to the end), process id.
_LINUX_FLOCK = "hhqqi4x"
_CAN_QUERY = hasattr(fcntl, "F_OFD_GETLK")


class WriterLock:
    """Exclusive lock at a path, held by one process.

    `filelock` excludes other writers. Its kind of lock (flock) cannot be queried, so the holder also takes an
    open-file-description lock on the same file. The kernel releases both when the holder dies.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = FileLock(path)
        self._marker: int | None = None

    def acquire(self, timeout: float) -> None:
        """Acquire the lock, waiting `timeout` seconds for another holder; -1 waits without limit.

        Raises:
            Timeout: Another process still holds it.
        """
        make_folder(self._path.parent)
        self._lock.acquire(timeout=timeout)
        if _CAN_QUERY:
            self._marker = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
            with suppress(OSError):  # the file system has no such locks; readers then see no writer
                fcntl.fcntl(self._marker, fcntl.F_OFD_SETLK, _whole_file(fcntl.F_WRLCK))

    def release(self) -> None:
        """Release the lock."""
        if self._marker is not None:
            os.close(self._marker)
            self._marker = None
        self._lock.release()


def is_held(path: Path) -> bool:
    """Return whether a process holds the writer lock at `path`; nothing is locked, created or written.

    On platforms that cannot query a lock (macOS), it is taken for a moment.
    """
    if not _CAN_QUERY:
        if not path.exists():
            return False
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except (Timeout, OSError):
            return True
        lock.release()
        return False
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _whole_file(fcntl.F_WRLCK))
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return bool(struct.unpack(_LINUX_FLOCK, answer)[0] != fcntl.F_UNLCK)


def _whole_file(kind: int) -> bytes:
    return struct.pack(_LINUX_FLOCK, kind, os.SEEK_SET, 0, 0, 0)
