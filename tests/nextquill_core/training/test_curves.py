"""Curves and trackers: TensorBoard is read back, a missing package is reported, and a loss that runs away is found."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import pytest

from nextquill_core.errors import UserError
from nextquill_core.training import curves
from nextquill_core.training.curves import (
    WINDOW,
    Clipping,
    RunawayLoss,
    Trackers,
    check_packages,
    clipping_warning,
    progress_note,
)
from tests.nextquill_core.training.runs import curve, ordered, sequences, train


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard's own reader finds."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_a_resumed_run_hides_what_a_killed_one_wrote_of_later_steps(tmp_path: Path) -> None:
    for first, losses in ((0, [4.0, 3.0, 9.0]), (2, [2.0, 1.0])):
        trackers = Trackers(["tensorboard"], tmp_path, {}, first)
        for step, loss in enumerate(losses, start=first + 1):
            trackers.log({"step": step, "loss": loss}, step, "train")
        trackers.close()
    assert scalars(tmp_path / "tensorboard") == {"train/loss": [(1, 4.0), (2, 3.0), (3, 2.0), (4, 1.0)]}


def test_a_tracker_that_fails_stops_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    logged: list[int] = []

    def fail(*_: object) -> None:
        raise ConnectionError("the server is gone\nand more")

    monkeypatch.setitem(curves.MAKERS, "mlflow", lambda *_: (fail, fail))
    monkeypatch.setitem(curves.MAKERS, "wandb", lambda *_: (lambda _, step: logged.append(step), fail))
    trackers = Trackers(["mlflow", "wandb"], tmp_path, {}, 0)
    for step in (1, 2):
        trackers.log({"loss": 1.0}, step, "train")
    trackers.close()
    assert logged == [1, 2]
    assert [record.message.partition(" failed and")[0] for record in caplog.records] == ["mlflow", "wandb"]
    monkeypatch.setitem(curves.MAKERS, "mlflow", fail)
    with pytest.raises(UserError, match=r"^train\.report_to: mlflow cannot be started: the server is gone; fix it"):
        Trackers(["mlflow"], tmp_path, {}, 0)


def test_a_note_tells_loss_pace_memory_and_what_is_left() -> None:
    line = {"loss": 2.3456, "tokens_per_second": 1234.5, "memory_gb": 12.34, "remaining_seconds": 3725.4}
    assert progress_note(line) == "loss 2.346  1,234 tokens/s  12.3 GB  1:02:05 left"


@pytest.mark.parametrize("name", sorted(curves.MAKERS))
def test_a_missing_package_is_told_before_anything_begins(name: str) -> None:
    if importlib.util.find_spec(name):
        check_packages([name])
        return
    with pytest.raises(UserError) as caught:
        check_packages([name])
    assert (
        str(caught.value)
        == f"train.report_to: {name} is not installed; install it (pip install {name}), or remove it from the list"
    )


@pytest.mark.ranks
@pytest.mark.slow
def test_tensorboard_shows_what_the_curves_say(tiny_folder: Path, tmp_path: Path) -> None:
    source = sequences(tmp_path / "source")
    spec = ordered(tmp_path / "run", tiny_folder, source, epochs=2, val_every=None, report_to=("tensorboard",))
    train(spec)
    shown = scalars(tmp_path / "run" / "tensorboard")
    for group, name in (("train", "metrics.jsonl"), ("val", "val.jsonl")):
        lines = curve(spec, name)
        for key in ("loss", "normal", "causal"):
            steps, values = zip(*shown[f"{group}/{key}"], strict=True)
            assert list(steps) == [line["step"] for line in lines]
            assert values == pytest.approx([line[key] for line in lines])
    assert [line["step"] for line in curve(spec, "val.jsonl")] == [2, 4]
    assert "train/memory_gb" in shown


def test_a_curve_is_cut_back_to_a_step(tmp_path: Path) -> None:
    path = tmp_path / "curve.jsonl"
    curves.cut(path, 3)
    assert path.read_text() == ""
    for step in (2, 4, 6):
        curves.append(path, {"step": step, "loss": 0.1})
    with path.open("a") as file:
        file.write('{"step"')
    curves.cut(path, 4)
    assert path.read_text() == '{"step": 2, "loss": 0.1}\n{"step": 4, "loss": 0.1}\n'


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
