"""Whether an artifact can be reused and why not, and what a command remembers of it."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

from nextquill_core.pipeline import FreshnessCache, Step, freshness
from nextquill_core.pipeline.freshness import INTERRUPTED
from nextquill_core.pipeline.run import Run
from storage import Staging
from tests.nextquill_core.conftest import Configured
from tests.nextquill_core.pipeline.test_plan import make_all, states
from tests.stages import table


def test_status_from_missing_to_fresh_to_stale(configured: Configured) -> None:
    run = Run(configured())
    assert set(states(run).values()) == {"missing"}
    make_all(run)
    assert set(states(run).values()) == {"fresh"}
    changed = Run(configured(weights={"delta": 0.2}))
    assert states(changed) == {
        "ingest": "fresh", "model": "fresh", "score": "stale", "train": "stale", "train:contextsft": "fresh",
        "evaluate": "stale",
    }  # fmt: skip
    assert freshness(changed.store, changed.plan.score).why == "weights.delta 0.05 → 0.2"
    assert "score: weights.delta 0.05 → 0.2" in freshness(changed.store, changed.plan.train["nextquill"]).why


def test_a_deleted_input_makes_what_depends_on_it_stale_until_it_is_back(configured: Configured) -> None:
    run = Run(configured())
    make_all(run)
    shutil.rmtree(run.store.folder("ingest", run.plan.ingest.fingerprint))
    assert states(run)["ingest"] == "missing"
    assert freshness(run.store, run.plan.score).why.endswith("its input ingest is missing")
    run.make(run.plan.ingest, table(1))
    assert set(states(run).values()) == {"fresh"}
    shutil.rmtree(run.store.folder("ingest", run.plan.ingest.fingerprint))
    run.make(run.plan.ingest, table(2))
    assert "its input ingest was made again and differs" in freshness(run.store, run.plan.score).why


def test_failed_and_interrupted(configured: Configured) -> None:
    run = Run(configured())

    def broken(staging: Staging) -> dict[str, Any]:
        raise RuntimeError("disk on fire")

    (scan,) = run.plan.scans.values()
    with pytest.raises(RuntimeError):
        run.make(scan, broken)
    known = freshness(run.store, scan)
    assert (known.state, known.why) == ("failed", "disk on fire")
    next(run.store.root.glob("scan/.staging-*/failure.json")).unlink()
    assert freshness(run.store, scan).state == "interrupted"


@pytest.mark.parametrize("signal", [KeyboardInterrupt(), SystemExit(143)], ids=repr)
def test_a_signal_leaves_interrupted_work_that_is_resumed(configured: Configured, signal: BaseException) -> None:
    run = Run(configured())
    (scan,) = run.plan.scans.values()

    def stopped(staging: Staging) -> dict[str, Any]:
        staging.path("part").write_text("kept")
        staging.finish("part")
        raise signal

    with pytest.raises(type(signal)):
        run.make(scan, stopped)
    known = freshness(run.store, scan)
    assert (known.state, known.why) == ("interrupted", INTERRUPTED)
    assert "the same command resumes" in known.why

    def resumed(staging: Staging) -> dict[str, Any]:
        assert staging.has("part")
        return {}

    outcome = run.make(scan, resumed)
    assert outcome.why == "resumed; it had been interrupted"
    assert freshness(run.store, scan).state == "fresh"


@pytest.fixture
def lookups(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the steps that were looked up."""
    found: list[str] = []

    def counted(store: Any, step: Step) -> Any:
        found.append(step.name)
        return freshness(store, step)

    monkeypatch.setitem(freshness.__globals__, "freshness", counted)
    return found


@pytest.fixture
def run(configured: Configured) -> Run:
    """A run that remembers what it looked up, as a command does."""
    found = Run(configured())
    found.cache = FreshnessCache(found.store)
    return found


def test_a_command_looks_up_each_step_once_while_it_makes_all_of_them(run: Run, lookups: list[str]) -> None:
    names = [step.name for step in run.plan.stages]
    assert {run.freshness(step).state for step in run.plan.stages} == {"missing"}
    make_all(run)
    assert {run.freshness(step).state for step in run.plan.stages} == {"fresh"}
    assert lookups[: len(names)] == names
    assert len(lookups) == len(set(lookups))


def test_what_a_new_artifact_may_have_outdated_is_looked_up_again(run: Run, lookups: list[str]) -> None:
    make_all(run)
    shutil.rmtree(run.store.folder("ingest", run.plan.ingest.fingerprint))
    run.look_again()
    lookups.clear()
    assert run.freshness(run.plan.score).why.endswith("its input ingest is missing")
    run.make(run.plan.ingest, table(1))
    assert run.freshness(run.plan.score).state == "fresh", "the same bytes came out"
    assert lookups == ["score", "ingest", "score"]
    run.make(run.plan.ingest, table(2), force=True)
    assert "its input ingest was made again and differs" in run.freshness(run.plan.score).why


def test_an_artifact_that_another_process_removed_or_made_is_noticed_when_it_is_made(
    run: Run, configured: Configured
) -> None:
    other = Run(configured())
    (scan,) = run.plan.scans.values()
    assert run.freshness(scan).state == "missing"
    other.make(scan, table(1))
    assert run.make(scan, table(1)).reused
    assert run.make(scan, table(1)).reused
    shutil.rmtree(run.store.folder("scan", scan.fingerprint))
    assert not run.make(scan, table(1)).reused
