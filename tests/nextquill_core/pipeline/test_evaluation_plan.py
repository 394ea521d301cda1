"""Which steps an evaluation plans: shared adapters, strengths chosen on val, likelihoods, sets of preference tokens."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from nextquill_core.errors import UserError
from nextquill_core.methods import registry
from nextquill_core.pipeline import Plan
from nextquill_core.pipeline.run import Run
from tests.nextquill_core.conftest import Configured
from tests.nextquill_core.pipeline.test_plan import differing, fingerprints
from tests.world import small_config


def planned(configured: Configured, *methods: str, **changes: Any) -> Plan:
    evaluate = {"methods": list(methods), **changes.pop("evaluate", {})}
    return Run(configured(evaluate=evaluate, **changes)).plan


def test_a_method_that_uses_another_s_adapter_plans_its_training_once(configured: Configured) -> None:
    plan = planned(configured, "nextquill-steered")
    assert list(plan.train) == ["nextquill"]
    both = planned(configured, "nextquill", "nextquill-steered", train={"method": "contextsft"})
    assert list(both.train) == ["contextsft", "nextquill"]
    assert both.train["nextquill"].fingerprint == plan.train["nextquill"].fingerprint
    for texts in (plan.evaluation.predictions, plan.evaluation.candidates["steering-nextquill-steered"]):
        assert all(plan.train["nextquill"] in one.step.inputs for one in texts.values())
    assert plan.train["nextquill"] in plan.evaluation.likelihoods["nextquill-steered"].inputs
    with pytest.raises(UserError, match="`nextquill-steered` trains no adapter; name nextquill, whose adapter it uses"):
        plan.adapter("nextquill-steered")


def test_each_method_that_steers_chooses_its_own_strength_on_val(configured: Configured) -> None:
    plan = planned(configured, "cos", "nextquill-steered")
    assert list(plan.evaluation.choices) == ["sane", "steering", "steering-nextquill-steered"]
    for name, method in (("steering", "cos"), ("steering-nextquill-steered", "nextquill-steered")):
        candidates = plan.evaluation.candidates[name]
        assert list(candidates) == [f"{strength:g}" for strength in registry.METHODS[method].strengths]
        assert [one.strength for one in candidates.values()] == list(registry.METHODS[method].strengths)
        assert {(one.method, one.split) for one in candidates.values()} == {(method, "val")}
        chosen = plan.evaluation.choices[name]
        made = [*plan.evaluation.predictions.values(), *plan.evaluation.controls.values()]
        of_method = [one.step for one in made if one.method == method] + [plan.evaluation.likelihoods[method]]
        assert all(chosen in step.inputs for step in of_method)
        others = {name for name, known in plan.evaluation.choices.items() if known is not chosen} - {"sane"}
        assert not any(plan.evaluation.choices[name] in step.inputs for step in of_method for name in others)
    alone = planned(configured, "cos")
    assert alone.evaluation.choices["steering"].fingerprint == plan.evaluation.choices["steering"].fingerprint


def test_a_strength_that_likelihoods_choose_needs_no_texts(configured: Configured) -> None:
    texts = planned(configured, "nextquill-steered").evaluation
    plan = planned(configured, "nextquill-steered", evaluate={"choose_strength_by": "likelihood"})
    made, name = plan.evaluation, "steering-nextquill-steered"
    assert list(made.candidates) == ["sane"]
    assert list(made.choices) == list(texts.choices)
    assert made.choices[name].settings["candidates"] == texts.choices[name].settings["candidates"]
    assert plan.train["nextquill"] in made.choices[name].inputs
    assert made.choices[name] in list(made.steps)
    assert not any(step.kind == "predictions" for step in made.choices[name].inputs)
    assert made.choices["sane"].fingerprint == texts.choices["sane"].fingerprint
    assert made.likelihoods["nextquill-steered"].fingerprint != texts.likelihoods["nextquill-steered"].fingerprint


@pytest.mark.parametrize(
    ("decoding", "candidate", "samplers", "limit"),
    [
        (["paper"], "paper-0.25", {"paper"}, 7),
        (["paper", "sane"], "sane-0.25", {None}, 8),
        (["sane", "paper"], "paper-0.25", {"paper"}, 7),
    ],
)
def test_a_steered_adapter_is_decoded_as_the_adapter_is(
    configured: Configured, decoding: list[str], candidate: str, samplers: set[str | None], limit: int
) -> None:
    """Its strength is chosen under the last preset, and every preset has the sampler of the unsteered method."""
    evaluate = {"decoding": decoding, "paper_max_new_tokens": 7}
    plan = planned(configured, "nextquill", "nextquill-steered", evaluate=evaluate)
    candidates = plan.evaluation.candidates["steering-nextquill-steered"]
    assert candidates["0.25"].decoding == candidate
    assert {one.sampler for one in candidates.values()} == samplers
    assert {one.limit for one in candidates.values()} == {limit}
    if samplers == {None}:
        assert all(plan.evaluation.choices["sane"] in one.step.inputs for one in candidates.values())
    for preset in decoding:
        ours, plain = (plan.evaluation.predictions[name, preset] for name in ("nextquill-steered", "nextquill"))
        assert (ours.sampler, ours.limit) == (plain.sampler, plain.limit)


def test_cope_shares_the_personal_adapters_of_oppu_and_chooses_nothing(configured: Configured) -> None:
    plan = planned(configured, "oppu", "cope")
    alone = planned(configured, "cope")
    assert plan.evaluation.personal
    assert alone.evaluation.personal
    assert plan.evaluation.personal.fingerprint == alone.evaluation.personal.fingerprint
    assert list(alone.evaluation.tasks) == ["task-0", "task-1"]
    assert list(plan.evaluation.choices) == ["sane"]
    step = plan.evaluation.predictions["cope", "paper"].step
    weights = {"ours": 1.0, "theirs": 0.1, "plausibility": 0.1}
    assert step.settings["contrast"] == {**weights, "log_probabilities": True}
    assert plan.evaluation.likelihoods["cope"].settings["contrast"] == weights, "the same for logits"
    assert step.settings["sampler"] == plan.evaluation.predictions["oppu", "paper"].step.settings["sampler"]


def test_likelihoods_without_history_are_those_of_the_model(configured: Configured) -> None:
    """Methods that do not train share the base model's; methods that show no history have none."""
    methods = ["qwen", "latestk", "bm25", "cos", "sft", "contextsft", "oppu"]
    plan = Run(configured(evaluate={"methods": methods})).plan.evaluation
    bare = plan.bare_likelihoods
    assert list(bare) == ["latestk", "bm25", "cos", "contextsft"]
    assert {bare[name].fingerprint for name in ("latestk", "bm25", "cos")} == {plan.likelihoods["qwen"].fingerprint}
    own = plan.likelihoods["contextsft"]
    assert bare["contextsft"].settings == {**own.settings, "past": "none"}
    assert bare["contextsft"].inputs == own.inputs
    assert [step.name for step in bare.values()] == [f"likelihood:{name}-none" for name in bare]


