"""Artifacts for the tests of stores."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa

from storage import Artifact, Basis, InputRef, Manifest, Staging, Store

BASIS = Basis(tools="b")


def fill(store: Store, name: str = "a", rows: int = 3, files: int = 2, **options: bool) -> Artifact:
    with store.write("kind", name, BASIS, **options) as staging:
        return finish(store, staging, name, rows, files)


def finish(store: Store, staging: Staging, name: str = "a", rows: int = 3, files: int = 2) -> Artifact:
    for number in range(files):
        staging.write_table(f"part/{number}.parquet", pa.table({"x": list(range(rows))}))
    staging.path("empty.txt").write_text("")
    seal(staging, name)
    return store.commit("kind", name)


def seal(
    staging: Staging, name: str = "a", kind: str = "kind", inputs: Iterable[InputRef] = (), **provenance: str
) -> Manifest:
    return staging.seal(
        kind=kind, fingerprint=name, identity={"a": 1}, config={}, inputs=inputs, stats={}, provenance=provenance
    )


def existing(store: Store, name: str = "a", kind: str = "kind") -> Artifact:
    """Return an artifact that must be in the store."""
    artifact = store.find(kind, name)
    assert artifact is not None
    return artifact


def files_under(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
