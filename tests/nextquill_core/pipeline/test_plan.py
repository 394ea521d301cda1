"""A changed field moves exactly the artifacts that it can change, and status says why."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from nextquill_core.config import Config, StageName
from nextquill_core.errors import UserError
from nextquill_core.methods import registry
from nextquill_core.pipeline import KINDS, Plan, Step, freshness
from nextquill_core.pipeline.run import Run
from nextquill_core.pipeline.score import effects_source
from nextquill_core.prompts import WORDINGS
from tests.conftest import REPO
from tests.nextquill_core.conftest import Configured
from tests.stages import table
from tests.world import small_config

STAGES = ("ingest", "model", "effects", "score", "train", "train:contextsft", "evaluate")
METHODS = ("qwen", "contextsft", "nextquill")
SANE = {"choice:sane", *(f"{name}-sane" for name in METHODS)}
ON_VAL = {"latestk-greedy-val", "latestk-sampled-val"}
PREDICTIONS = {"evaluate", *SANE, *ON_VAL, *(f"{name}-paper" for name in METHODS)}
BARE = {"likelihood:contextsft-none", "likelihood:nextquill-none"}
LIKELIHOODS = {*(f"likelihood:{name}" for name in METHODS), *BARE}
OURS = {
    *("train", "evaluate", "nextquill-paper", "nextquill-sane", "likelihood:nextquill", "likelihood:nextquill-none"),
    "clusters",
}


def every_step(plan: Plan) -> Iterator[Step]:
    yield from (*plan.scans.values(), plan.ingest, *([plan.model] if plan.model else []), *plan.scoring.values())
    yield from (plan.effects, plan.score, *plan.train.values(), *plan.evaluation.steps, plan.evaluate)
    yield from [plan.evaluation.clusters] if plan.evaluation.clusters else []


def fingerprints(config: Config) -> dict[str, str]:
    return {step.name: step.fingerprint for step in every_step(Run(config).plan)}


def differing(before: dict[str, str], after: dict[str, str]) -> set[str]:
    """Names of the steps, of those that were there before, whose fingerprints differ."""
    return {name for name in before if before[name] != after.get(name)}


def scored(plan: Plan) -> list[str]:
    """Names of the methods that are trained on a score artifact."""
    return [name for name, step in plan.train.items() if any(one.kind == "score" for one in step.inputs)]


def make_all(run: Run) -> None:
    """Commit a stand-in for every artifact."""
    for step in every_step(run.plan):
        run.make(step, table(1))


def states(run: Run) -> dict[str, str]:
    return {step.name: freshness(run.store, step).state for step in run.plan.stages}


@pytest.mark.parametrize(
    ("change", "moved"),
    [
        ({"weights": {"delta": 0.1}}, {"score", *OURS}),
        ({"train": {"alpha": 0.1}}, OURS),
        ({"evaluate": {"paper_max_new_tokens": 9}}, {"evaluate", *(f"{name}-paper" for name in METHODS)}),
        ({"evaluate": {"choose_by": "meteor"}}, {"evaluate", *SANE}),
        ({"evaluate": {"max_new_tokens": 9}}, {"evaluate", *SANE, *ON_VAL}),
        ({"evaluate": {"engine": "openai"}}, {*PREDICTIONS}),
        ({"evaluate": {"server": {"url": "http://elsewhere/v1", "models": {"nextquill": "a"}}}}, set()),
        ({"evaluate": {"bootstrap_samples": 300}}, {"evaluate"}),
        ({"evaluate": {"pictured_tokens": 9}}, {"clusters"}),
    ],
)
def test_what_a_field_moves(configured: Configured, change: dict[str, Any], moved: set[str]) -> None:
    assert differing(fingerprints(configured()), fingerprints(configured(**change))) == moved


def test_live_weights_come_from_no_score_and_move_weighted_methods_alone(configured: Configured) -> None:
    methods = {"methods": ["contextsft", "causal-only", "perce", "nextquill", "nextquill-official"]}
    plans = {
        name: Run(configured(evaluate=methods, **change)).plan
        for name, change in (
            ("stored", {}),
            ("live", {"train": {"weights_from": "live"}}),
            ("delta", {"train": {"weights_from": "live"}, "weights": {"delta": 0.1}}),
        )
    }
    moved = {
        one: {
            name for name, step in plans[one].train.items() if step.fingerprint != plans[other].train[name].fingerprint
        }
        for one, other in (("live", "stored"), ("delta", "live"))
    }
    assert moved == {"live": {"perce", "nextquill"}, "delta": {"nextquill", "nextquill-official"}}
    assert scored(plans["stored"]) == ["nextquill", "perce"]
    assert not scored(plans["live"])
    assert plans["live"].weights == {}
    weights = plans["delta"].train["nextquill-official"].settings["weights"]
    assert weights == {"policy": "threshold", "delta": 0.1, "high": 0.9, "low": 0.1}


def test_what_the_recipes_are_made_from(configured: Configured) -> None:
    """`mce-dce` reads the configured weights, each control reads another score artifact, `perce-live` reads none."""
    methods = {"methods": ["contextsft", "perce", "perce-live", "mce-dce", "random-weights", "grounded-weights"]}

    def plan(**changes: Any) -> Plan:
        return Run(configured(evaluate=methods, **changes)).plan

    stored = plan()
    read = {name: [one.name for one in step.inputs if one.kind == "score"] for name, step in stored.train.items()}
    assert read == {
        "nextquill": ["score"], "contextsft": [], "perce": ["score:perce"], "perce-live": [], "mce-dce": ["score"],
        "random-weights": ["score:random"], "grounded-weights": ["score:grounded"],
    }  # fmt: skip
    assert stored.train["perce-live"].settings["weights"] == {"policy": "perce", "floor": 0.8, "ceiling": 5.0}
    assert stored.weights["random"].settings["weights"] == {
        "policy": "random", "delta": 0.05, "high": 0.9, "low": 0.1, "seed": 0.0,
    }  # fmt: skip
    assert stored.weights["grounded"].settings["weights"] == {
        "policy": "grounded", "high": 0.9, "low": 0.1, "function_words": 0.0, "names": 0.0, "item": 0.0,
    }  # fmt: skip
    recipes = {name: step.settings["recipe"] for name, step in stored.train.items()}
    assert [name for name, recipe in recipes.items() if "normal_weighted" in recipe] == ["mce-dce"]

    def moved(**changes: Any) -> set[str]:
        return {
            name for name, step in plan(**changes).train.items() if step.fingerprint != stored.train[name].fingerprint
        }

    assert moved(weights={"delta": 0.1}) == {"nextquill", "mce-dce", "random-weights"}
    assert moved(weights={"low": 0.2}) == {"nextquill", "mce-dce", "random-weights", "grounded-weights"}
    assert moved(train={"alpha": 0.1}) == {"nextquill", "mce-dce", "random-weights", "grounded-weights"}
    assert moved(train={"weights_from": "live"}) == {"nextquill", "perce", "mce-dce"}
    unweighted = plan(train={"normal_loss": {"weighted": False}}).train
    assert moved(train={"normal_loss": {"weighted": False}}) == {"nextquill", "random-weights", "grounded-weights"}
    recipe = stored.train["mce-dce"].settings
    assert {**unweighted["nextquill"].settings, "seed": recipe["seed"]} == recipe, "the same training by another name"
    same = plan(train={"weights_from": "live", "normalization": "sample_tokens"}).train["perce"]
    assert same.fingerprint == stored.train["perce-live"].fingerprint
    tuned = plan(train={"normalization": "weight"}).train
    assert tuned["perce-live"].fingerprint == stored.train["perce-live"].fingerprint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"weights": {"policy": "random"}, "train": {"weights_from": "live"}},
            "weights.policy: `nextquill` takes its weights from the model in training, and policy `random` reads more "
            "than effects; set train.weights_from to stored, or leave out `nextquill`",
        ),
        (
            {"weights": {"policy": "grounded"}, "train": {"method": "nextquill-official"}},
            "weights.policy: `nextquill-official` takes its weights from the model in training, and policy `grounded` "
            "reads more than effects; name another policy, or leave out `nextquill-official`",
        ),
        (
            {"train": {"method": "mine", "normalization": "weight"}},
            "train: `mine`, which always has weights_from live, does not go with these settings: normalization "
            "weight divides by the step's sum of weights, which live weights only give after the step: set "
            "normalization to sample_weight, sample_tokens or sequence, or weights_from to stored; change them or "
            "leave out `mine`",
        ),
    ],
)
def test_settings_that_a_method_cannot_have_stop_before_anything_runs(
    configured: Configured, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    live = registry.Training(weighted=True, causal=False, fixed={"weights_from": "live"})
    monkeypatch.setitem(registry.METHODS.built_in, "mine", registry.Method("mine", "a row", "newest", live))  # type: ignore[arg-type]
    with pytest.raises(UserError) as caught:
        Run(configured(**changes))
    assert str(caught.value) == message


def test_effects_as_target_are_read_without_weights_too(configured: Configured) -> None:
    train = {"causal_loss": {"target": "effect"}}
    for methods, read in ((["causal-only", "norm-only"], {"causal-only", "norm-only"}), (["contextsft"], set())):
        plan = Run(configured(evaluate={"methods": methods}, train=train)).plan
        assert set(scored(plan)) & set(methods) == read


SERVED = {"base": "theta", "contextsft": "c", "nextquill": "a"}


@pytest.mark.parametrize(
    ("models", "moved"),
    [
        ({**SERVED, "nextquill": "b"}, {"evaluate", "nextquill-paper", "nextquill-sane"}),
        ({**SERVED, "perce": "p"}, set()),  # of a method that the table does not have
        ({**SERVED, "qwen": "theta"}, set()),  # the same model, said twice
        ({**SERVED, "qwen": "other"}, {"evaluate", "qwen-paper", "qwen-sane"}),
        ({**SERVED, "base": "other"}, {"evaluate", *ON_VAL, *SANE, "qwen-paper"}),  # `latestk` chooses what sane is
    ],
)
def test_a_served_model_moves_the_texts_that_it_writes(
    configured: Configured, models: dict[str, str], moved: set[str]
) -> None:
    def served(models: dict[str, str], **server: Any) -> Config:
        return configured(evaluate={"engine": "openai", "server": {"models": models, **server}})

    before = fingerprints(served(SERVED))
    after = fingerprints(served(models, url="http://elsewhere/v1", concurrency=1, timeout_s=1.0, retries=0))
    assert differing(before, after) == moved


def test_status_names_the_served_model_that_changed(configured: Configured) -> None:
    def run(engine: str, nextquill: str) -> Run:
        settings = {"engine": engine, "server": {"models": SERVED | {"nextquill": nextquill}}}
        return Run(configured(evaluate=settings))

    make_all(run("openai", "a"))
    changed = run("openai", "b")
    texts = changed.plan.evaluation.predictions["nextquill", "paper"].step
    assert freshness(changed.store, texts).why == "evaluate.server.models.nextquill a → b"
    assert "evaluate.server.models.nextquill a → b" in freshness(changed.store, changed.plan.evaluate).why
    here = run("transformers", "a")
    texts = here.plan.evaluation.predictions["nextquill", "paper"].step
    assert freshness(here.store, texts).why.startswith("evaluate.engine openai → transformers")


def test_what_is_always_computed_here_does_not_depend_on_the_engine(configured: Configured) -> None:
    """Likelihoods, summaries and relevance never ask a server."""
    methods = {"methods": ["llm-trsr", "contriever", "nextquill"]}
    before = fingerprints(configured(evaluate=methods))
    after = fingerprints(configured(evaluate=methods | {"engine": "openai"}))
    local = {"summaries", "relevance", *(f"likelihood:{name}" for name in methods["methods"])}
    local |= {f"likelihood:{name}-none" for name in methods["methods"]}
    assert {name: before[name] for name in local} == {name: after[name] for name in local}


def test_remote_code_counts_with_its_files(configured: Configured, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "modeling.py").write_text("x = 1\n")

    def effects(trusted: bool) -> str:
        model = {"name_or_path": str(folder), "trust_remote_code": trusted}
        return fingerprints(configured(model=model))["effects"]

    plain, trusted = effects(trusted=False), effects(trusted=True)
    assert plain != trusted
    (folder / "modeling.py").write_text("x = 22\n")
    assert effects(trusted=False) == plain
    assert effects(trusted=True) != trusted


def test_an_encoder_for_bertscore_in_the_home_folder_counts_by_its_files(
    configured: Configured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "bert"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    monkeypatch.setenv("HOME", str(tmp_path))

    def found(name: str) -> dict[str, str]:
        return fingerprints(configured(evaluate={"retrieval": {"bertscore": name}}))

    before = found(str(folder))
    assert found("~/bert") == before
    (folder / "config.json").write_text('{"layers": 1}')
    assert differing(before, found(str(folder))) == {"evaluate"}


@pytest.mark.parametrize("name", ["nowhere/at/all", "./bert", "~/no-such-encoder", "roberta large"])
def test_an_encoder_for_bertscore_that_is_nowhere_is_refused_before_the_work(configured: Configured, name: str) -> None:
    config = configured(evaluate={"retrieval": {"bertscore": name}})
    with pytest.raises(UserError, match=r"no such model folder; set evaluate\.retrieval\.bertscore to a folder"):
        fingerprints(config)


@pytest.mark.parametrize(
    ("policy", "change", "moves"),
    [
        ("threshold", {"delta": 0.1}, True),
        ("perce", {"delta": 0.1, "high": 0.5, "low": 0.2}, False),
        ("perce", {"options": {"floor": 0.8}}, False),
        ("perce", {"options": {"floor": 0.7}}, True),
        ("soft", {"delta": 0.1}, True),
        ("soft", {"options": {"temperature": 0.02}}, False),
        ("soft", {"options": {"temperature": 0.01}}, True),
        ("random", {"delta": 0.1}, True),
        ("random", {"options": {"seed": 0}}, False),
        ("random", {"options": {"seed": 1}}, True),
        ("grounded", {"delta": 0.1}, False),
        ("grounded", {"options": {"function_words": 1}}, True),
    ],
)
def test_only_what_a_policy_uses_moves_the_weights(
    configured: Configured, policy: str, change: dict[str, Any], moves: bool
) -> None:
    """A setting that the policy does not use, or one set to its default, derives nothing again."""
    before = fingerprints(configured(weights={"policy": policy}))
    after = fingerprints(configured(weights={"policy": policy, **change}))
    assert (before["score"] != after["score"]) == moves
    assert before["effects"] == after["effects"]


def test_a_policy_that_is_not_there_stops_before_anything_runs(configured: Configured) -> None:
    with pytest.raises(UserError) as caught:
        Run(configured(weights={"policy": "treshold"}))
    assert str(caught.value) == "weights.policy: unknown weight policy `treshold`; did you mean `threshold`?"


@pytest.mark.process
def test_a_plan_needs_no_torch() -> None:
    code = "import sys, nextquill_core.pipeline; print([x for x in ('torch', 'transformers') if x in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPO)
    assert done.stdout == "[]\n"


def test_the_place_of_the_store_moves_nothing(small_world: Path, tmp_path: Path) -> None:
    first, other = (fingerprints(small_config(small_world, tmp_path / name)) for name in ("a", "b"))
    assert first == other


def test_methods_and_presets_have_predictions_of_their_own(configured: Configured) -> None:
    """Another method or preset generates nothing again for those that are there."""
    before = fingerprints(configured())
    more = fingerprints(configured(evaluate={"methods": ["qwen", "latestk", "nextquill"]}))
    assert {before[name] for name in before.keys() & more.keys()} - set(more.values()) == {before["evaluate"]}


def test_raw_files_count_by_content_not_by_name(configured: Configured, small_world: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(small_world, copy)
    before = fingerprints(configured())
    assert fingerprints(small_config(copy, tmp_path)) == before
    with (copy / "reviews.jsonl").open("a") as file:
        file.write("\n")
    assert fingerprints(small_config(copy, tmp_path))["ingest"] != before["ingest"]


def test_thresholds_never_scan_again_and_a_category_is_scanned_once_for_all_configs(configured: Configured) -> None:
    def scans(**ingest: Any) -> dict[str, str]:
        return {name: step.fingerprint for name, step in Run(configured(ingest=ingest)).plan.scans.items()}

    before = scans()
    (raw,) = configured().ingest.inputs
    protocol = {"name": "global-time", "min_text_chars": 1, "min_user_reviews": 2}
    assert scans(protocol=protocol, bad_rows="drop", max_bad_share=0.5, suspect_rows="bad") == before
    two = scans(inputs=[raw.model_dump(), raw.model_dump() | {"category": "Other"}])
    assert set(two.values()) == set(before.values())
    assert scans(source="amazon-2018") != before


def test_every_kind_of_step_names_a_command_and_the_function_that_builds_it() -> None:
    import inspect

    import typer

    from flows.cli.main import app

    commands = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    assert {kind.command for kind in KINDS.values()} <= commands
    for kind in KINDS.values():
        parameters = inspect.signature(kind.load()).parameters
        assert list(parameters)[:4] == ["run", "step", "staging", "progress"], kind.path
        assert all(one.kind is one.KEYWORD_ONLY for one in list(parameters.values())[4:]), kind.path


def test_a_missing_artifact_names_an_existing_command_for_every_step_of_a_full_plan(configured: Configured) -> None:
    """Every method, both presets and cross-fitted effects: all kinds of steps that a configuration can ask for."""
    full = configured(
        score={"effect_source": "adapter"},
        evaluate={"methods": list(registry.METHODS), "decoding": ["paper", "sane"], "control": "stranger",
                  "retrieval": {"encoder": "base"}, "peers": {"encoder": "base"}, "judge": {"model": "judge"}},
    )  # fmt: skip
    run = Run(full)
    steps: dict[str, Step] = {}
    waiting = [run.plan.evaluate, *([run.plan.evaluation.clusters] if run.plan.evaluation.clusters else [])]
    while waiting:
        step = waiting.pop()
        steps[step.fingerprint] = step
        waiting += [origin for origin in step.inputs if origin.fingerprint not in steps]
    assert {step.kind for step in steps.values()} == set(KINDS) - {"sweep", "reproduction", "study"}
    makes = {step.fingerprint: stage for stage in get_args(StageName) for step in run.plan.made_by(stage)}
    for step in steps.values():
        command = run.plan.command(step)
        with pytest.raises(UserError, match=f"run `nextquill {command}` with the same config first"):
            run.artifact(step)
        assert makes.get(step.fingerprint, command) == command, step.name


def test_what_other_stages_make_is_required_in_their_order(configured: Configured) -> None:
    run = Run(configured())
    assert run.plan.needed_by([run.plan.evaluate])[0] is run.plan.ingest
    assert run.plan.needed_by(run.plan.made_by("ingest")) == []
    with pytest.raises(UserError, match="the ingest artifact is missing"):
        run.require_inputs(run.plan.made_by("train"))


def test_a_missing_input_names_the_command(configured: Configured) -> None:
    run = Run(configured())
    with pytest.raises(UserError, match="run `nextquill ingest` with the same config first"):
        run.make(run.plan.effects, lambda staging: {})


def test_folds_move_nothing_where_theta0_scores(configured: Configured) -> None:
    before = Run(configured()).plan
    after = Run(configured(score={"folds": 7})).plan
    assert before.effects.settings["score"] == after.effects.settings["score"] == {"effect_source": "initial"}
    assert [step.fingerprint for step in every_step(before)] == [step.fingerprint for step in every_step(after)]
    assert not before.folds


def test_adapters_that_score_are_steps_of_their_own_before_scoring(configured: Configured) -> None:
    plain = Run(configured()).plan
    plan = Run(configured(score={"effect_source": "adapter", "folds": 3})).plan
    assert list(plan.folds) == ["fold-0", "fold-1", "fold-2"]
    assert [step.name for step in plan.stages] == [
        "ingest", "model", "train:fold-0", "train:fold-1", "train:fold-2", "score", "train", "train:contextsft",
        "evaluate",
    ]  # fmt: skip
    assert plan.effects.inputs == (plan.ingest, plan.model, *plan.folds.values())
    for number, step in enumerate(plan.folds.values()):
        assert step.kind == "train"
        assert step.inputs == (plan.ingest, plan.model), "training for the scores may not depend on the scores"
        assert step.settings == {**plan.train["contextsft"].settings, "fold": {"leave_out": number, "of": 3}}
    assert plan.train["contextsft"].fingerprint == plain.train["contextsft"].fingerprint
    assert {plan.effects.fingerprint, plan.score.fingerprint}.isdisjoint(
        {plain.effects.fingerprint, plain.score.fingerprint}
    )


def test_an_adapter_of_all_users_may_score_and_is_the_one_of_the_table(configured: Configured) -> None:
    plain = Run(configured()).plan
    config = configured(score={"effect_source": "trained"})
    plan = Run(config).plan
    assert plan.scorer == plan.train["contextsft"] == plain.train["contextsft"], "it is trained once for both"
    assert plan.effects.inputs == (plan.ingest, plan.model, plan.scorer)
    assert [step.name for step in plan.stages] == ["ingest", "model", "train:contextsft", "score", "train", "evaluate"]
    assert plan.command(plan.scorer) == "score"
    assert (plan.adapter_name(plan.scorer), plan.recipe("contextsft")) == ("contextsft", "contextsft")
    folds = Run(configured(score={"effect_source": "trained", "folds": 7})).plan
    assert folds.effects.fingerprint == plan.effects.fingerprint, "there are no folds"
    assert "has seen these reviews" in effects_source(plan.effects)
    alone = configured(score={"effect_source": "trained"}, evaluate={"methods": ["qwen"]})
    assert list(Run(alone).plan.adapters) == ["contextsft", "nextquill"]
    make_all(Run(config))
    assert set(states(Run(config)).values()) == {"fresh"}


@pytest.mark.parametrize(
    ("change", "moved"),
    [
        ({"train": {"alpha": 0.1}}, {"train", "clusters"}),  # the folds train without L_p
        ({"weights": {"delta": 0.1}}, {"score", "train", "clusters"}),
        (
            {"train": {"epochs": 2}},
            {"train:fold-0", "train:fold-1", "effects", "score", "train", "train:contextsft", "clusters"},
        ),
    ],
)
def test_what_a_field_moves_where_adapters_score(
    configured: Configured, change: dict[str, Any], moved: set[str]
) -> None:
    adapter = {"score": {"effect_source": "adapter"}}
    before = fingerprints(configured(**adapter))
    after = fingerprints(configured(**adapter, **change))
    assert differing(before, after) - PREDICTIONS - LIKELIHOODS == moved


def test_the_model_behind_the_effects_is_named_from_the_plan(configured: Configured) -> None:
    """Preference tokens are those of the model that scored, which is not always the initial one."""
    plain = Run(configured()).plan
    crossed = Run(configured(score={"effect_source": "adapter"})).plan
    assert effects_source(plain.effects) == "the initial model"
    assert "contextsft adapter that was trained without the user" in effects_source(crossed.effects)


def test_folds_have_standings_of_their_own(configured: Configured) -> None:
    """A fold is no earlier form of another fold or of the method it is trained like."""
    make_all(Run(configured()))
    adapter = {"effect_source": "adapter"}
    run = Run(configured(score=adapter))
    assert states(run) == {
        "ingest": "fresh", "model": "fresh", "train:fold-0": "missing", "train:fold-1": "missing", "score": "stale",
        "train": "stale", "train:contextsft": "fresh", "evaluate": "stale",
    }  # fmt: skip
    assert "score.effect_source initial → adapter" in freshness(run.store, run.plan.score).why
    with pytest.raises(UserError, match=r"train:fold-0 artifact is missing; run `nextquill score`"):
        run.make(run.plan.effects, lambda staging: {})
    make_all(run)
    assert set(states(run).values()) == {"fresh"}
    assert set(states(Run(configured())).values()) == {"fresh"}, "both stand side by side"
    changed = Run(configured(score=adapter, train={"epochs": 2}))
    for fold in changed.plan.folds.values():
        assert freshness(changed.store, fold).why == "train.epochs 1 → 2"
    more = Run(configured(score=adapter | {"folds": 3}))
    assert {freshness(more.store, fold).state for fold in more.plan.folds.values()} == {"missing"}
    shutil.rmtree(run.artifact(run.plan.folds["fold-1"]).folder)
    assert freshness(run.store, run.plan.score).why.endswith("its input train:fold-1 is missing")


def test_the_manifest_says_what_was_asked_and_where_it_came_from(configured: Configured) -> None:
    run = Run(configured())
    make_all(run)
    manifest = json.loads((run.artifact(run.plan.score).folder / "manifest.json").read_text())
    assert manifest["identity"]["weights"] == {"policy": "threshold", "delta": 0.05, "high": 0.9, "low": 0.1}
    assert [(ref["kind"], ref["fingerprint"]) for ref in manifest["inputs"]] == [
        ("effects", run.plan.effects.fingerprint)
    ]
    assert {"code_version", "dirty", "command", "host", "start", "end", "libraries", "model"} <= set(
        manifest["provenance"]
    )
    assert manifest["config"]["weights"]["delta"] == 0.05


@pytest.mark.parametrize(
    ("name", "message"),
    [("./nowhere", "no such model folder"), ("/", "it has no config.json"), ("no-such", "no such model folder")],
)
def test_unknown_model_folders(configured: Configured, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Run(configured(model={"name_or_path": name}))


@pytest.mark.parametrize(
    ("methods", "settings", "key"),
    [
        (["contriever"], {"retrieval": {"encoder": "./nowhere"}}, "evaluate.retrieval.encoder"),
        (["dpl"], {"peers": {"encoder": "./nowhere"}}, "evaluate.peers.encoder"),
        (["qwen"], {"retrieval": {"author": "./nowhere"}}, "evaluate.retrieval.author"),
    ],
)
def test_an_unknown_encoder_is_told_with_its_own_setting(
    configured: Configured, methods: list[str], settings: dict[str, Any], key: str
) -> None:
    with pytest.raises(UserError, match=rf"^\./nowhere: no such model folder; set {key} to a folder, a hub name"):
        Run(configured(evaluate={"methods": methods, **settings}))


def test_published_examples_need_a_source_that_has_them(configured: Configured) -> None:
    with pytest.raises(UserError, match="the files of amazon-2023 hold no published examples; set it to dpl or"):
        Run(configured(ingest={"protocol": {"name": "published"}}))


def topics(tmp_path: Path, *names: str, **settings: Any) -> Config:
    """Settings of a run on files of topics with these names, all with the same content."""
    folder = tmp_path / "-".join(names)
    folder.mkdir(exist_ok=True)
    for name in names:
        if not (folder / name).exists():
            (folder / name).write_text('{"author": "a", "profile": [], "input": "i", "output": "o"}\n')
    ingest = {"source": "lamp", "options": {"task": "topic_writing_user"}, "protocol": {"name": "published"}}
    inputs = [{"category": "topics", "reviews": str(folder)}]
    return small_config(tmp_path, tmp_path, ingest=ingest | {"inputs": inputs} | settings.pop("ingest", {}), **settings)


def test_the_split_that_a_file_s_name_shows_decides_its_scan(tmp_path: Path) -> None:
    plans = [Run(topics(tmp_path, *names)).plan for names in (("test.json",), ("test-0.json",), ("train.json",))]
    first, moved, other = (plan.scans["topics"] for plan in plans)
    assert first.settings["splits"] == ["test"]
    assert first.fingerprint == moved.fingerprint, "any other part of a name decides nothing"
    assert first.fingerprint != other.fingerprint


def test_no_threshold_decides_published_examples(tmp_path: Path) -> None:
    plain = Run(topics(tmp_path, "test.json")).plan
    other = {"protocol": {"name": "published", "min_text_chars": 7, "min_user_reviews": 2}}
    assert Run(topics(tmp_path, "test.json", ingest=other)).plan.ingest.fingerprint == plain.ingest.fingerprint


def test_the_source_decides_the_words_of_prompts_and_the_configuration_may(
    configured: Configured, tmp_path: Path
) -> None:
    methods = {"evaluate": {"methods": ["latestk", "llm-trsr", "contriever"]}}
    posts = Run(topics(tmp_path, "test.json", **methods)).plan
    assert (posts.writes, posts.effects.settings["prompt"]["writes"]) == ("post", "post")
    assert posts.effects.settings["prompt"]["revision"] == WORDINGS["post"].revision
    assert posts.evaluation.relevance is not None
    assert posts.evaluation.relevance.settings["writes"] == "post"
    reviews = configured(**methods)
    plain, said = (Run(reviews.model_copy(update={"prompt": reviews.prompt.model_copy(update={"writes": kind})})).plan
                   for kind in ("auto", "review"))  # fmt: skip
    assert fingerprints(plain.config) == fingerprints(said.config)
    assert "writes" not in plain.effects.settings["prompt"]
    changed = Run(configured(prompt={"writes": "email"}, **methods))
    assert changed.prompt.writes == "email"
    assert {"model", "effects", "train", "relevance", "summaries", "latestk-paper"} <= {
        name for name, found in fingerprints(changed.config).items() if found != fingerprints(plain.config)[name]
    }


def test_an_adapter_that_is_not_trained_is_refused_in_one_line(configured: Configured) -> None:
    plan = Run(configured()).plan
    assert plan.adapter("contextsft") is plan.train["contextsft"]
    with pytest.raises(UserError, match=r"--method: this config trains no `sft`; it trains nextquill, contextsft"):
        plan.adapter("sft")
    with pytest.raises(UserError, match=r"--method: `qwen` trains no adapter; name one of "):
        plan.adapter("qwen")
