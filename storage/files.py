"""Files and folders that exist whole or not at all, and survive a loss of power.

Durability policy: the bytes of a file are synced before anything refers to the file, such as a rename, a shard record
or a manifest. The entries of folders are synced at three moments: all folders of a staging folder before its manifest
is written; the parent folder after a change that others rely on (an artifact or a pointer gets its name, an artifact
is removed); and the parents of a store's folders when they are made. So all files of a manifest are on disk before the
manifest, and what a command has reported as done survives a loss of power.
"""

from __future__ import annotations

import ctypes
import errno
import glob
import hashlib
import json
import os
import stat
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from storage.errors import UserError

TEMPORARY = ".tmp"
MOST_TEXT = 256_000_000
"""Size in bytes above which a manifest or note is not read; it is enough for a million shards."""
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary file beside `path` to write to; it is renamed to `path` if the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{TEMPORARY}")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def discard_temporaries(path: Path) -> None:
    """Remove the temporary files that killed writers of `path` left behind; the caller is its only writer."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*{TEMPORARY}"):
        leftover.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_text(path: Path) -> str:
    """Return the UTF-8 text of a small file.

    Raises:
        OSError: The file is absent, unreadable, not a regular file (a pipe would block), or too large.
        ValueError: It is not UTF-8.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is not a file", str(path))
        if status.st_size > MOST_TEXT:
            raise OSError(errno.EFBIG, f"{status.st_size:,} bytes, at most {MOST_TEXT:,} are read", str(path))
        return file.read(MOST_TEXT).decode("utf-8")


def read_json(path: Path) -> Any:
    """Return the JSON value in a small file.

    Raises:
        OSError: The file cannot be read, see `read_text`.
        ValueError: The file does not hold JSON.
    """
    try:
        return json.loads(read_text(path))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def user_path(path: Path | str, remedy: str) -> Iterator[None]:
    """Turn an error of the operating system about a path that the user named into one line for the user.

    Use it around the first access to such a path. It covers a file in place of a folder, missing permission, a
    read-only or full file system, and a name that is too long.

    Args:
        path: The path, for the message.
        remedy: How to fix it, with the option or setting that names the path.

    Raises:
        UserError: The block raised an `OSError`, or the path has a NUL character in it.
    """
    try:
        yield
    except OSError as error:
        concerned = f": {error.filename}" if error.filename and str(error.filename) != str(path) else ""
        raise UserError(f"cannot be written ({error.strerror or error}{concerned})", str(path), remedy) from None
    except ValueError as error:
        if isinstance(error, UserError) or "null" not in str(error):
            raise
        raise UserError(f"is not a path ({error})", str(path), remedy) from None


def require_writable(folder: Path, remedy: str) -> None:
    """Create a folder that the user named, if it is missing, and check that files can be written to it.

    Raises:
        UserError: The folder cannot be created, or not written to.
    """
    with user_path(folder, remedy):
        make_folder(folder)
        with TemporaryFile(dir=folder) as probe:  # the file has no name, so a killed process leaves nothing
            probe.write(b"x")


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's entries, are on disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # some file systems do not sync folders
            raise
    finally:
        os.close(descriptor)


def sync_folders(root: Path) -> None:
    """Wait until the entries of a folder and of all its subfolders are on disk, the deepest first."""
    for folder, _, _ in os.walk(root, topdown=False):
        sync(Path(folder))


def sync_tree(root: Path) -> None:
    """Wait until a folder and everything in it are on disk."""
    for folder, _, files in os.walk(root, topdown=False):
        for name in files:
            sync(Path(folder, name))
        sync(Path(folder))


def make_folder(path: Path) -> None:
    """Create a folder and its missing parents; their entries are on disk afterwards."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in reversed(missing):
        sync(folder.parent)


def replace_folder(new: Path, name: Path, aside: Path) -> None:
    """Rename the folder `new` to `name`; a folder that has this name is called `aside` afterwards.

    Linux exchanges two names in one step. On other systems, and on file systems without this operation, no folder has
    the name for a moment.

    Args:
        new: The new folder.
        name: The name it gets.
        aside: The name for the folder that it replaces.

    Raises:
        OSError: The folder cannot be renamed.
    """
    if not name.exists():
        new.rename(name)
        return
    exchange = _renameat2()
    if exchange and exchange(_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(name), _RENAME_EXCHANGE) == 0:
        new.rename(aside)
    else:
        name.rename(aside)
        new.rename(name)


@cache
def _renameat2() -> Any:
    """Return the C library's `renameat2`, or None if there is none."""
    if sys.platform != "linux":
        return None
    with suppress(OSError, AttributeError):
        function = ctypes.CDLL(None, use_errno=True).renameat2
        function.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
        return function
    return None
