"""Artifacts for the tests of stores in object stores."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from storage import Artifact, Basis, Store

BASIS = Basis(tools="b")


def fill(store: Store, name: str = "a", rows: int = 3, files: int = 2, **options: bool) -> Artifact:
    with store.write("kind", name, BASIS, **options) as staging:
        return finish(store, staging, name, rows, files)


def finish(store: Store, staging: object, name: str = "a", rows: int = 3, files: int = 2) -> Artifact:
    for number in range(files):
        staging.write_table(f"part/{number}.parquet", pa.table({"x": list(range(rows))}))  # type: ignore[attr-defined]
    staging.path("empty.txt").write_text("")  # type: ignore[attr-defined]
    seal(staging, name)
    return store.commit("kind", name)


def seal(staging: object, name: str = "a") -> None:
    staging.seal(  # type: ignore[attr-defined]
        kind="kind", fingerprint=name, identity={"a": 1}, config={}, inputs=[], stats={}, provenance={}
    )


def files_under(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
