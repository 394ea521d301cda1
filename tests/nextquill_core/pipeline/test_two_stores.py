"""A run that reads the artifacts of production and writes its own elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nextquill_core.config import Config, parse_config
from nextquill_core.errors import UserError
from nextquill_core.pipeline.run import Run
from tests.nextquill_core.pipeline.test_plan import make_all, states
from tests.stages import table
from tests.storage.test_read_through import state_of
from tests.world import small_config


def places(tmp_path: Path) -> dict[str, str]:
    return {"read": str(tmp_path / "prod"), "write": str(tmp_path / "mine")}


def with_stores(config: Config, tmp_path: Path) -> Config:
    return Config.model_validate(config.model_dump(exclude={"read_store"}) | {"store": places(tmp_path)})


def test_what_production_has_is_reused_and_only_what_differs_is_made(small_world: Path, tmp_path: Path) -> None:
    config = small_config(small_world, tmp_path / "prod")
    make_all(Run(config))
    before = state_of(tmp_path / "prod")
    same = Run(with_stores(config, tmp_path))
    assert set(states(same).values()) == {"fresh"}
    assert same.make(same.plan.ingest).reused
    make_all(same)
    assert not list((tmp_path / "mine").glob("[!.]*")), "nothing had to be made"
    changed = Run(with_stores(small_config(small_world, tmp_path, weights={"delta": 0.1}), tmp_path))
    assert states(changed) == {
        "ingest": "fresh", "model": "fresh", "score": "stale", "train": "stale", "train:contextsft": "fresh",
        "evaluate": "stale",
    }  # fmt: skip
    assert "weights.delta 0.05 → 0.1" in changed.freshness(changed.plan.score).why
    make_all(changed)
    assert set(states(changed).values()) == {"fresh"}
    made = {path.parent.parent.name for path in (tmp_path / "mine").glob("[!.]*/*/manifest.json")}
    assert {"score", "train", "evaluate"} <= made
    assert not {"scan", "ingest", "effects"} & made
    assert state_of(tmp_path / "prod") == before


def test_an_artifact_that_is_forced_is_written_here_and_counts_from_then_on(small_world: Path, tmp_path: Path) -> None:
    config = small_config(small_world, tmp_path / "prod")
    make_all(Run(config))
    before = state_of(tmp_path / "prod")
    run = Run(with_stores(config, tmp_path))
    outcome = run.make(run.plan.ingest, table(2), force=True)
    assert outcome.artifact.home.is_relative_to(tmp_path / "mine")
    assert states(run)["score"] == "stale", "it was made from the artifact of production, which is hidden now"
    assert state_of(tmp_path / "prod") == before


def test_the_first_run_may_find_an_empty_store(small_world: Path, tmp_path: Path) -> None:
    run = Run(with_stores(small_config(small_world, tmp_path), tmp_path))
    make_all(run)
    assert set(states(run).values()) == {"fresh"}
    assert not (tmp_path / "prod").exists()


def test_one_place_cannot_be_both(small_world: Path, tmp_path: Path) -> None:
    same = {"read": str(tmp_path), "write": str(tmp_path / "mine")}
    with pytest.raises(UserError, match="separate places"):
        Run(Config.model_validate(small_config(small_world, tmp_path).model_dump() | {"store": same}))


@pytest.mark.parametrize(
    "values",
    [
        {"store": {"red": "a", "write": "b"}},
        {"store": {"write": "b"}},
        {"store": {"read": "a", "write": "b"}, "read_store": "c"},
    ],
)
def test_two_places_are_named_by_both_keys(values: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"^the file: `store` takes one place, or two: \{read: s3://team/prod, write: "):
        parse_config(values, "the file")


def test_two_places_are_two_settings() -> None:
    config = parse_config({"store": {"read": "s3://team/prod", "write": "./mine"}}, "the file")
    assert (config.store, config.read_store) == ("./mine", "s3://team/prod")
    assert Config.model_validate(config.model_dump(mode="json")) == config
    with pytest.raises(UserError, match=r"`read_store`: .*at least 1 character"):
        parse_config({"store": {"read": "", "write": "./mine"}}, "the file")
    with pytest.raises(UserError, match="`store`: it takes a text"):
        parse_config({"store": {"read": "a", "write": 5}}, "the file")
