"""Runs that make no sense any more are stopped, with the step and the examples."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from nextquill_core import schemas
from nextquill_core.errors import UserError
from nextquill_core.training.spec import TrainSpec
from nextquill_core.training.stability import (
    WINDOW,
    Clipping,
    GradientWatch,
    RunawayLoss,
    clipping_warning,
    gradients_finite,
)
from nextquill_core.training.worker import training_examples
from tests.nextquill_core.training.runs import STEPS, checkpoints, curve, ordered, sequences, train


def steps_until_found(course: RunawayLoss, losses: list[float]) -> int | None:
    for step, loss in enumerate(losses, start=1):
        course.add(loss)
        if course.found:
            return step
    return None


def test_a_jump_that_stays_is_found_by_hand() -> None:
    """20 steps of 1 average 1. Then 5s: after k of them, (20 − k + 5k) / 20 = 1 + k / 5 > 3 from k = 11 on, and for
    twenty steps on end at k = 30."""
    assert WINDOW == 20
    course = RunawayLoss(3.0)
    assert steps_until_found(course, [1.0] * 20 + [5.0] * 29) is None
    assert (course.best, course.average, course.suspected) == (1.0, 5.0, True)
    course.add(5.0)
    assert course.found


def test_clipped_steps_are_counted_over_a_resumption() -> None:
    clipping = Clipping(1.0, [0.5, 1.0, 3.0])
    assert clipping.share == pytest.approx(1 / 3), "a norm of exactly the limit is left as it is"
    for norm in (530.0, math.inf, math.nan):  # float16 overflowed: there was no step
        clipping.add(norm)
    assert clipping.share == pytest.approx(2 / 6)
    assert Clipping(1.0).share == 0


def test_one_warning_when_nearly_every_step_is_clipped() -> None:
    def said(step: int, steps: int, share: float, by: str = "sequence") -> str:
        line = {"step": step, "steps": steps, "clipped_share": share, "grad_norm": 41.5}
        return clipping_warning(line, 1.0, by)

    assert said(19, 100, 1.0) == said(20, 100, 0.85) == said(4, 5, 1.0) == ""
    assert said(20, 100, 0.9) == (
        "90% of the steps so far had a gradient norm above train.max_grad_norm 1 (the last one 41.5) and were scaled "
        "down to it, so every step has the same length; set train.normalization to weight or sample_weight, or raise "
        "train.max_grad_norm if that is not meant (see docs/explanation/training.md)"
    )
    assert "length; raise train.max_grad_norm" in said(5, 5, 1.0, "weight")


def test_a_spike_passes_and_is_no_time_for_a_checkpoint() -> None:
    course = RunawayLoss(3.0, [1.0] * 30)
    assert not course.suspected
    course.add(9.0)
    assert course.suspected
    assert steps_until_found(course, [1.0] * 100) is None
    assert not course.suspected


def test_near_zero_ratios_are_noise_and_null_looks_at_nothing() -> None:
    """The first average is 10, so that the best counts as 1 at least: 0.5 is not above 3, for all that it was 0.001."""
    assert steps_until_found(RunawayLoss(3.0), [10.0] * 20 + [0.001] * 60 + [0.5] * 60) is None
    assert steps_until_found(RunawayLoss(3.0), [10.0] * 20 + [0.001] * 60 + [3.5] * 60) == 80 + 18 + 19
    assert steps_until_found(RunawayLoss(None), [1.0] * 20 + [1e9] * 100) is None


def test_a_resumed_run_knows_what_went_before() -> None:
    losses = [1.0] * 20 + [5.0] * 30
    for cut in (10, 25, 49):
        assert RunawayLoss(3.0, losses[:cut]).found is False
        assert steps_until_found(RunawayLoss(3.0, losses[:cut]), losses[cut:]) == 50 - cut


def test_gradients_are_seen_as_they_come() -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    watch = GradientWatch([parameter])
    for factor, finite in ((1.0, True), (float("inf"), False), (2.0, True)):
        (parameter.sum() * factor).backward()
        assert bool(watch.finite()) is finite
    assert bool(watch.finite()), "nothing was computed since"
    before = parameter.grad
    assert gradients_finite(parameter.sum(), [parameter])
    assert not gradients_finite(parameter.sum() * float("nan"), [parameter])
    assert parameter.grad is before


def weighted(folder: Path, tokenizer: Any, spec: TrainSpec, example_id: str, weight: float) -> str:
    """A score artifact with weight 1 everywhere but on one example."""
    examples, _ = training_examples(spec, tokenizer)
    rows = [
        {"example_id": id_, "weight": [weight if id_ == example_id else 1.0] * len(example.pair.target)}
        for example in examples
        for id_ in [example.pair.example_id]
    ]
    (folder / "weights").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schemas.WEIGHTS), folder / "weights" / "0.parquet")
    return str(folder)


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.parametrize(
    ("weight", "stage", "what"),
    [
        (float("nan"), 2, r"the loss is not finite at step 1: C:u2:3 \(loss nan\)"),
        (1e36, 2, r"the gradient is not finite at step 1: C:u2:3 \(loss \d.*e\+3\d, gradient not finite\)"),
        (1e36, 3, r"the gradient is not finite at step 1: C:u2:3 \(loss \d.*e\+3\d, gradient not finite\)"),
    ],
)
def test_what_is_not_finite_is_named_with_its_loss_wherever_it_was(
    tiny_folder: Path, tiny_tokenizer: Any, tmp_path: Path, weight: float, stage: int, what: str
) -> None:
    """One of the four examples of the step, which two ranks share."""
    source = sequences(tmp_path / "source")
    spec = ordered(tmp_path / "run", tiny_folder, source, global_batch=4, zero_stage=stage)
    effects = weighted(tmp_path / "score", tiny_tokenizer, spec, "C:u2:3", weight)
    spec = replace(spec, effects=effects, weighted=True)
    with pytest.raises(UserError, match=rf"^train: {what}; look at .*; there is no checkpoint yet$"):
        train(spec)


@pytest.mark.ranks
@pytest.mark.slow
def test_a_loss_that_runs_away_ends_the_run_and_the_last_good_checkpoint_stays(
    tiny_folder: Path, tmp_path: Path
) -> None:
    """A tiny model's loss is bounded, whatever the rate. So the run goes on after a past that was ten times better."""
    spec = ordered(tmp_path / "run", tiny_folder, sequences(tmp_path / "source"))
    train(spec)
    good = checkpoints(spec)
    past = [line | {"loss": line["loss"] / 10} for line in curve(spec)]
    Path(spec.output, "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in past))
    with pytest.raises(UserError) as caught:
        train(replace(spec, epochs=2 * spec.epochs, max_loss_ratio=3.0))
    losses = [line["loss"] for line in curve(spec)]
    course = RunawayLoss(3.0)
    assert steps_until_found(course, losses) == len(losses) < 2 * STEPS
    assert str(caught.value) == (
        f"train.max_loss_ratio: the loss ran away by step {len(losses)}: it is {course.average:.4g} on average and was "
        f"{course.best:.4g}; lower train.learning_rate, or allow it (null: always); the checkpoint of step 35 stays"
    )
    assert checkpoints(spec) == good == ["step-000030", "step-000035"]
