"""Files of a store with arbitrary content: readers end with an answer or one line, and never hang."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from nextquill_core.pipeline import freshness
from nextquill_core.registry.garbage import accepted, what
from storage import Basis, DigestCache, Store, UserError
from storage.garbage import dependents, inventory, needed, removable, verify_artifacts
from storage.integrity import VERIFIED
from storage.pointers import move_back, pointer_lock, pointer_names, read_pointer
from storage.staging import BASIS, FAILURE, RECORDS, Staging
from storage.stored_json import read_checked
from tests.chaos.hostile import documents
from tests.chaos.trials import TRIALS
from tests.chaos.work import NUMBERS, POINTER, SQUARES, SUM, UNUSED, Work
from tests.effort import trials

EXAMPLES = TRIALS * 20 or trials(40)
Reader = Callable[[Path], object]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with artifacts, a pointer, known digests, and work that failed half-way."""
    folder = tmp_path_factory.mktemp("hostile")
    work = Work(folder / "store", folder / "journal")
    work.prepare()
    work.do()
    (folder / "raw.jsonl").write_text("{}")
    work.store.raw_digests(save=True)(folder / "raw.jsonl")
    with suppress(ZeroDivisionError), work.store.write(UNUSED.kind, UNUSED.fingerprint, Basis(tools="t")) as staging:
        staging.path("part.txt").write_text("done")
        staging.finish("part.txt")
        raise ZeroDivisionError("no")
    return folder / "store"


def look_at_everything(root: Path) -> None:
    """Read of a store what `status`, `gc`, `verify` and the next run read."""
    store = Store(root)
    for step in (NUMBERS, SQUARES, SUM, UNUSED):
        for read in (
            lambda step=step: freshness(store, step),
            lambda step=step: store.progress(step.kind, step.fingerprint),
            lambda step=step: (artifact := store.find(step.kind, step.fingerprint)) and artifact.folder,
        ):
            with suppress(UserError):
                read()
    found = inventory(store)
    names = [held.name for held in found]
    removable(found, needed(found, names[:2]))
    dependents(found, names[:1])
    for held in found:
        what(held)
    for _ in verify_artifacts(store):
        pass
    for read in (lambda: accepted(store), lambda: read_pointer(store, POINTER), lambda: pointer_names(store)):
        with suppress(UserError):
            read()


def move_pointer_back(root: Path) -> None:
    with suppress(UserError), pointer_lock(Store(root), POINTER):
        move_back(Store(root), POINTER)


def resume(root: Path) -> None:
    """Read of unfinished work what a writer reads."""
    staging = Staging.attach(Store(root).staging_folder(UNUSED.kind, UNUSED.fingerprint))
    Basis.of(staging.folder)
    staging.has("part.txt")
    staging.finished()
    Staging.is_complete(staging.folder, ())


def digest_again(root: Path) -> None:
    raw = root.parent / "raw.jsonl"
    cache = DigestCache(root / ".digests.json", save=False)
    cache(raw)
    cache.whole(raw)


_UNFINISHED = f"{UNUSED.kind}/.staging-{UNUSED.fingerprint}"
FILES: dict[str, tuple[str, tuple[Reader, ...]]] = {
    "manifest": (f"{SQUARES.kind}/{SQUARES.fingerprint}/manifest.json", (look_at_everything,)),
    "pointer": (f"accepted/{POINTER}.json", (look_at_everything, move_pointer_back)),
    "digests of raw files": (".digests.json", (digest_again,)),
    "what was verified": (f"{VERIFIED}/{NUMBERS.kind}-{NUMBERS.fingerprint}.json", (look_at_everything,)),
    "note of a failure": (f"{_UNFINISHED}/{FAILURE}", (look_at_everything,)),
    "basis of unfinished work": (f"{_UNFINISHED}/{BASIS}", (resume, look_at_everything)),
    "record of a shard": (f"{_UNFINISHED}/{RECORDS}/part.txt.json", (resume,)),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_the_store_with_arbitrary_content(store: Path, name: str) -> None:
    place, readers = FILES[name]
    path = store / place
    kept = path.read_bytes()
    valid = json.loads(kept)

    @settings(
        max_examples=EXAMPLES, deadline=20_000, derandomize=not TRIALS, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(documents(valid))
    def try_it(data: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        for reader in readers:
            with suppress(UserError):
                reader(store)

    try:
        try_it()
    finally:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(kept)


def _metrics() -> Any:
    row = {"method": "qwen", "category": "C", "decoding": "sane", "metric": "rouge1", "value": 0.5, "ci_low": 0.4,
           "ci_high": 0.6, "n": 3}  # fmt: skip
    return {"settings": {"split": "test"}, "rows": [row, row | {"metric": "bleu"}], "comparisons": []}


@settings(max_examples=EXAMPLES * 3, deadline=5_000, derandomize=not TRIALS, database=None)
@given(data=documents(_metrics()))
def test_a_metrics_file_with_arbitrary_content(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    from nextquill_core.evaluation.forms import EvaluationDocument
    from nextquill_core.pipeline.evaluate import result_tables

    path = tmp_path_factory.getbasetemp() / "metrics.json"
    path.write_bytes(data)
    with suppress(UserError):
        list(result_tables(read_checked(path, EvaluationDocument, "evaluate again")["rows"]))
