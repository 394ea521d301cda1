"""The training loop: the learning rate, losses on the val split, and runs whose loss is not finite or runs away."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F

from nextquill_core import schemas
from nextquill_core.config.train import TrainConfig
from nextquill_core.errors import DataError, UserError
from nextquill_core.ingest.reader import read_examples
from nextquill_core.model.loading import encoder_for
from nextquill_core.orders import TrainOrder
from nextquill_core.training.curves import RunawayLoss
from nextquill_core.training.data import training_examples, validation_examples, validation_subset
from nextquill_core.training.trainer import GradientWatch, Validation, gradients_finite, learning_rate_at
from tests.models import adapted_model
from tests.nextquill_core.training.runs import STEPS, Kill, adapter, checkpoints, curve, ordered, sequences, train
from tests.nextquill_core.training.test_curves import steps_until_found
from tests.orders import changed


def test_the_learning_rate_by_hand() -> None:
    """Of ten steps, two warm up to the peak of 3.0 in thirds, and the rest falls linearly to 0 after the last step."""
    rates = [learning_rate_at(step, 10, 3.0, warmup_ratio=0.2) for step in range(10)]
    assert rates[:3] == [1.0, 2.0, 3.0]
    assert rates[3:] == pytest.approx([3.0 * (10 - step) / 8 for step in range(3, 10)])


def weighted(folder: Path, tokenizer: Any, order: TrainOrder, example_id: str, weight: float) -> str:
    # A score artifact with weight 1 everywhere but on one example.
    examples, _ = training_examples(order, tokenizer)
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
    # One of the four examples of the step, which two ranks share.
    source = sequences(tmp_path / "source")
    order = ordered(tmp_path / "run", tiny_folder, source, global_batch=4, deepspeed={"zero_stage": stage})
    effects = weighted(tmp_path / "score", tiny_tokenizer, order, "C:u2:3", weight)
    order = changed(order, effects=effects, weighted=True)
    with pytest.raises(UserError, match=rf"^train: {what}; check .*; there is no checkpoint yet$"):
        train(order)


@pytest.mark.ranks
@pytest.mark.slow
def test_a_loss_that_runs_away_ends_the_run_and_the_last_good_checkpoint_stays(
    tiny_folder: Path, tmp_path: Path
) -> None:
    """A tiny model's loss is bounded at any rate, so the run resumes after steps with a ten times lower loss."""
    order = ordered(tmp_path / "run", tiny_folder, sequences(tmp_path / "source"))
    train(order)
    good = checkpoints(order)
    past = [line | {"loss": line["loss"] / 10} for line in curve(order)]
    Path(order.output, "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in past))
    with pytest.raises(UserError) as caught:
        train(changed(order, epochs=STEPS, max_loss_ratio=3.0))
    losses = [line["loss"] for line in curve(order)]
    course = RunawayLoss(3.0)
    assert steps_until_found(course, losses) == len(losses) < 2 * STEPS
    assert str(caught.value) == (
        f"train.max_loss_ratio: the loss ran away by step {len(losses)}: it is {course.average:.4g} on average and was "
        f"{course.best:.4g}; lower train.learning_rate, or raise this ratio (null: never stop); "
        "the checkpoint of step 35 stays"
    )
    assert checkpoints(order) == good == ["step-000030", "step-000035"]


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


def test_the_choice_is_seeded_and_independent_of_the_others(examples: Any) -> None:
    few = validation_subset(examples, 3, seed=1)
    assert [e.example_id for e in few] == sorted(e.example_id for e in few)
    assert validation_subset(reversed(examples), 3, seed=1) == few
    assert validation_subset(few, 3, seed=1) == few
    assert {tuple(e.example_id for e in validation_subset(examples, 3, seed)) for seed in range(9)} != {tuple(few)}
    assert len(validation_subset(examples, 100, seed=1)) == len(examples)


def test_only_train_and_val_are_read_and_folds_leave_their_users_out(
    tiny_folder: Path, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    source = sequences(tmp_path / "source")
    split = {example.example_id: example.split for example in read_examples(source)}
    order = ordered(tmp_path, tiny_folder, source, val_every=None)
    trained, measured = training_examples(order, tiny_tokenizer)[0], validation_examples(order, tiny_tokenizer)
    assert {split[example.pair.example_id] for example in trained} == {"train"}
    assert {split[example.pair.example_id] for example in measured} == {"val"}
    assert len(measured) == 4
    assert len(validation_examples(changed(order, val_examples=2), tiny_tokenizer)) == 2
    assert validation_examples(changed(order, val_every=0), tiny_tokenizer) == []
    left = validation_examples(changed(order, leave_out=(1, 2)), tiny_tokenizer)
    assert [example.pair.example_id for example in left] == ["C:u0:4", "C:u1:4", "C:u3:4"]


def test_the_best_of_nothing_is_refused(tiny_folder: Path, tiny_tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "none" / "examples").mkdir(parents=True)
    order = ordered(tmp_path, tiny_folder, tmp_path / "none", val_every=None, keep="best")
    with pytest.raises(DataError, match=r"there is no val example to choose the best adapter by; set train.keep last$"):
        validation_examples(order, tiny_tokenizer)
    with pytest.raises(ValueError, match="keep best needs validation"):
        TrainConfig(keep="best", val_every=0)


def test_a_val_loss_that_is_not_a_number_is_never_the_best(tmp_path: Path) -> None:
    order = ordered(tmp_path, tmp_path, tmp_path, val_every=None, keep="best")
    validation = Validation(order, None, [], SimpleNamespace(output=tmp_path), train_examples=4)  # type: ignore[arg-type]
    losses = [float("nan"), 2.0, float("nan"), 3.0, 1.0]
    assert [validation._compare({"loss": loss}) for loss in losses] == [True, True, False, False, True]


def test_what_decides_nothing_makes_no_adapter_stale() -> None:
    last, best = TrainConfig(), TrainConfig(keep="best")
    assert (
        TrainConfig(val_every=7, val_examples=3, report_to=("tensorboard",)).fingerprint_fields()
        == last.fingerprint_fields()
    )
    assert (
        TrainConfig(keep="best", val_every=7).fingerprint_fields()
        != best.fingerprint_fields()
        != last.fingerprint_fields()
    )


@pytest.mark.ranks
@pytest.mark.slow
def test_the_best_adapter_stays_even_if_the_run_is_killed_and_the_test_split_decides_nothing(
    tiny_folder: Path, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    def other_last_review(row: dict[str, Any]) -> None:  # which is each user's test target and in no history
        if row["parent_asin"] == "i5":
            row["text"], row["title"] = "quite another opinion", "another title"

    sources = [sequences(tmp_path / "a"), sequences(tmp_path / "b", other_last_review)]
    validated = {"val_every": 4, "keep": "best", "alpha": 0.3}
    steady, broken = (
        ordered(tmp_path / name, tiny_folder, source, **validated) for name, source in zip("xy", sources, strict=True)
    )
    train(steady)
    kill = Kill(broken, "rank")
    with pytest.raises(RuntimeError):
        train(broken, on_step=kill)
    train(broken)
    lines = curve(steady, "val.jsonl")
    assert [line["step"] for line in lines] == list(range(4, STEPS + 1, 4))
    assert curve(broken, "val.jsonl") == lines
    best = min(lines, key=lambda line: line["loss"])
    assert best["step"] < STEPS, "four examples are soon learned by heart"
    assert adapter(broken) == adapter(steady)
    expected = written_out(steady.output, steady, tiny_tokenizer)
    assert {key: best[key] for key in expected} == pytest.approx(expected, rel=1e-4)


def written_out(folder: Path, order: Any, tokenizer: Any) -> dict[str, float]:
    # Eqs. 5 to 7 and the mean negative log-likelihood of the adapter that was left, by PEFT and full logits.
    model = adapted_model(order.model.name_or_path, Path(folder, "adapter"))
    pairs = encoder_for(order.model, order.prompt, tokenizer).encode(list(read_examples(order.sequences, ("val",))))
    normal = causal = tokens = 0.0
    for pair in pairs:
        target = torch.tensor(pair.target)
        with torch.no_grad():
            logits, null = (
                model(torch.tensor([prompt + pair.target])).logits[0, len(prompt) - 1 : -1]
                for prompt in (pair.factual, pair.counterfactual)
            )
        normal += F.cross_entropy(logits, target, reduction="sum").item()
        causal += F.cross_entropy(logits - null, target, reduction="sum").item()
        tokens += len(target)
    count = len(pairs)
    return {
        "loss": (normal + order.train.alpha * causal) / count,
        "normal": normal / count,
        "causal": causal / count,
        "nll": normal / tokens,
    }
