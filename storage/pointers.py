"""Names that point at artifacts: `STORE/accepted/NAME.json` says which one a name stands for, and which it did before.

The file is replaced in one step, so a reader sees the old target or the new one. What happened is told, a line an
event, in `NAME.jsonl` beside it, for people; nothing is decided by it.
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
from storage.files import discard_temporaries, read_text, sync, write_text
from storage.manifest import InputRef
from storage.store import Store

KIND = "accepted"
PATIENCE_S = 60.0
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Target:
    """What a name points at.

    Attributes:
        ref: The artifact.
        measured: The artifact by which it was judged; it is kept as long as the target is.
        note: What else is known of the decision; JSON values.
    """

    ref: InputRef
    measured: InputRef
    note: Mapping[str, Any] = field(default_factory=dict)

    @property
    def refs(self) -> tuple[InputRef, InputRef]:
        """What has to stay in the store for it."""
        return self.ref, self.measured


@dataclass(frozen=True)
class Pointer:
    """A name's target and those it had before, the last of them first."""

    target: Target
    before: tuple[Target, ...] = ()


def read_pointer(store: Store, name: str) -> Pointer | None:
    """What a name points at, or None where nothing has been accepted under it.

    Raises:
        UserError: The name cannot be one, or the file is damaged.
    """
    text = _get(store, _file(name))
    if text is None:
        return None
    try:
        values = json.loads(text)
        return Pointer(_target(values["target"]), tuple(_target(value) for value in values["before"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        where = pointer_location(store, name)
        raise UserError(
            "the pointer is damaged", where, "fix or delete it; NAME.jsonl beside it lists what it stood for"
        ) from None


def pointer_names(store: Store) -> list[str]:
    """All names that point somewhere."""
    objects = _objects(store)
    if objects is not None:
        files = objects.children(f".{KIND}")
    else:
        files = [path.name for path in (store.root / KIND).glob("*.json")]
    return sorted(file.removesuffix(".json") for file in files if NAME.fullmatch(file) and file.endswith(".json"))


def pointer_location(store: Store, name: str) -> str:
    """Where the pointer stands, for people to read."""
    objects = _objects(store)
    return str(store.root / KIND / _file(name)) if objects is None else f"{objects}/.{KIND}/{_file(name)}"


@contextmanager
def moving(store: Store, name: str) -> Iterator[None]:
    """Be the only one who may move this pointer, from the look at what it is to the move.

    Raises:
        UserError: Somebody else is at it for a minute.
    """
    _file(name)
    try:
        with store.alone(KIND, name, patience=PATIENCE_S):
            for file in (_file(name), f"{name}.jsonl"):
                discard_temporaries(store.root / KIND / file)
            yield
    except Busy:
        where = pointer_location(store, name)
        raise UserError(f"another process is moving `{name}`", where, "run the same command again") from None


def move_pointer(store: Store, name: str, target: Target) -> None:
    """Let the name stand for `target`; what it stood for is remembered. The caller is in `moving`."""
    known = read_pointer(store, name)
    _put(store, name, Pointer(target, (known.target, *known.before) if known else ()))
    tell(store, name, "accepted", target)


def move_back(store: Store, name: str) -> Target:
    """Let the name stand for what it stood for before; once more, for the one before that. The caller is in `moving`.

    Raises:
        UserError: There was none before, or it is no longer in the store.
    """
    known, where = read_pointer(store, name), pointer_location(store, name)
    if known is None or not known.before:
        raise UserError(f"`{name}` pointed at nothing before", where, "promote another adapter instead")
    target, *older = known.before
    if not stands(store, target.ref):
        raise UserError(
            f"{target.ref.kind} {target.ref.fingerprint}, accepted before, is no longer in the store as it was",
            where,
            "promote another adapter instead",
        )
    _put(store, name, Pointer(target, tuple(older)))
    tell(store, name, "moved back", target)
    return target


def stands(store: Store, ref: InputRef) -> bool:
    """Whether the artifact is in the store and holds what it held."""
    found = store.find(ref.kind, ref.fingerprint)
    return found is not None and found.manifest.content == ref.content


def tell(store: Store, name: str, event: str, target: Target) -> None:
    """Add an event to the pointer's past."""
    line = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "event": event, **asdict(target)}
    past = _get(store, f"{name}.jsonl") or ""
    _write(store, f"{name}.jsonl", past + json.dumps(line, ensure_ascii=False) + "\n")


def _target(values: Mapping[str, Any]) -> Target:
    ref, measured, note = InputRef(**values["ref"]), InputRef(**values["measured"]), values["note"]
    words = [word for origin in (ref, measured) for word in (origin.kind, origin.fingerprint, origin.content)]
    if not isinstance(note, dict) or not all(isinstance(word, str) for word in words):
        raise ValueError(f"{values!r} is not a pointer's target")
    return Target(ref, measured, note)


def _put(store: Store, name: str, pointer: Pointer) -> None:
    _write(store, _file(name), json.dumps(asdict(pointer), indent=2, ensure_ascii=False) + "\n")


def _file(name: str) -> str:
    if not NAME.fullmatch(name):
        raise UserError(f"`{name}` cannot be the name of a pointer", remedy="use letters, digits, dashes, dots")
    return f"{name}.json"


def _objects(store: Store) -> Any:
    """Where a remote store keeps small files; None where the store is a folder.

    Its folder begins with a dot, as all there that is no artifact.
    """
    return getattr(store, "objects", None)


def _get(store: Store, file: str) -> str | None:
    objects = _objects(store)
    if objects is not None:
        value: bytes | None = objects.get(f".{KIND}/{file}")
        return None if value is None else value.decode("utf-8", errors="replace")
    path = store.root / KIND / file
    try:
        return read_text(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        fault = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UserError(f"the pointer cannot be read ({fault})", str(path), "fix or delete it") from None


def _write(store: Store, file: str, text: str) -> None:
    objects = _objects(store)
    if objects is not None:
        objects.put(f".{KIND}/{file}", text.encode())
    else:
        write_text(store.root / KIND / file, text)
        sync(store.root / KIND)
