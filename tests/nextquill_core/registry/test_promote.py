"""An adapter is accepted if it is better on val beyond noise, and the pointer can be moved back.

Ingest is real; what is trained and measured are stand-ins, so that their numbers can be chosen.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from nextquill_core.errors import ModelError, UserError
from nextquill_core.pipeline import lineage
from nextquill_core.pipeline.methods import split_examples
from nextquill_core.pipeline.run import Run
from nextquill_core.pipeline.sweep_points import open_points, sweep_step
from nextquill_core.registry.garbage import accepted as pointed
from nextquill_core.registry.garbage import current, what
from nextquill_core.registry.promote import (
    accepted,
    back,
    compared,
    decide,
    measuring_step,
    missing_steps,
    val_run,
)
from nextquill_core.schemas import LIKELIHOODS, PREDICTIONS
from nextquill_core.synthetic.sample import write_sample
from storage import Staging
from storage.garbage import inventory, needed, removable, remove
from storage.pointers import pointer_names, read_pointer
from tests.nextquill_core.pipeline.test_plan import make_all
from tests.stages import make
from tests.world import small_config

METHOD = "nextquill"
Logps = Mapping[str, list[float]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_sample(folder, users=60, seed=1)
    return folder


@pytest.fixture(scope="module")
def ingested(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("ingested")
    run = Run(small_config(world, store))
    make(run, run.plan.ingest)
    return store


@pytest.fixture
def store(ingested: Path, tmp_path: Path) -> Path:
    shutil.copytree(ingested, tmp_path / "store")
    return tmp_path / "store"


def candidate(world: Path, store: Path, logps: Callable[[str, int], list[float]], **changes: Any) -> Run:
    """A trained configuration, its val log-likelihoods given by example and its number."""
    config = small_config(world, store, **changes)
    make_all(Run(config))
    run = val_run(config, METHOD, Run)
    (step,) = missing_steps(run, METHOD, "log_likelihood")

    def build(staging: Staging) -> dict[str, Any]:
        ids = [example.example_id for example in split_examples(run, "val")]
        table = {"example_id": ids, "logp": [logps(one, number) for number, one in enumerate(ids)]}
        staging.write_table("likelihoods/0.parquet", pa.table(table, schema=LIKELIHOODS))
        return {}

    run.make(step, build)
    return run


def flat(value: float) -> Callable[[str, int], list[float]]:
    return lambda _, __: [value, value]


def test_the_rule_in_numbers() -> None:
    """40 users of one token each. All 0.1 better: the interval is a point. 22 better and 18 worse by 1: the mean is
    0.1, the standard error √((1 − 0.1²) / 40) = 0.157, so the interval is 0.1 ± 1.96 · 0.157 and holds 0."""
    users = [f"u{number:02d}" for number in range(40)]
    theirs = np.array([[-2.0, 1.0]] * 40)
    better = compared("log_likelihood", theirs + np.array([0.1, 0]), theirs, users, samples=4000, seed=1)
    assert (better.value, better.low, better.high) == pytest.approx((0.1, 0.1, 0.1))
    mixed = theirs + [[1.0 if number < 22 else -1.0, 0.0] for number in range(40)]
    noise = compared("log_likelihood", mixed, theirs, users, samples=4000, seed=1)
    assert noise.value == pytest.approx(0.1)
    assert (noise.low, noise.high) == pytest.approx((0.1 - 0.308, 0.1 + 0.308), abs=0.05)


def test_better_beyond_noise_or_refused_and_back(world: Path, store: Path) -> None:
    first = candidate(world, store, flat(-2.0))
    verdict = decide(first, METHOD, METHOD)
    assert (verdict.accepted, verdict.against, verdict.value) == (True, None, -2.0)
    assert accepted(first, METHOD) == first.artifact(first.plan.train[METHOD])
    again = decide(first, METHOD, METHOD)
    assert again.accepted
    assert "already" in again.reason
    past = store / "accepted" / f"{METHOD}.jsonl"
    assert len(past.read_text().splitlines()) == 1

    noisy = candidate(world, store, lambda _, number: [-2.0 + (0.5 if number % 2 else -0.45)] * 2, train={"alpha": 0.2})
    verdict = decide(noisy, METHOD, METHOD)
    assert not verdict.accepted
    assert verdict.difference == pytest.approx(0.025, abs=0.03)
    assert verdict.low is not None
    assert verdict.low < 0
    assert "not better beyond noise" in verdict.reason
    assert accepted(noisy, METHOD) == first.artifact(first.plan.train[METHOD])
    worse = candidate(world, store, flat(-3.0), train={"alpha": 0.3})
    assert decide(worse, METHOD, METHOD).difference == pytest.approx(-1.0)

    better = candidate(world, store, flat(-1.5), train={"alpha": 0.4})
    verdict = decide(better, METHOD, METHOD)
    assert (verdict.accepted, verdict.difference, verdict.low) == (True, pytest.approx(0.5), pytest.approx(0.5))
    assert verdict.users >= 20
    assert accepted(first, METHOD) == better.artifact(better.plan.train[METHOD])
    assert back(first, METHOD).ref == first.artifact(first.plan.train[METHOD]).ref
    assert accepted(first, METHOD) == first.artifact(first.plan.train[METHOD])
    with pytest.raises(UserError, match="pointed at nothing before"):
        back(first, METHOD)
    events = [json.loads(line)["event"] for line in past.read_text().splitlines()]
    assert events == ["accepted", "rejected", "rejected", "accepted", "moved back"]


def test_val_alone_is_looked_at(world: Path, store: Path) -> None:
    config = small_config(world, store, evaluate={"split": "test"})
    make_all(Run(config))
    run = val_run(config, METHOD, Run)
    for metric in ("log_likelihood", "rouge1"):
        step = measuring_step(run.plan, METHOD, metric)
        assert {one.settings.get("split", "val") for one in missing_steps(run, METHOD, metric)} == {"val"}
        assert missing_steps(run, METHOD, metric)[-1] is step
    on_val = Run(small_config(world, store, evaluate={"split": "val"}))
    shared = lineage(on_val.plan.evaluate)
    assert measuring_step(run.plan, METHOD, "log_likelihood") in shared, "a sweep's point has the same step"


def test_other_examples_are_left_out_and_too_few_are_refused(world: Path, store: Path) -> None:
    first = candidate(world, store, flat(-2.0))
    decide(first, METHOD, METHOD)
    count = len(split_examples(first, "val"))
    # Every third true review was cut otherwise, and what was measured there says nothing: it is 9 better there.
    cut = candidate(world, store, lambda _, number: [-2.0] * 2 if number % 3 else [7.0] * 3, train={"alpha": 0.2})
    verdict = decide(cut, METHOD, METHOD)
    assert (verdict.accepted, verdict.difference) == (False, 0.0)
    assert verdict.examples == count - len(range(0, count, 3))
    other = candidate(world, store, lambda _, number: [-1.0] * (2 if number < 5 else 3), train={"alpha": 0.3})
    with pytest.raises(UserError, match=rf"have 5 of {count} val examples in common"):
        decide(other, METHOD, METHOD)
    assert accepted(first, METHOD) == first.artifact(first.plan.train[METHOD])
    assert decide(other, METHOD, "another").accepted
    assert pointer_names(first.store) == ["another", METHOD]


def test_what_cannot_be_promoted(world: Path, store: Path) -> None:
    config = small_config(world, store)
    with pytest.raises(UserError, match="artifact is missing"):
        val_run(config, METHOD, Run)
    with pytest.raises(UserError, match="`qwen` trains no adapter"):
        val_run(config, "qwen", Run)
    run = candidate(world, store, flat(float("nan")))
    with pytest.raises(ModelError, match="not finite"):
        decide(run, METHOD, METHOD)
    assert read_pointer(run.store, METHOD) is None
    with pytest.raises(UserError, match="nothing has been accepted as `nextquill`"):
        accepted(run, METHOD)
    with pytest.raises(UserError, match="`length_ratio` cannot decide"):
        measuring_step(run.plan, METHOD, "length_ratio")


def test_by_texts_where_the_store_has_them(world: Path, store: Path) -> None:
    def write(run: Run, right: bool) -> None:
        def build(staging: Staging) -> dict[str, Any]:
            examples = split_examples(run, "val")
            columns = {
                "example_id": [example.example_id for example in examples],
                "method": [METHOD] * len(examples),
                "decoding": ["sane"] * len(examples),
                "text": [example.target.text if right else "zzz" for example in examples],
                "n_tokens": [1] * len(examples),
                "finish_reason": ["stop"] * len(examples),
            }
            staging.write_table("predictions/0.parquet", pa.table(columns, schema=PREDICTIONS))
            return {}

        for step in missing_steps(run, METHOD, "rouge1"):
            run.make(step, build)

    first = candidate(world, store, flat(-2.0))
    decide(first, METHOD, METHOD)
    better = candidate(world, store, flat(-3.0), train={"alpha": 0.2})
    write(better, right=True)
    with pytest.raises(UserError, match="the store has no sane texts of the accepted"):
        decide(better, METHOD, METHOD, "rouge1")
    write(first, right=False)
    verdict = decide(better, METHOD, METHOD, "rouge1")
    assert (verdict.accepted, verdict.value, verdict.difference) == (True, 1.0, 1.0)
    # By log-likelihood the other way round: what the texts decided does not hinder it.
    assert decide(first, METHOD, METHOD).difference == pytest.approx(1.0)


def test_what_is_accepted_or_current_stays_in_the_store(world: Path, store: Path) -> None:
    first = candidate(world, store, flat(-2.0))
    second = candidate(world, store, flat(-1.0), train={"alpha": 0.2})
    third = candidate(world, store, flat(-3.0), train={"alpha": 0.3})
    for run in (first, second, third):
        decide(run, METHOD, METHOD)
    base = Run(small_config(world, store))
    adapters = [run.plan.train[METHOD].fingerprint for run in (first, second, third)]
    assert {name for kind, name in pointed(base.store) if kind == "train"} == set(adapters[:2]), "and a step back"

    now = Run(small_config(world, store, train={"alpha": 0.4}))
    found = inventory(base.store)
    doomed = removable(found, needed(found, current([now], Run) | set(pointed(base.store))))
    named = {(held.kind, what(held)) for held in doomed if held.kind in ("train", "likelihood")}
    assert ("train", METHOD) not in {(held.kind, held.fingerprint) for held in doomed}
    assert {held.fingerprint for held in doomed if held.kind == "train"} == {adapters[2]}
    assert ("likelihood", f"{METHOD} val") in named, "of the refused one"
    assert not {held.kind for held in doomed} & {"scan", "ingest", "model", "effects", "score"}
    assert all(gone for _, gone in remove(base.store, doomed))
    assert accepted(base, METHOD).manifest.fingerprint == adapters[1]
    back(base, METHOD)
    assert accepted(base, METHOD).manifest.fingerprint == adapters[0]


def test_a_sweep_over_a_config_is_current_for_it_alone(world: Path, store: Path) -> None:
    config = small_config(world, store)
    points = open_points(config, {"train.alpha": [0.1, 0.2]}, Run)
    for point in points:
        make_all(point.run)
    table = sweep_step(points)
    points[0].run.make(table, lambda staging: {"x": bool(staging.write_table("0.parquet", pa.table({"x": [1]})))})
    assert ("sweep", table.fingerprint) in current([Run(config)], Run)
    assert ("sweep", table.fingerprint) not in current([Run(small_config(world, store, seed=5))], Run)
    found = inventory(points[0].run.store)
    kept = needed(found, current([Run(config)], Run))
    assert {("evaluate", point.run.plan.evaluate.fingerprint) for point in points} <= kept
