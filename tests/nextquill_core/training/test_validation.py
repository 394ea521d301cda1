"""The val split is measured without dropout; the best adapter on it can be kept; the test split decides nothing."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from nextquill_core.config.train import TrainConfig
from nextquill_core.errors import DataError
from nextquill_core.ingest.reader import read_examples
from nextquill_core.tokens import encoder_for
from nextquill_core.training.validation import chosen
from nextquill_core.training.worker import training_examples, validation_examples
from tests.models import adapted_model
from tests.nextquill_core.training.runs import STEPS, Kill, adapter, curve, ordered, sequences, train


def test_the_choice_is_seeded_and_independent_of_the_others(examples: Any) -> None:
    few = chosen(examples, 3, seed=1)
    assert [e.example_id for e in few] == sorted(e.example_id for e in few)
    assert chosen(reversed(examples), 3, seed=1) == few
    assert chosen(few, 3, seed=1) == few
    assert {tuple(e.example_id for e in chosen(examples, 3, seed)) for seed in range(9)} != {tuple(few)}
    assert len(chosen(examples, 100, seed=1)) == len(examples)


def test_only_train_and_val_are_read_and_folds_leave_their_users_out(
    tiny_folder: Path, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    source = sequences(tmp_path / "source")
    split = {example.example_id: example.split for example in read_examples(source)}
    spec = ordered(tmp_path, tiny_folder, source, val_every=None)
    trained, measured = training_examples(spec, tiny_tokenizer)[0], validation_examples(spec, tiny_tokenizer)
    assert {split[example.pair.example_id] for example in trained} == {"train"}
    assert {split[example.pair.example_id] for example in measured} == {"val"}
    assert len(measured) == 4
    assert len(validation_examples(replace(spec, val_examples=2), tiny_tokenizer)) == 2
    assert validation_examples(replace(spec, val_every=0), tiny_tokenizer) == []
    left = validation_examples(replace(spec, leave_out=(1, 2)), tiny_tokenizer)
    assert [example.pair.example_id for example in left] == ["C:u0:4", "C:u1:4", "C:u3:4"]


def test_the_best_of_nothing_is_refused(tiny_folder: Path, tiny_tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "none" / "examples").mkdir(parents=True)
    spec = ordered(tmp_path, tiny_folder, tmp_path / "none", val_every=None, keep="best")
    with pytest.raises(DataError, match=r"there is no val example to choose the best adapter by; set train.keep last$"):
        validation_examples(spec, tiny_tokenizer)
    with pytest.raises(ValueError, match="keep best needs validation"):
        TrainConfig(keep="best", val_every=0)


def test_what_decides_nothing_makes_no_adapter_stale() -> None:
    last, best = TrainConfig(), TrainConfig(keep="best")
    assert TrainConfig(val_every=7, val_examples=3, report_to=("tensorboard",)).semantic() == last.semantic()
    assert TrainConfig(keep="best", val_every=7).semantic() != best.semantic() != last.semantic()


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


def written_out(folder: str, spec: Any, tokenizer: Any) -> dict[str, float]:
    """Eqs. 5 to 7 and the mean negative log-likelihood of the adapter that was left, by PEFT and full logits."""
    model = adapted_model(spec.model.name_or_path, Path(folder, "adapter"))
    pairs = encoder_for(spec.model, tokenizer, **asdict(spec.prompt)).encode(
        list(read_examples(Path(spec.sequences), ("val",)))
    )
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
        "loss": (normal + spec.alpha * causal) / count,
        "normal": normal / count,
        "causal": causal / count,
        "nll": normal / tokens,
    }
