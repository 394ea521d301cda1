"""Scheduled runs: what reads raw files again, and what does not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from nextquill_core.errors import DataError
from nextquill_core.ingest import scan
from nextquill_core.ingest.formats.json_parser import Parser
from nextquill_core.pipeline.run import Run
from storage import UserError
from storage import source_digests as digests
from tests.nextquill_core.ingest.world import World, plain_category
from tests.world import small_config


def ingest(run: Run) -> dict[str, bool]:
    """Whether each artifact was reused."""
    made = {category: run.make(step).reused for category, step in run.plan.scans.items()}
    return made | {"ingest": run.make(run.plan.ingest).reused}


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    reviews, items = plain_category()
    world = World(tmp_path)
    files = {"reviews": str(world.write("r.jsonl", reviews)), "items": str(world.write("i.jsonl", items))}
    protocol = {"min_text_chars": 1, "min_user_reviews": 1, "min_item_users": 1, "n_targets": 3}
    protocol |= {"min_profile_reviews": 0, "min_profile_item_users": 0, "min_description_chars": 0}
    return {"inputs": [{"category": "C", **files}], "protocol": protocol}


def run_of(tmp_path: Path, settings: dict[str, Any], **protocol: Any) -> Run:
    own = settings | {"protocol": settings["protocol"] | protocol}
    return Run(small_config(tmp_path, tmp_path / "store", ingest=own))


def test_a_changed_threshold_reads_no_raw_file(
    tmp_path: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ingest(run_of(tmp_path, settings)) == {"C": False, "ingest": False}
    monkeypatch.setattr(Parser, "parse", None)
    monkeypatch.setattr(digests, "_whole", None)
    monkeypatch.setattr(digests, "_sample", None)
    assert ingest(run_of(tmp_path, settings)) == {"C": True, "ingest": True}
    for changed in ({"min_text_chars": 8}, {"max_description_chars": 9}, {"name": "global-time", "test_share": 0.4}):
        assert ingest(run_of(tmp_path, settings, **changed)) == {"C": True, "ingest": False}


def test_a_change_of_what_is_cleaned_reads_no_raw_file(
    tmp_path: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = run_of(tmp_path, settings)
    ingest(kept)
    assert "clean" not in kept.plan.ingest.settings["ingest"]
    monkeypatch.setattr(Parser, "parse", None)
    assert ingest(run_of(tmp_path, settings | {"clean": {"html": "keep"}})) == {"C": True, "ingest": True}
    for html, why in (("unescape", '(absent) → {"html":"unescape"}'), ("strip", "unescape → strip")):
        run = run_of(tmp_path, settings | {"clean": {"html": html}})
        assert run.freshness(run.plan.ingest).why.removeprefix("ingest.clean").removeprefix(".html") == f" {why}"
        assert ingest(run) == {"C": True, "ingest": False}


def test_another_category_is_scanned_alone(tmp_path: Path, settings: dict[str, Any]) -> None:
    ingest(run_of(tmp_path, settings))
    reviews, _ = plain_category()
    other = settings["inputs"][0] | {"category": "D", "reviews": str(World(tmp_path).write("d.jsonl", reviews[:12]))}
    two = settings | {"inputs": [*settings["inputs"], other]}
    assert ingest(run_of(tmp_path, two)) == {"C": True, "D": False, "ingest": False}


def test_a_touched_file_is_the_same_and_an_edited_one_is_not(tmp_path: Path, settings: dict[str, Any]) -> None:
    run = run_of(tmp_path, settings)
    ingest(run)
    path = tmp_path / "r.jsonl"
    os.utime(path, ns=(1, 1))
    assert ingest(run_of(tmp_path, settings)) == {"C": True, "ingest": True}
    path.write_bytes(path.read_bytes().replace(b"text 1 of 2", b"text 1 of X"))
    edited = run_of(tmp_path, settings)
    assert ingest(edited) == {"C": False, "ingest": False}
    assert "text 1 of X" in str(World(tmp_path).table("sequences", edited.artifact(edited.plan.ingest).folder))


def test_the_digest_of_all_bytes_is_taken_while_scanning(
    tmp_path: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(tmp_path, settings)
    whole = digests._whole(tmp_path / "r.jsonl")
    monkeypatch.setattr(digests, "_whole", None)
    ingest(run)
    assert run.store.raw_digests(save=True).whole(tmp_path / "r.jsonl") == whole


def test_a_file_that_changes_under_the_scan_is_refused(
    tmp_path: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(tmp_path, settings)
    path = tmp_path / "r.jsonl"
    original = scan._Digest.read_to

    def meanwhile(self: Any, position: int) -> None:
        original(self, position)
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 1_000_000))

    with monkeypatch.context() as patch:
        patch.setattr(scan._Digest, "read_to", meanwhile)
        with pytest.raises(DataError, match=r"r\.jsonl: the file changed while it was read; run the command again"):
            ingest(run)
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(UserError, match="the reviews changed since the run began"):
        ingest(run)
