"""The work of steps, against the operations of real models and by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.score import products
from nextquill_core.costs.shape import ModelShape
from nextquill_core.costs.sizes import Lengths, Sizes, of_pairs
from nextquill_core.costs.work import Branches, Operations, Work, WorkCounter, passed
from nextquill_core.pipeline.plan import Plan
from nextquill_core.pipeline.run import Run
from nextquill_core.pipeline.step import Step
from nextquill_core.tokens import TokenPair
from tests.models import small_model
from tests.nextquill_core.conftest import Configured
from tests.nextquill_core.pipeline.test_plan import every_step

SHAPE = ModelShape(400, 32, 64, 2, 4, 2, 8)
"""Body: 2 layers × (2·32·32 + 2·32·16 + 3·32·64 = 9,216) = 18,432; head: 12,800; 256 operations a pair of tokens."""
LENGTHS = Lengths(prompt=60, bare=30, opening=20, answer=11)
SIZES = Sizes({"train": 40, "val": 10, "test": 8}, 10, 6.0, LENGTHS, {"Small": 1000}, {"Small": 2e6}, "", "")
WITH_HISTORY = Operations(2 * (18_432 * 70 + 12_800 * 11), 256 * 70 * 71 / 2)
WITHOUT = Operations(2 * (18_432 * 40 + 12_800 * 11), 256 * 40 * 41 / 2)
REST = Operations(2 * (18_432 * 20 + 12_800 * 11), 256 * (20 * 20 + 20 * 21 / 2))


def work(plan: Plan, name: str, sizes: Sizes = SIZES) -> Work:
    step = next(step for step in every_step(plan) if step.name == name)
    return WorkCounter(plan, SHAPE, sizes).of(step)


def test_both_branches_take_the_operations_that_the_benchmarks_count() -> None:
    model = small_model("qwen2")
    pair = TokenPair("e", list(range(60)), [*range(20), *range(50, 60)], list(range(11)))
    both = Branches.of(SHAPE, of_pairs([pair])).both
    assert (both.frozen, both.attention) == pytest.approx(products(model, pair))


def test_branches_by_hand() -> None:
    found = Branches.of(SHAPE, LENGTHS)
    assert (found.with_history, found.without) == (WITH_HISTORY, WITHOUT)
    assert found.both == WITH_HISTORY + REST
    assert WITHOUT.training == 2 * WITHOUT.frozen + 3 * WITHOUT.attention
    assert passed(SHAPE, 3, 1, 2).attention == 256 * (3 + 4 + 5), (
        "the tokens see 3, 4 and 5 tokens, themselves included"
    )


def test_scoring_passes_over_both_branches_of_every_split(configured: Configured) -> None:
    found = work(Run(configured()).plan, "effects")
    assert (found.examples, found.loads) == (58, 1)
    assert found.forward == pytest.approx(58 * (WITH_HISTORY + REST).forward)
    assert found.stored == 58 * 11 * 16


def test_training_passes_over_the_branches_that_the_loss_needs(configured: Configured) -> None:
    plan = Run(configured(evaluate={"methods": ["sft", "contextsft", "nextquill"]})).plan
    both, one = (WITH_HISTORY + REST), WITH_HISTORY
    assert work(plan, "train").training == pytest.approx(40 * both.training)
    assert work(plan, "train:contextsft").training == pytest.approx(40 * one.training)
    assert work(plan, "train:sft").training == pytest.approx(40 * WITHOUT.training)
    assert work(plan, "train").forward == pytest.approx(10 * both.forward), "one validation, of all 10 val examples"
    lora = 2 * 4 * sum((32 + 32, 32 + 16, 32 + 16, 32 + 32, 32 + 64, 32 + 64, 64 + 32))
    assert work(plan, "train").stored == lora * (4 + 2 * 16), "four steps, so that two checkpoints are kept"


def test_epochs_folds_and_live_weights_count(configured: Configured) -> None:
    changes = {"score": {"effect_source": "adapter", "folds": 4}, "train": {"epochs": 3, "val_every": 0}}
    plan = Run(configured(**changes, evaluate={"methods": ["perce-live", "nextquill"]})).plan
    fold = work(plan, "train:fold-0")
    assert fold.examples == 3 * 30, "three epochs over three quarters of the users"
    assert fold.training == pytest.approx(90 * WITH_HISTORY.training)
    assert fold.forward == 0
    live = work(plan, "train:perce-live")
    assert live.training == pytest.approx(120 * (WITH_HISTORY + REST).training), "live weights need both branches"


def test_texts_take_a_prefill_and_as_many_tokens_as_the_true_reviews(configured: Configured) -> None:
    plan = Run(configured(evaluate={"methods": ["qwen", "latestk", "cos"], "max_new_tokens": 20})).plan
    found = work(plan, "latestk-sane")
    (answers,) = found.answers
    assert (answers.count, answers.tokens, answers.most, answers.prompt, answers.branches) == (8, 11, 20, 60, 1)
    assert found.forward == pytest.approx(8 * passed(SHAPE, 60, 1).forward)
    assert work(plan, "qwen-sane").answers[0].prompt == 30
    assert work(plan, "latestk-paper").answers[0].tokens == 8, "the limit of `paper` is 8"
    on_val = work(plan, "latestk-greedy-val")
    assert on_val.examples == 10
    steered = next(step for step in every_step(plan) if step.name.startswith("cos-") and step.kind == "predictions")
    found = WorkCounter(plan, SHAPE, SIZES).of(steered)
    assert found.answers[0].branches == 2
    count = found.examples
    assert found.forward == pytest.approx(count * (passed(SHAPE, 60, 1) + passed(SHAPE, 30, 1)).forward)


def test_texts_that_a_server_generates_cost_nothing_here(configured: Configured) -> None:
    models = {"base": "m", "contextsft": "c", "nextquill": "n"}
    plan = Run(configured(evaluate={"engine": "openai", "server": {"models": models}})).plan
    found = work(plan, "nextquill-paper")
    assert (found.forward, found.answers) == (0, ())


def test_likelihoods_pass_over_one_branch(configured: Configured) -> None:
    plan = Run(configured()).plan
    assert work(plan, "likelihood:nextquill").forward == pytest.approx(8 * WITH_HISTORY.forward)
    assert work(plan, "likelihood:nextquill-none").forward == pytest.approx(8 * WITHOUT.forward)
    assert work(plan, "likelihood:qwen").forward == pytest.approx(8 * WITHOUT.forward)


def test_what_methods_need_first_is_counted(configured: Configured) -> None:
    evaluate = {"methods": ["contriever", "llm-trsr", "oppu"], "summaries": {"block": 2, "newest": 2, "max_tokens": 5}}
    plan = Run(configured(evaluate=evaluate | {"retrieval": {"encoder": "base"}})).plan
    review = (60 - 30) / 2  # two reviews are shown
    found = work(plan, "relevance")
    assert found.forward == pytest.approx(2 * 18_432 * 8 * 7 * review), "8 examples, 6 past reviews and a query each"
    summaries = work(plan, "summaries")
    (answers,) = summaries.answers
    assert (answers.count, answers.tokens, answers.prompt) == (16, 5, 2 * review + 5), "two blocks of two for each"
    personal = work(plan, "personal")
    assert personal.training == pytest.approx(8 * 6 * 2 * WITHOUT.training), "two epochs over six reviews a user"
    assert personal.stored == 8 * 2 * 8 * ((32 + 32) + (32 + 16)) * 4, "queries and values, rank 8"


def test_raw_reviews_take_the_time_that_was_measured(configured: Configured) -> None:
    plan = Run(configured()).plan
    million = replace(SIZES, reviews={"Small": 1e6}, raw_bytes={"Small": 650e6})
    assert work(plan, "scan:Small", million).processor == pytest.approx(3.0)
    assert work(plan, "ingest", million).processor == pytest.approx(0.8)
    assert work(plan, "scan:Small", million).stored == pytest.approx(0.9 * 650e6)
    unknown = replace(million, reviews={"Small": 0})
    assert work(plan, "scan:Small", unknown).processor == pytest.approx(650e6 * 5.8e-9)


def test_every_kind_of_step_of_a_run_has_work_or_takes_seconds(configured: Configured) -> None:
    plan = Run(configured()).plan
    idle: list[Step] = [step for step in every_step(plan) if WorkCounter(plan, SHAPE, SIZES).of(step) == Work()]
    assert {step.kind for step in idle} <= {"choice"}
