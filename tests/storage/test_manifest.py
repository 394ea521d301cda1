"""Manifests: what decides the content digest, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

from storage import Basis, Store, UserError
from tests.storage.test_store import fill

BASIS = Basis(tools="b")


def test_equal_content_has_equal_digest_and_logs_do_not_count(tmp_path: Path) -> None:
    digests = []
    for number in range(2):
        store = Store(tmp_path / str(number))
        with store.write("kind", "a", BASIS) as staging:
            staging.write_table("0.parquet", pa.table({"x": [1]}))
            staging.path("log.txt").write_text(f"run {number}")
            staging.finish("log.txt", log=True)
            manifest = staging.seal(
                kind="kind", fingerprint="a", identity={}, config={}, inputs=[], stats={}, provenance={}
            )
        digests.append(manifest.content)
    assert digests[0] == digests[1]


def test_damaged_or_newer_manifests_are_reported_in_one_line(tmp_path: Path) -> None:
    store = Store(tmp_path)
    fill(store)
    path = store.folder("kind", "a") / "manifest.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"schema_version": 99}))
    with pytest.raises(UserError, match="manifest schema 99"):
        store.find("kind", "a")
    assert "manifest schema 99" in store.manifest_fault("kind", "a")
    assert list(store.newest_first("kind")) == []
    path.write_text("{")
    assert store.find("kind", "a") is None
    assert store.manifest_fault("kind", "a") == "the manifest is damaged"
    assert store.unreadable("kind") == {"a": "the manifest is damaged"}
