"""Adapters that score: trained before scoring, each without its own users, and found again by the scorer."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from nextquill_core.errors import UserError
from nextquill_core.folds import fold_of
from nextquill_core.ingest.reader import read_examples
from nextquill_core.model.loading import encoder_for, load_tokenizer
from nextquill_core.pipeline import train
from nextquill_core.pipeline.run import Run
from nextquill_core.schemas import Example
from tests.models import adapted_model
from tests.nextquill_core.conftest import Configured
from tests.stages import make, plain


def test_theta0_scores_without_adapters(configured: Configured) -> None:
    run = Run(configured())
    assert train.fold_adapters(run, run.plan.effects) == ()


def test_the_order_of_a_fold_is_that_of_contextsft_without_its_users(configured: Configured, tmp_path: Path) -> None:
    run = Run(configured(score={"effect_source": "adapter"}, model={"name_or_path": "some/model-base"}))
    make(run, run.plan.ingest)
    orders = {name: train.train_order(run, name, tmp_path) for name in ("contextsft", "fold-0", "fold-1")}
    assert {name: order.leave_out for name, order in orders.items()} == {
        "contextsft": None, "fold-0": (0, 2), "fold-1": (1, 2),
    }  # fmt: skip
    assert (orders["fold-0"].effects, orders["fold-0"].train.alpha) == (None, 0.0)
    assert orders["fold-0"].prompt.max_history == 2


@pytest.mark.pipeline
def test_folds_are_trained_counted_and_score_their_own_users(configured: Configured) -> None:
    run = Run(configured(score={"effect_source": "adapter"}))
    compared = Run(configured(evaluate={"preference_tokens": ["crossfit"]}))
    make(run, run.plan.model)
    with pytest.raises(UserError, match="run `nextquill score` with the same config first"):
        train.fold_adapters(run, run.plan.effects)
    users = Counter(e.user_id for e in read_examples(run.artifact(run.plan.ingest).folder, ("train",)))
    for number, step in enumerate(run.plan.folds.values()):
        assert not run.make(step, launch=plain).reused
        inside = [user for user in users if fold_of(user, 2) == number]
        stats = run.artifact(step).manifest.stats
        assert stats["method"] == "contextsft"
        assert stats["left_out_users"] == len(inside) > 0
        assert stats["left_out_examples"] == sum(users[user] for user in inside)
        curve = (run.artifact(step).folder / "metrics.jsonl").read_text().splitlines()
        trained_on = users.total() - stats["left_out_examples"]
        assert json.loads(curve[-1])["steps"] == -(-trained_on // run.config.train.global_batch)
    folders = list(train.fold_adapters(run, run.plan.effects))
    assert folders == [run.artifact(step).folder / "adapter" for step in run.plan.folds.values()]
    assert len({(folder / "adapter_model.safetensors").read_bytes() for folder in folders}) == 2
    assert run.make(run.plan.folds["fold-0"], launch=plain).reused

    run.make(run.plan.effects)
    stored = {row["example_id"]: row for path in run.artifact(run.plan.effects).files("effects/")
              for row in pq.read_table(path).to_pylist()}  # fmt: skip
    examples = list(read_examples(run.artifact(run.plan.ingest).folder))
    assert list(stored) == [example.example_id for example in examples]
    assert compared.plan.evaluation.crossfit is not None
    measured = compared.make(compared.plan.evaluation.crossfit).artifact  # by the same adapters, test examples alone
    rows = [row for path in measured.files("effects/") for row in pq.read_table(path).to_pylist()]
    assert rows == [stored[example.example_id] for example in examples if example.split == "test"]
    few = examples[::16]
    assert {fold_of(example.user_id, 2) for example in few} == {0, 1}
    for example in few:
        found = stored[example.example_id]["logp_factual"]
        own = fold_of(example.user_id, 2)
        assert found == pytest.approx(plain_logps(run, folders[own], example), abs=1e-4)
        assert found != pytest.approx(plain_logps(run, folders[1 - own], example), abs=1e-4)


def plain_logps(run: Run, adapter: Path, example: Example) -> list[float]:
    """The log-probability of each answer token with history, as PEFT and transformers give it without our code."""
    model = adapted_model(run.model.name_or_path, adapter)
    (pair,) = encoder_for(run.model, run.prompt, load_tokenizer(run.model)).encode([example])
    with torch.no_grad():
        logits = model(torch.tensor([pair.factual + pair.target])).logits[0].log_softmax(-1)
    first = len(pair.factual) - 1
    return [float(logits[first + place, token]) for place, token in enumerate(pair.target)]
