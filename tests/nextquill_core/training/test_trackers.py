"""Other places to watch a run: TensorBoard for real, the others as far as they can be told apart from missing."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from nextquill_core.errors import UserError
from nextquill_core.training.trackers import PACKAGES, Watchers, check_packages, progress_note
from tests.nextquill_core.training.runs import curve, ordered, sequences, train


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard's own reader finds."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_a_resumed_run_hides_what_a_killed_one_wrote_of_later_steps(tmp_path: Path) -> None:
    for first, losses in ((0, [4.0, 3.0, 9.0]), (2, [2.0, 1.0])):
        watchers = Watchers(["tensorboard"], tmp_path, {}, first)
        for step, loss in enumerate(losses, start=first + 1):
            watchers.log({"step": step, "loss": loss}, step, "train")
        watchers.close()
    assert scalars(tmp_path / "tensorboard") == {"train/loss": [(1, 4.0), (2, 3.0), (3, 2.0), (4, 1.0)]}


def test_a_note_tells_loss_pace_memory_and_what_is_left() -> None:
    line = {"loss": 2.3456, "tokens_per_second": 1234.5, "memory_gb": 12.34, "remaining_seconds": 3725.4}
    assert progress_note(line) == "loss 2.346  1,234 tokens/s  12.3 GB  1:02:05 left"


@pytest.mark.parametrize("name", sorted(PACKAGES))
def test_a_missing_package_is_told_before_anything_begins(name: str) -> None:
    if importlib.util.find_spec(PACKAGES[name]):
        check_packages([name])
        return
    with pytest.raises(UserError) as caught:
        check_packages([name])
    assert str(caught.value) == f"train.report_to: {name} is not installed; pip install {name}, or take it out"


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
