"""An adapter that falls below the accepted one's interval on val is reported with both numbers.

Ingest and the tokenizer are real; what is trained and measured are stand-ins, so that their numbers can be chosen.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from nextquill_core.config import Config
from nextquill_core.evaluation.significance import Interval
from nextquill_core.pipeline.methods import split_examples
from nextquill_core.pipeline.run import Run
from nextquill_core.registry.promote import decide, missing_steps, val_run
from nextquill_core.registry.quality_alarm import below, fall_of
from nextquill_core.schemas import LIKELIHOODS, Example
from storage import Staging
from storage.pointers import Target, move_pointer
from tests.nextquill_core.pipeline.test_plan import every_step
from tests.nextquill_core.registry.test_promote import METHOD, ingested, store, world  # noqa: F401 (fixtures)
from tests.world import small_config

LIMIT = 256
OTHER = {"alpha": 0.2}
"""Settings of the candidate's training, so that it is another adapter than the accepted one."""


def settings(world: Path, store: Path, model: Path, **train: Any) -> Config:  # noqa: F811
    return small_config(
        world, store, model={"name_or_path": str(model)}, prompt={"max_target_tokens": LIMIT}, train=train
    )


def trained(config: Config, nll: float | None) -> Run:
    """A trained configuration whose validation ended with this loss, nats a token."""
    run = Run(config)
    adapter = run.plan.train[METHOD]

    def build(stats: dict[str, Any]) -> Callable[[Staging], dict[str, Any]]:
        def write(staging: Staging) -> dict[str, Any]:
            staging.write_table("0.parquet", pa.table({"x": [1]}))
            return stats

        return write

    for step in every_step(run.plan):
        measured = step == adapter and nll is not None
        run.make(step, build({"validation": {"nll": nll, "loss": nll}} if measured else {}))
    return run


def measured(run: Run, logp: Callable[[Example], float], more_tokens: int = 0) -> Run:
    """Give the adapter log-likelihoods on val, the same for each token of an example."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(run.config.model.name_or_path)
    on_val = val_run(run.config, METHOD, Run)
    (step,) = missing_steps(on_val, METHOD, "log_likelihood")
    examples = split_examples(on_val, "val")

    def build(staging: Staging) -> dict[str, Any]:
        counts = [len(tokenizer(one.target.text, add_special_tokens=False)["input_ids"]) + 1 for one in examples]
        rows = [[logp(one)] * (min(count, LIMIT) + more_tokens) for one, count in zip(examples, counts, strict=True)]
        table = {"example_id": [one.example_id for one in examples], "logp": rows}
        staging.write_table("likelihoods/0.parquet", pa.table(table, schema=LIKELIHOODS))
        return {}

    on_val.make(step, build)
    return on_val


def test_below_the_interval() -> None:
    interval = Interval(-2.0, -2.1, -1.9)
    assert not below(-1.0, interval)
    assert not below(-2.1, interval)
    assert below(-2.1001, interval)
    assert below(math.nan, interval)
    assert below(-math.inf, interval)


def test_a_fall_is_told_with_both_numbers(world: Path, store: Path, tiny_folder: Path) -> None:  # noqa: F811
    """Every token of the accepted one has log p = −2, so its interval is that point."""
    first = trained(settings(world, store, tiny_folder), 2.0)
    assert fall_of(first, METHOD) is None, "nothing is accepted yet"
    decide(measured(first, lambda _: -2.0), METHOD, METHOD)
    assert fall_of(first, METHOD) is None, "it is the accepted one"
    found = fall_of(trained(settings(world, store, tiny_folder, **OTHER), 2.25), METHOD)
    assert found is not None
    assert (found.value, found.against, found.low, found.high) == (-2.25, -2.0, -2.0, -2.0)
    assert found.accepted == first.plan.train[METHOD].fingerprint != found.candidate
    assert found.examples == len(split_examples(first, "val"))
    assert "is -2.2500, below the interval of" in found.line
    assert "-2.0000 [-2.0000, -2.0000]" in found.line
    better = trained(settings(world, store, tiny_folder, alpha=0.3), 1.75)
    assert fall_of(better, METHOD) is None
    broken = fall_of(trained(settings(world, store, tiny_folder, alpha=0.4), math.nan), METHOD)
    assert broken is not None
    assert "is not finite" in broken.line
    unmeasured = trained(settings(world, store, tiny_folder, alpha=0.5), None)
    assert fall_of(unmeasured, METHOD) is None
    assert fall_of(trained(settings(world, store, tiny_folder, **OTHER), 2.25), "contextsft") is None


def test_within_noise_is_no_fall(world: Path, store: Path, tiny_folder: Path) -> None:  # noqa: F811
    """Half of the users 0.5 above −2 and half below: with n users the interval is about 0.98/√n to either side."""
    first = trained(settings(world, store, tiny_folder), 2.0)
    users = sorted({one.user_id for one in split_examples(first, "val")})
    decide(measured(first, lambda one: -1.5 if users.index(one.user_id) % 2 else -2.5), METHOD, METHOD)
    half = 1.96 * 0.5 / math.sqrt(len(users))
    inside = trained(settings(world, store, tiny_folder, **OTHER), 2.0 + 0.4 * half)
    assert fall_of(inside, METHOD) is None
    outside = fall_of(trained(settings(world, store, tiny_folder, alpha=0.3), 2.0 + 2 * half), METHOD)
    assert outside is not None
    assert outside.users == len(users)
    assert outside.against == pytest.approx(-2.0, abs=0.05)
    assert (outside.against - outside.low, outside.high - outside.against) == pytest.approx((half, half), rel=0.35)


def test_the_examples_that_training_measured_count(world: Path, store: Path, tiny_folder: Path) -> None:  # noqa: F811
    first = trained(settings(world, store, tiny_folder), 2.0)
    seed = first.config.seed
    ids = [one.example_id for one in split_examples(first, "val")]
    few = sorted(ids, key=lambda one: hashlib.sha256(f"{seed}:{one}".encode()).digest())[:25]
    decide(measured(first, lambda one: -1.0 if one.example_id in few else -9.0), METHOD, METHOD)
    found = fall_of(trained(settings(world, store, tiny_folder, val_examples=25, **OTHER), 1.5), METHOD)
    assert found is not None
    assert (found.examples, found.against) == (25, -1.0)
    assert fall_of(trained(settings(world, store, tiny_folder, **OTHER), 1.5), METHOD) is None, "−9 counts there too"


def test_what_does_not_compare_is_left_out(world: Path, store: Path, tiny_folder: Path) -> None:  # noqa: F811
    """The pointer that was moved last stands for other tokens; the one before it counts."""
    first = trained(settings(world, store, tiny_folder), 2.0)
    decide(measured(first, lambda _: -2.0), METHOD, METHOD)
    cut = measured(trained(settings(world, store, tiny_folder, alpha=0.3), 1.0), lambda _: -1.0, more_tokens=1)
    (step,) = missing_steps(cut, METHOD, "log_likelihood")
    refs = cut.artifact(cut.plan.train[METHOD]).ref, cut.artifact(step).ref
    move_pointer(cut.store, "elsewhere", Target(*refs, {"method": METHOD, "at": "2999-01-01T00:00:00+00:00"}))
    worse = trained(settings(world, store, tiny_folder, **OTHER), 2.5)
    found = fall_of(worse, METHOD)
    assert found is not None
    assert (found.name, found.against) == (METHOD, -2.0)
    move_pointer(cut.store, METHOD, Target(*refs, {"method": METHOD, "at": "2999-01-01T00:00:00+00:00"}))
    assert fall_of(worse, METHOD) is None
