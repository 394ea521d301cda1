"""Manifests: what decides the content digest, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

from storage import Store, UserError
from storage.garbage import inventory
from tests.storage.helpers import BASIS, fill, seal


def test_equal_content_has_equal_digest_and_logs_do_not_count(tmp_path: Path) -> None:
    digests = []
    for number in range(2):
        store = Store(tmp_path / str(number))
        with store.write("kind", "a", BASIS) as staging:
            staging.write_table("0.parquet", pa.table({"x": [1]}))
            staging.path("log.txt").write_text(f"run {number}")
            staging.finish("log.txt", log=True)
            digests.append(seal(staging).content)
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


@pytest.mark.parametrize("name", ["/etc", "a/../../b", "nul\0", "x" * 256, "é" * 128, "/".join(["folder"] * 200)])
@pytest.mark.parametrize("place", ["kind", "fingerprint", "generation", "shards", "inputs"])
def test_names_that_are_no_place_in_the_folder_are_damage(tmp_path: Path, place: str, name: str) -> None:
    store = Store(tmp_path)
    fill(store)
    path = store.folder("kind", "a") / "manifest.json"
    values = json.loads(path.read_text())
    values["inputs"] = [{"kind": "other", "fingerprint": "b", "content": ""}]
    if place in ("shards", "inputs"):
        values[place][0]["path" if place == "shards" else "fingerprint"] = name
    else:
        values[place] = name
    path.write_text(json.dumps(values))
    assert list(store.newest_first("kind")) == []
    assert [item.state for item in inventory(store)] == ["damaged"]
    assert "which is no place in its folder" in store.manifest_fault("kind", "a")
