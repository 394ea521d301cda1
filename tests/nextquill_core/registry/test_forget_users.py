"""A user who is forgotten is in no byte of the store, not of what earlier runs left either."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from nextquill_core.pipeline.run import Run
from nextquill_core.registry.forget_users import forget_users
from storage.objects import Objects
from tests.nextquill_core.ingest.test_privacy import everything
from tests.stages import make
from tests.world import small_config


def artifacts(run: Run) -> set[str]:
    return {path.parent.relative_to(run.store.root).as_posix() for path in run.store.root.glob("*/*/manifest.json")}


@pytest.mark.pipeline
def test_after_a_rerun_no_artifact_of_any_stage_holds_them(whole: Run, small_world: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(whole.store.root, store)
    sequences = pl.read_parquet(store / "ingest" / "*" / "sequences" / "*.parquet")
    user, reviews = sequences.select("user_id", "reviews").row(0)
    raw = _rows(small_world / "reviews.jsonl")
    texts = Counter(row.get("text") for row in raw)
    sentences = [review["text"] for review in reviews if texts[review["text"]] == 1]
    assert len(sentences) > 3
    before = everything(store)
    assert user in before
    assert all(sentence in before for sentence in sentences)

    (tmp_path / "forget.txt").write_text(user)
    run = Run(small_config(small_world, store, privacy={"forget": str(tmp_path / "forget.txt")}))
    removed = forget_users(run)
    assert {name.partition("/")[0] for name in removed} == {
        "scan", "ingest", "model", "effects", "score", "train", "predictions", "choice", "likelihood", "evaluate",
    }  # fmt: skip
    make(run, run.plan.evaluate)
    shown = everything(store)
    for secret in (user, *sentences):
        assert secret not in shown
    stats = run.artifact(run.plan.ingest).manifest.stats
    assert stats["reviews"]["dropped"]["forgotten_user"] == sum(row.get("user_id") == user for row in raw)
    assert forget_users(run) == []


def test_others_keep_what_they_have_and_unfinished_work_goes(small_world: Path, tmp_path: Path) -> None:
    from nextquill_core.synthetic.sample import write_sample

    store = tmp_path / "store"
    write_sample(tmp_path / "other", users=20, seed=7)
    mine, other = Run(small_config(small_world, store)), Run(small_config(tmp_path / "other", store))
    for run in (mine, other):
        make(run, run.plan.ingest)
    kept = {f"{step.kind}/{step.fingerprint}" for step in (*other.plan.scans.values(), other.plan.ingest)}
    with pytest.raises(KeyboardInterrupt):  # work on what would be made from an artifact that has to go
        mine.make(mine.plan.ingest, lambda staging: _interrupt(staging.path("half.txt")), force=True)
    user = pl.read_parquet(mine.artifact(mine.plan.ingest).folder / "sequences" / "*.parquet")["user_id"][0]
    assert user not in set(pl.read_parquet(other.artifact(other.plan.ingest).folder / "sequences/*.parquet")["user_id"])
    (tmp_path / "forget.txt").write_text(user)
    run = Run(small_config(small_world, store, privacy={"forget": str(tmp_path / "forget.txt")}))
    assert len(forget_users(run)) == 2
    assert artifacts(run) == kept
    assert not list(store.glob("*/.staging-*"))
    assert not list(store.glob("*/.aside-*"))


def test_a_removal_that_was_interrupted_in_an_object_store_is_finished(
    small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest is removed first, so the second run finds files that no manifest names."""
    monkeypatch.setenv("NEXTQUILL_CACHE", str(tmp_path / "cache"))
    store = f"memory://{tmp_path.name}/store"
    mine = Run(small_config(small_world, store))  # type: ignore[arg-type]
    make(mine, mine.plan.ingest)
    user = pl.read_parquet(mine.artifact(mine.plan.ingest).folder / "sequences" / "*.parquet")["user_id"][0]
    (tmp_path / "forget.txt").write_text(user)
    config = small_config(small_world, store, privacy={"forget": str(tmp_path / "forget.txt")})  # type: ignore[arg-type]
    delete = Objects.delete

    def interrupted(objects: Objects, keys: Iterable[str]) -> None:
        keys = list(keys)
        if any(key.startswith("scan/") and "/data-" in key for key in keys):
            raise KeyboardInterrupt
        delete(objects, keys)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Objects, "delete", interrupted)
        forget_users(Run(config))
    left = [key for key in Objects(store).keys("scan") if "/data-" in key]
    assert left
    assert "scan" in {name.partition("/")[0] for name in forget_users(Run(config))}
    assert Objects(store).keys("") == []
    assert forget_users(Run(config)) == []


def _rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a raw file without its bad lines."""
    rows = []
    for line in path.read_bytes().splitlines():
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict)]


def _interrupt(path: Path) -> dict[str, object]:
    path.write_text("half")
    raise KeyboardInterrupt