def test_preference_tokens_by_cross_fitting_reuse_the_folds(configured: Configured) -> None:
    plain = configured()
    asked = {"preference_tokens": ["initial", "crossfit"]}
    run = Run(configured(evaluate=asked))
    before, after = fingerprints(plain), fingerprints(run.config)
    assert differing(before, after) == {"evaluate"}
    assert set(after) - set(before) == {"train:fold-0", "train:fold-1", "effects:crossfit"}
    crossfit = run.plan.evaluation.crossfit
    assert crossfit is not None
    assert crossfit.settings["score"] == {"effect_source": "adapter", "folds": 2}
    assert crossfit.settings["split"] == "test"
    assert [step.name for step in run.plan.made_by("score")] == ["train:fold-0", "train:fold-1", "score"]
    with pytest.raises(UserError, match="run `nextquill evaluate` with the same config first"):
        run.artifact(crossfit)
    scored = Run(configured(score={"effect_source": "adapter"}, evaluate=asked)).plan
    assert scored.evaluation.crossfit is None, "the effects of the score stage are cross-fitted already"
    assert {step.fingerprint for step in scored.folds.values()} == {
        step.fingerprint for step in run.plan.folds.values()
    }
    more = fingerprints(configured(evaluate=asked, score={"folds": 3}))
    assert differing(after, more) == {"train:fold-0", "train:fold-1", "effects:crossfit", "evaluate"}


def test_exact_preference_tokens_count_by_the_truth_and_need_one(small_world: Path, tmp_path: Path) -> None:
    world = tmp_path / "world"
    shutil.copytree(small_world, world)
    exact = {"evaluate": {"preference_tokens": ["exact"]}}
    before = fingerprints(small_config(world, tmp_path, **exact))
    with (world / "truth" / "tokens.jsonl").open("a") as file:
        file.write("\n")
    after = fingerprints(small_config(world, tmp_path, **exact))
    assert differing(before, after) == {"evaluate"}
    assert set(before) == set(fingerprints(small_config(world, tmp_path)))
    shutil.rmtree(world / "truth")
    with pytest.raises(UserError) as caught:
        Run(small_config(world, tmp_path, **exact))
    assert str(caught.value) == (
        f"evaluate.preference_tokens: category Small has no ground truth of its words: there is no "
        f"{world / 'truth' / 'tokens.jsonl'}; leave exact out; only a category that `nextquill sample` wrote has it"
    )
