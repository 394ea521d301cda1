"""Pointers: names for artifacts. `STORE/accepted/NAME.json` holds the artifact of a name, and those it had before.

The file is replaced in one step, so a reader sees the old target or the new one. `NAME.jsonl` beside it lists the
events, one per line, for people to read; no code depends on it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from storage.errors import Busy, UserError
from storage.files import discard_temporaries
from storage.manifest import InputRef
from storage.store import Store
from storage.stored_json import check_form

FOLDER = "accepted"
PATIENCE_S = 60.0
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Target:
    """What a name points at.

    Attributes:
        ref: The artifact.
        measured: The artifact with the measurements that decided; it is kept as long as the target.
        note: Other facts about the decision, as JSON values.
    """

    ref: InputRef
    measured: InputRef
    note: Mapping[str, Any] = field(default_factory=dict)

    @property
    def refs(self) -> tuple[InputRef, InputRef]:
        """The artifacts that must stay in the store for it."""
        return self.ref, self.measured


@dataclass(frozen=True)
class Pointer:
    """The target of a name, and its earlier targets, the latest first."""

    target: Target
    before: tuple[Target, ...] = ()


def read_pointer(store: Store, name: str) -> Pointer | None:
    """Return the pointer of a name, or None if nothing has been accepted under it.

    Raises:
        UserError: The name is not valid, or the file is damaged.
    """
    text = store.read_note(FOLDER, _file(name))
    if text is None:
        return None
    remedy = "fix or delete it; NAME.jsonl beside it lists its earlier targets"
    pointer: Pointer = check_form(text, Pointer, pointer_location(store, name), remedy)
    return pointer


def pointer_names(store: Store) -> list[str]:
    """Return all names that point at something."""
    files = (file for file in store.note_names(FOLDER) if file.endswith(".json"))
    return sorted(file.removesuffix(".json") for file in files if NAME.fullmatch(file))


def pointer_location(store: Store, name: str) -> str:
    """Return the place of a pointer's file, for messages."""
    return store.note_location(FOLDER, _file(name))


@contextmanager
def pointer_lock(store: Store, name: str) -> Iterator[None]:
    """Hold the lock of a pointer, from the decision to move it until it is moved.

    Raises:
        UserError: Another process still holds it after a minute.
    """
    _file(name)
    try:
        with store.writer_lock(FOLDER, name, patience=PATIENCE_S):
            for file in (_file(name), f"{name}.jsonl"):
                discard_temporaries(store.root / FOLDER / file)
            yield
    except Busy:
        where = pointer_location(store, name)
        raise UserError(f"another process is moving `{name}`", where, "run the same command again") from None


def move_pointer(store: Store, name: str, target: Target) -> None:
    """Point a name at an artifact and record its earlier target; the caller holds the `pointer_lock`.

    Args:
        store: The store of the pointer.
        name: Name of the pointer.
        target: The artifact it points at from now on.
    """
    known = read_pointer(store, name)
    _write(store, name, Pointer(target, (known.target, *known.before) if known else ()))
    log_event(store, name, "accepted", target)


def move_back(store: Store, name: str) -> Target:
    """Point a name at its previous target, and return that; the caller holds the `pointer_lock`.

    Raises:
        UserError: There is no previous target, or it is no longer in the store.
    """
    known, where = read_pointer(store, name), pointer_location(store, name)
    remedy = "accept another artifact instead"
    if known is None or not known.before:
        raise UserError(f"`{name}` pointed at nothing before", where, remedy)
    target, *older = known.before
    if not is_unchanged(store, target.ref):
        previous = f"{target.ref.kind} {target.ref.fingerprint}, accepted before,"
        raise UserError(f"{previous} is no longer in the store, or has changed", where, remedy)
    _write(store, name, Pointer(target, tuple(older)))
    log_event(store, name, "moved back", target)
    return target


def is_unchanged(store: Store, ref: InputRef) -> bool:
    """Return whether an artifact is in the store with the content that it had."""
    found = store.find(ref.kind, ref.fingerprint)
    return found is not None and found.manifest.content == ref.content


def log_event(store: Store, name: str, event: str, target: Target) -> None:
    """Add an event to the list beside a pointer.

    Args:
        store: The store of the pointer.
        name: Name of the pointer.
        event: What happened, in a word or two.
        target: The artifact concerned.
    """
    line = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "event": event, **asdict(target)}
    events = store.read_note(FOLDER, f"{name}.jsonl") or ""
    store.write_note(FOLDER, f"{name}.jsonl", events + json.dumps(line, ensure_ascii=False) + "\n")


def _write(store: Store, name: str, pointer: Pointer) -> None:
    store.write_note(FOLDER, _file(name), json.dumps(asdict(pointer), indent=2, ensure_ascii=False) + "\n")


def _file(name: str) -> str:
    if not NAME.fullmatch(name):
        remedy = "use letters, digits, dashes and dots"
        raise UserError(f"`{name}` is not a valid name of a pointer", remedy=remedy)
    return f"{name}.json"
