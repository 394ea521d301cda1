"""What the UI says of an artifact: made, made again or reused, and why."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from nextquill_core.config import Config
from nextquill_core.pipeline.run import Run
from tasks.reasons import reasons
from tests.nextquill_core.pipeline.test_plan import make_all
from tests.stages import make
from tests.world import small_config


def rows(text: str) -> dict[str, list[str]]:
    """The cells behind each artifact's name."""
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {name: rest for name, *rest in cells if name not in ("artifact", "---")}


@pytest.fixture
def config(small_world: Path, tmp_path: Path) -> Config:
    return small_config(small_world, tmp_path / "store")


def told(config: Config, *, force: bool = False) -> dict[str, list[str]]:
    run = Run(config)
    return rows(reasons(run, "ingest", [run.plan.ingest, *run.plan.scans.values()], force))


def test_what_is_not_there_is_made(config: Config) -> None:
    nothing = ["missing", "made", "nothing like it is in the store"]
    assert told(config) == {"scan:Small": nothing, "ingest": nothing}


def test_what_is_fresh_is_reused_and_what_is_stale_says_why(config: Config, small_world: Path, tmp_path: Path) -> None:
    made = Run(config)
    scan = made.make(made.plan.scans["Small"]).artifact
    made.make(made.plan.ingest)
    ended = scan.manifest.provenance["end"][:16].replace("T", " ")
    reused = told(config)["scan:Small"]
    assert reused == ["fresh", "reused", f"settings and inputs as on {ended} UTC"]
    assert told(config)["ingest"][:2] == ["fresh", "reused"]
    assert told(config, force=True)["ingest"] == ["fresh", "made again", "forced"]

    changed = small_config(small_world, tmp_path / "store", ingest={"max_bad_share": 0.5})
    assert told(changed)["scan:Small"][1] == "reused"
    assert told(changed)["ingest"] == ["stale", "made again", "ingest.max_bad_share 0.01 → 0.5"]

    run = Run(changed)
    assert run.plan.model
    above = rows(reasons(run, "model", [run.plan.model], force=False))
    assert list(above) == ["model", "scan:Small", "ingest"], "its own first, then what goes into it as it is made"
    assert above["ingest"][:2] == ["stale", "not made by this stage"]


def test_what_may_come_out_the_same_is_not_said_to_be_made_again(config: Config) -> None:
    run = Run(config)
    make(run, run.plan.ingest)
    shutil.rmtree(run.store.folder("scan", run.plan.scans["Small"].fingerprint))
    state, now, why = told(config)["ingest"]
    assert (state, now) == ("stale", "made again, unless its inputs come out the same")
    assert why == "its input scan:Small is missing"


def test_a_change_is_named_and_not_what_follows_from_it(small_world: Path, tmp_path: Path) -> None:
    presets = [small_config(small_world, tmp_path / "store", evaluate={"decoding": [one]}) for one in ("paper", "sane")]
    make_all(Run(presets[0]))
    run = Run(presets[1])
    found = rows(reasons(run, "evaluate", [run.plan.evaluate, *run.plan.evaluation.steps], force=False))
    assert found["evaluate"] == ["stale", "made again", 'evaluate.decoding ["paper"] → ["sane"]']
    assert found["predictions nextquill-sane"][:2] == ["missing", "made"]
    assert found["likelihood:nextquill"][1] == found["train"][1] == "reused"
