"""A small piece of real work on a store: everything that a pipeline does to artifacts, in a fraction of a second."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nextquill_core.model.template_choice import TemplateChoice
from nextquill_core.pipeline import Step
from nextquill_core.pipeline.run import Run
from storage import Artifact, InputRef, Staging, Store
from storage.garbage import inventory, needed, removable, remove, remove_with_dependents, verify_artifacts
from storage.integrity import VERIFIED
from storage.pointers import Target, move_pointer, pointer_lock, read_pointer
from storage.remote import open_store

NUMBERS = Step("scan", "numbers", {"shards": 2})
SQUARES = Step("effects", "squares", {"power": 2}, (NUMBERS,))
SUM = Step("score", "sum", {}, (SQUARES,))
USERS_DATA = Step("scan", "a user's data", {"user": "gone"})
FROM_USERS_DATA = Step("effects", "made from a user's data", {}, (USERS_DATA,))
UNUSED = Step("evaluate", "unused", {})
POINTER = "best"


class Work(Run):
    """A run whose steps are made in milliseconds; `Run.make`, staging, commit and removal are the real ones.

    Args:
        root: The store's folder, or its URI.
        journal: File outside the store with a line for each build and each shard that is made.
    """

    def __init__(self, root: Path | str, journal: Path) -> None:
        self.store = Store(root) if isinstance(root, Path) else open_store(root)
        self.config = SimpleNamespace(model_dump=lambda mode: {})  # type: ignore[assignment]
        self.plan = SimpleNamespace(model_identity={}, template=TemplateChoice("plain", "chosen by the test"))  # type: ignore[assignment]
        self._journal = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def prepare(self) -> None:
        """Fill a store with artifacts that `do` replaces and removes."""
        self.make(NUMBERS, self._numbers)
        self.make(SQUARES, self._squares)
        for step in (USERS_DATA, FROM_USERS_DATA, UNUSED):
            self.make(step, partial(_note, step.name))

    def do(self) -> None:
        """Do the work, or the rest of it after an interruption."""
        remove_with_dependents(self.store, self._doomed())
        self.make(NUMBERS, self._numbers)
        self.make(SQUARES, self._squares)
        total = self.make(SUM, self._sum).artifact
        with pointer_lock(self.store, POINTER):
            pointer = read_pointer(self.store, POINTER)
            if pointer is None or pointer.target.ref != total.ref:
                move_pointer(self.store, POINTER, Target(total.ref, _find(self, SQUARES).ref))
        found = inventory(self.store)
        wanted = [(step.kind, step.fingerprint) for step in (NUMBERS, SQUARES, SUM)]
        for _ in remove(self.store, removable(found, needed(found, wanted))):
            pass

    def _doomed(self) -> list[InputRef]:
        """Return the artifact that is removed for its user, or what an interrupted removal has left of it."""
        kind, name = USERS_DATA.kind, USERS_DATA.fingerprint
        found = self.store.find(kind, name)
        return [found.ref] if found else [InputRef(kind, name, "")] if name in self.store.orphans(kind) else []

    def _numbers(self, staging: Staging) -> Mapping[str, Any]:
        self._log("build numbers")
        (staging.scratch / "half.txt").write_text("not kept")
        for shard in range(2):
            if not staging.has(f"numbers/{shard}.parquet"):
                self._log(f"shard {shard}")
                staging.write_table(
                    f"numbers/{shard}.parquet", pa.table({"x": list(range(shard * 10, shard * 10 + 10))})
                )
        return _note("numbers", staging)

    def _squares(self, staging: Staging) -> Mapping[str, Any]:
        self._log("build squares")
        source = _find(self, NUMBERS)
        shards = source.shards("numbers/")
        staging.adopt(source.folder, shards)
        for shard in shards:
            table = pq.read_table(source.folder / shard.path)
            squares = pa.table({"x": [value * value for value in table["x"].to_pylist()]})
            staging.write_table(shard.path.replace("numbers", "squares"), squares)
        return {"rows": sum(shard.rows or 0 for shard in shards)}

    def _sum(self, staging: Staging) -> Mapping[str, Any]:
        self._log("build sum")
        tables = [pq.read_table(path) for path in _find(self, SQUARES).files("squares/")]
        return _note(str(sum(sum(table["x"].to_pylist()) for table in tables)), staging)

    def _log(self, line: str) -> None:
        os.write(self._journal, f"{line}\n".encode())


def contents(root: Path) -> dict[str, str]:
    """Return a digest of every file in a store that a result depends on, by path.

    Left out are logs, the fields of manifests that describe the run (provenance, config, stats), locks, the records of
    verified files, which hold inode numbers, and the events beside pointers.
    """
    found: dict[str, str] = {}
    logs: set[Path] = set()
    for path in sorted(root.rglob("manifest.json")):
        with suppress(ValueError):  # half a manifest counts as it is
            values = json.loads(path.read_bytes())
            logs |= {path, *(path.parent / shard["path"] for shard in values["shards"] if shard["log"])}
            kept = {key: values[key] for key in ("kind", "fingerprint", "identity", "inputs", "content")}
            kept["shards"] = [shard for shard in values["shards"] if not shard["log"]]
            found[path.relative_to(root).as_posix()] = _digest(json.dumps(kept, sort_keys=True).encode())
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        notes = name.startswith("accepted/") and path.suffix == ".jsonl"
        ours = path.name.startswith(".lock-") or name.startswith(VERIFIED) or notes
        if path.is_file() and path not in logs and not ours:
            found[name] = _digest(path.read_bytes())
    return found


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def leftovers(root: Path) -> list[str]:
    """Return what an interruption left in a store: unfinished and removed folders, temporary files, shard records and
    records of failures."""
    garbage = (".staging-", ".aside-", "scratch", ".shards", "failure.json")
    return sorted(
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        if path.name.startswith(garbage) or path.name.endswith((".tmp", ".replaced", ".unfinished"))
    )


def faults(root: Path) -> dict[tuple[str, str], str]:
    """Return what is wrong with the artifacts of a store, by kind and fingerprint."""
    return {name: fault for name, fault in verify_artifacts(Store(root)) if fault}


def damage(path: Path) -> None:
    """Change one bit of a file in place."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _find(run: Run, step: Step) -> Artifact:
    artifact = run.store.find(step.kind, step.fingerprint)
    if artifact is None:
        raise LookupError(step.name)
    return artifact


def _note(text: str, staging: Staging) -> Mapping[str, Any]:
    staging.path("note.txt").write_text(text)
    return {}
