"""A simulated disk that loses what was not synced: the folder tree that a loss of power leaves behind.

The model is the minimum that POSIX promises. A file's bytes survive as of its last fsync. A change of names (a new
file, a rename, an exchange, a removal) survives once a folder that it touches has been synced; before that, each change
may survive or not, independently of the others and of their order. No change survives by half.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.operations import Operation

_Folder = dict[str, int]  # inode by name


@dataclass
class _Change:
    """One change of names: the inode of each (folder's inode, name) after it, or None if the name is gone."""

    places: list[tuple[int, str, Path]]
    after: dict[tuple[int, str], int | None] = field(default_factory=dict)


class Disk:
    """Records what is synced below a folder; pass `before` to `operations.watched`.

    Args:
        root: The folder; all that is in it now is synced.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._data: dict[int, bytes] = {}
        self._folders: dict[int, _Folder] = {}
        self._pending: list[_Change] = []
        self._open: _Change | None = None
        self._held: dict[int, int] = {}  # the number of an open inode is not used again
        self._paths: dict[int, Path] = {}
        for folder, _, files in os.walk(root):
            self._sync_folder(Path(folder))
            for name in files:
                self._sync_file(Path(folder, name))

    def close(self) -> None:
        """Close the recorded files."""
        for descriptor in self._held.values():
            os.close(descriptor)
        self._held.clear()

    def before(self, operation: Operation) -> None:
        """Record an operation that is about to happen, and the result of the one before."""
        self._settle()
        path = Path(operation.path)
        if operation.name == "fsync":
            (self._sync_folder if path.is_dir() else self._sync_file)(path)
        elif operation.name in ("rename", "replace", "exchange"):
            self._open = _Change([self._place(Path(operation.source)), self._place(path)])
        elif operation.name not in ("write", "write the rest", "chmod", "truncate"):
            self._open = _Change([self._place(path)])

    def lose_power(self, target: Path, choice: random.Random | None = None) -> None:
        """Write to `target` what is on the disk if power fails now.

        Args:
            target: A folder that does not exist yet.
            choice: Decides which unsynced changes survive; None if none of them does.
        """
        self._settle()
        folders = {inode: dict(entries) for inode, entries in self._folders.items()}
        for change in self._pending:
            if choice and choice.random() < 0.5:
                _apply(folders, change)
        self._write(self._inode(self._root), target, folders, choice)

    def _write(self, inode: int, target: Path, folders: dict[int, _Folder], choice: random.Random | None) -> None:
        target.mkdir(parents=True)
        for name, child in folders.get(inode, {}).items():
            if os.path.isdir(f"/proc/self/fd/{self._held[child]}"):  # noqa: PTH112
                self._write(child, target / name, folders, choice)
            else:
                (target / name).write_bytes(self._survived(child, choice))

    def _survived(self, inode: int, choice: random.Random | None) -> bytes:
        synced = self._data.get(inode, b"")
        if choice is None:
            return synced
        with open(f"/proc/self/fd/{self._held[inode]}", "rb") as file:  # noqa: PTH123
            now = file.read()
        if now == synced:
            return synced
        return choice.choice([synced, now, now[: len(now) // 2], bytes(len(now))])

    def _settle(self) -> None:
        """Record the result of the last change of names."""
        change, self._open = self._open, None
        if change is None:
            return
        for folder, name, path in change.places:
            change.after[folder, name] = self._inode(path) if os.path.lexists(path) else None
        self._pending.append(change)

    def _sync_file(self, path: Path) -> None:
        self._data[self._inode(path)] = path.read_bytes()

    def _sync_folder(self, path: Path) -> None:
        inode = self._inode(path)
        kept = []
        for change in self._pending:
            if any(folder == inode for folder, _, _ in change.places):
                _apply(self._folders, change)
            else:
                kept.append(change)
        self._pending = kept
        self._folders[inode] = {entry.name: self._inode(Path(entry.path)) for entry in os.scandir(path)}

    def _place(self, path: Path) -> tuple[int, str, Path]:
        return self._inode(path.parent), path.name, path

    def _inode(self, path: Path) -> int:
        inode = path.lstat().st_ino
        if inode not in self._held:
            self._held[inode] = os.open(path, os.O_PATH | os.O_NOFOLLOW)
        return inode


def _apply(folders: dict[int, _Folder], change: _Change) -> None:
    for (folder, name), inode in change.after.items():
        entries = folders.setdefault(folder, {})
        if inode is None:
            entries.pop(name, None)
        else:
            entries[name] = inode
