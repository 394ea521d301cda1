"""Watches the file operations of a block of code, and calls a function before each of them.

Every call that changes a folder tree is an operation: opening a file for writing, each half of a write (so that a file
can be left half written), fsync, rename, the exchange of two names, unlink, rmdir, mkdir, link, chmod and truncate.
Python's calls are patched, and Arrow is made to write through them. Libraries with native writers (Polars, safetensors)
are seen where our code renames or syncs their files.
"""

from __future__ import annotations

import builtins
import ctypes
import io
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import storage.files

_ONE_PATH = ("mkdir", "rmdir", "unlink", "remove", "chmod", "truncate")
_TWO_PATHS = ("rename", "replace", "link", "symlink")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


@dataclass(frozen=True)
class Operation:
    """An operation that is about to happen.

    Attributes:
        number: 1 for the first one of the block.
        name: Name of the system call, or "write" and "write the rest".
        path: The path that it changes.
        source: The other name of a rename, an exchange or a link.
    """

    number: int
    name: str
    path: str
    source: str = ""


Before = Callable[[Operation], None]


@contextmanager
def watched(root: Path, before: Before, *, fast: bool = True) -> Iterator[None]:
    """Call `before` ahead of every operation on `root` or below it.

    Args:
        root: The folder of interest; operations elsewhere are not watched.
        before: The function; it may raise an error, which then is the result of the operation, or kill the process.
        fast: Skip the fsync itself, since only a loss of power would show the difference.
    """
    watch = _Watch(os.path.realpath(root), before)
    with ExitStack() as patches:

        def patch(target: Any, name: str, replacement: Any) -> None:
            patches.enter_context(mock.patch.object(target, name, replacement))

        for name in _ONE_PATH:
            patch(os, name, watch.one_path(name, getattr(os, name)))
        for name in _TWO_PATHS:
            patch(os, name, watch.two_paths(name, getattr(os, name)))
        patch(os, "fsync", watch.fsync(os.fsync, fast))
        patch(os, "open", watch.open_descriptor(os.open))
        opened = watch.open_file(io.open)
        patch(io, "open", opened)
        patch(builtins, "open", opened)
        if exchange := storage.files._renameat2():
            patch(storage.files, "_renameat2", lambda: watch.exchange(exchange))
        import pyarrow.parquet as pq

        patch(pq, "write_table", _through_python(pq.write_table))
        yield


class _Watch:
    def __init__(self, root: str, before: Before) -> None:
        self._root = root
        self._before = before
        self._count = 0
        self._inside = False

    def announce(self, name: str, path: str, source: str = "") -> None:
        inside = path == self._root or path.startswith(self._root + os.sep)
        if self._inside or not inside:
            return
        self._count += 1
        self._inside = True  # what `before` does itself is not watched
        try:
            self._before(Operation(self._count, name, path, source))
        finally:
            self._inside = False

    def one_path(self, name: str, real: Any) -> Any:
        def call(path: Any, *arguments: Any, **options: Any) -> Any:
            self.announce(name, _whole(path, options.get("dir_fd")))
            return real(path, *arguments, **options)

        return call

    def two_paths(self, name: str, real: Any) -> Any:
        def call(source: Any, target: Any, **options: Any) -> Any:
            named = _whole(source, options.get("src_dir_fd"))
            self.announce(name, _whole(target, options.get("dst_dir_fd")), named)
            return real(source, target, **options)

        return call

    def fsync(self, real: Any, fast: bool) -> Any:
        def call(descriptor: int) -> None:
            self.announce("fsync", _opened(descriptor))
            if not fast:
                real(descriptor)

        return call

    def exchange(self, real: Any) -> Any:
        def call(*arguments: Any) -> int:
            try:
                self.announce("exchange", os.fsdecode(arguments[3]), os.fsdecode(arguments[1]))
            except OSError as error:
                ctypes.set_errno(error.errno or 0)
                return -1
            return int(real(*arguments))

        return call

    def open_descriptor(self, real: Any) -> Any:
        def call(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
            if flags & _WRITES:
                self.announce("open", _whole(path, dir_fd))
            return int(real(path, flags, mode, dir_fd=dir_fd))

        return call

    def open_file(self, real: Any) -> Any:
        def call(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            if isinstance(file, int) or not set(mode) & set("wax+"):
                return real(file, mode, *arguments, **options)
            path = _whole(file, None)
            self.announce("open", path)
            return _File(real(file, mode, *arguments, **options), lambda name: self.announce(name, path))

        return call


class _File:
    """A file whose writes are split into halves, each an operation."""

    def __init__(self, file: Any, announce: Callable[[str], None]) -> None:
        self._file = file
        self._announce = announce

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[Any]:
        return iter(self._file)

    def write(self, data: Any) -> int:
        half = len(data) // 2
        self._announce("write")
        self._file.write(data[:half])
        self._file.flush()
        self._announce("write the rest")
        self._file.write(data[half:])
        return len(data)


def _through_python(real: Any) -> Any:
    """Make Arrow write a table through a Python file."""

    def write_table(table: Any, where: Any, **options: Any) -> None:
        with open(where, "wb") as file:  # noqa: PTH123  the patched function
            real(table, file, **options)

    return write_table


def _whole(path: Any, folder: int | None) -> str:
    """Return the absolute path; `folder` is the descriptor that a relative one starts at."""
    if isinstance(path, int):
        return _opened(path)
    name = os.fsdecode(os.fspath(path))
    start = _opened(folder) if folder is not None else str(Path.cwd())
    return os.path.normpath(os.path.join(start, name))  # noqa: PTH118  links are not resolved: they are what changes


def _opened(descriptor: int) -> str:
    return str(Path("/proc/self/fd", str(descriptor)).readlink())
