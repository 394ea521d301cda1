"""The table of methods: what each shows the model and which terms of the loss train it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from nextquill_core.analysis.published import PUBLISHED
from nextquill_core.config import CausalLossConfig, EvaluateConfig, NormalLossConfig, TrainConfig
from nextquill_core.errors import UserError
from nextquill_core.methods.registry import METHODS, OFFICIAL, PLAIN, Method, Style
from tests.conftest import REPO
from tests.plugins import add_package


def test_the_table_is_what_the_paper_says() -> None:
    settings = {
        name: (row.shown, (row.training.weighted, row.training.causal) if row.training else None)
        for name, row in METHODS.items()
    }
    assert settings == {
        "qwen": ("nothing", None),
        "contriever": ("contriever", None),
        "bm25": ("bm25", None),
        "latestk": ("newest", None),
        "llm-trsr": ("summary", None),
        "pag": ("profile", None),
        "dpl": ("differences", None),
        "cos": ("newest", None),
        "stylevector": ("nothing", None),
        "sft": ("nothing", (False, False)),
        "oppu": ("nothing", None),
        "cope": ("nothing", None),
        "dep": ("peers", None),
        "contextsft": ("newest", (False, False)),
        "contextsft-steered": ("newest", None),
        "perce": ("newest", (True, False)),
        "perce-live": ("newest", (True, False)),
        "causal-only": ("newest", (False, True)),
        "mce-dce": ("newest", (True, True)),
        "norm-only": ("newest", (True, False)),
        "nextquill": ("newest", (True, True)),
        "nextquill-steered": ("newest", None),
        "nextquill-official": ("newest", (True, True)),
        "random-weights": ("newest", (True, True)),
        "grounded-weights": ("newest", (True, True)),
    }
    assert {name: row.strengths for name, row in METHODS.items() if row.steered} == {
        "cos": (0.5, 1.0, 2.0, 3.0),
        "contextsft-steered": (0.0, 0.25, 0.5, 1.0, 2.0),
        "nextquill-steered": (0.0, 0.25, 0.5, 1.0, 2.0),
    }
    assert {name: [style.label for style in row.styles] for name, row in METHODS.items() if row.styles} == {
        "stylevector": ["0.5x0.25", "0.5x0.5", "0.5x1", "0.75x0.25", "0.75x0.5", "0.75x1"]
    }
    assert [name for name, row in METHODS.items() if row.soft] == ["dep"]
    assert [name for name, row in METHODS.items() if row.individual] == ["stylevector", "oppu", "cope", "dep"]
    assert {name for name, row in METHODS.items() if row.controlled} == {
        name for name, row in METHODS.items() if row.shown == "newest"
    } | {"dep"}
    assert [name for name, row in METHODS.items() if row.samples] == ["cos"]
    assert [name for name, row in METHODS.items() if row.personal] == ["oppu", "cope"]
    assert [name for name, row in METHODS.items() if row.contrasted] == ["cope"]
    assert {name: row.adapter for name, row in METHODS.items() if row.adapter} == {
        "contextsft-steered": "contextsft", "nextquill-steered": "nextquill",
    }  # fmt: skip
    trained = {name: row.training for name, row in METHODS.items() if row.training}
    assert {name: row.policy for name, row in trained.items() if row.policy} == {
        "perce": "perce", "perce-live": "perce", "random-weights": "random", "grounded-weights": "grounded",
    }  # fmt: skip
    alone = TrainConfig(normal_loss=NormalLossConfig(weighted=False))
    assert [name for name, row in trained.items() if not row.settings(TrainConfig()).normal_loss.weighted] == [
        "mce-dce"
    ]
    assert [name for name, row in trained.items() if row.settings(alone).normal_loss.weighted] == [
        name for name, row in trained.items() if not row.causal or name == "nextquill-official"
    ], "without L_p, weights have no other place"


def test_the_official_objective_stays_what_it_is_under_any_configuration() -> None:
    training = METHODS["nextquill-official"].training
    assert training
    configured = TrainConfig(
        alpha=0.05, normalization="weight", epochs=2, causal_loss=CausalLossConfig(counterfactual_grad="stop")
    )
    found = training.settings(configured)
    assert (found.alpha, found.normalization, found.weights_from) == (0.1, "sample_weight", "live")
    assert found.causal_loss == CausalLossConfig(weighted=False)
    assert found.epochs == 2, "what is not the objective's is shared"


OBJECTIVE = {"normal_loss", "alpha", "normalization", "weights_from", "causal_loss"}
"""Settings of `train` that may belong to a method; all others are shared."""


def test_all_methods_train_with_the_same_number_of_steps_and_the_same_optimizer() -> None:
    """What is left of `train` without the objective: epochs, examples in a step, learning rate, LoRA and so on."""
    configured = TrainConfig(
        normalization="sample_weight", epochs=3, global_batch=7, learning_rate=1e-3, alpha=0.3,
        causal_loss=CausalLossConfig(counterfactual_grad="stop", weighted=False),
    )  # fmt: skip
    expected = configured.model_dump(exclude=OBJECTIVE)
    trained = {name: row.training for name, row in METHODS.items() if row.training}
    for name, training in trained.items():
        assert training.settings(configured).model_dump(exclude=OBJECTIVE) == expected, name
    found = trained["mce-dce"].settings(configured)
    assert found.causal_loss == CausalLossConfig(counterfactual_grad="stop", weighted=True), "L_p has ω, the rest stays"
    assert found.alpha == 0.3
    perce = trained["perce-live"].settings(configured.model_copy(update={"normalization": "weight"}))
    assert (perce.weights_from, perce.normalization) == ("live", "sample_tokens"), "it trains under any configuration"
    live = configured.model_copy(update={"weights_from": "live"})
    assert trained["mce-dce"].settings(live).weights_from == "live"
    assert {trained[f"{name}-weights"].settings(live).weights_from for name in ("random", "grounded")} == {"stored"}


def test_live_weights_and_their_sum_exclude_each_other() -> None:
    for possible in ("sequence", "sample_weight", "sample_tokens"):
        assert TrainConfig.model_validate({"weights_from": "live", "normalization": possible})
    with pytest.raises(ValueError, match="set normalization to sample_weight, sample_tokens or sequence"):
        TrainConfig(weights_from="live", normalization="weight")


NOT_PUBLISHED = {
    "bm25", "pag", "dpl", "stylevector", "cope", "dep", "perce", "perce-live", "contextsft-steered",
    "nextquill-steered", "nextquill-official", "random-weights", "grounded-weights",
}  # fmt: skip
"""Methods for which the paper has no row of numbers."""


def test_every_method_is_known_to_the_analysis_and_the_docs() -> None:
    ours = list(dict.fromkeys(number.method for number in PUBLISHED if number.ours))
    assert set(ours) | NOT_PUBLISHED == set(METHODS.built_in), "give a new method its published row, or name it here"
    assert not set(ours) & NOT_PUBLISHED
    assert ours == [name for name in METHODS.built_in if name in ours], "tables and figures keep the order of METHODS"
    page = (REPO / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")
    undocumented = [name for name in METHODS.built_in if f"| `{name}` |" not in page]
    assert not undocumented, "give it a row in docs/reference/metrics.md"


def test_the_configuration_takes_the_names_of_the_table() -> None:
    assert EvaluateConfig(methods=tuple(METHODS)).methods == tuple(METHODS)
    items = EvaluateConfig.model_json_schema()["properties"]["methods"]["items"]
    assert items == {"type": "string", "enum": list(METHODS)}, "forms show a list to choose from"


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    assert METHODS["nextquill"].name == "nextquill"
    with pytest.raises(UserError, match="did you mean `contextsft`"):
        METHODS["contextft"]


ROW = Method("mine", "a row", "newest")


@pytest.mark.parametrize(
    ("found", "wrong"),
    [
        ("a text", "is not a Method"),
        (dataclasses.replace(ROW, name="other"), "named `other`"),
        (dataclasses.replace(ROW, shown="longest"), "give it `select`"),
        (dataclasses.replace(ROW, select=lambda example, count: example.history[:count]), "shows `newest`"),
        (dataclasses.replace(ROW, shown="bm25", training=PLAIN), "trains, which needs"),
        (dataclasses.replace(ROW, contrasted=True), "needs personal=True"),
        (dataclasses.replace(ROW, personal=True, strengths=(0.5,)), "steers and has personal adapters"),
        (dataclasses.replace(ROW, adapter="nextquill", training=PLAIN), "leave one of them out"),
        (dataclasses.replace(ROW, adapter="sft"), "not trained on what this method shows"),
        (dataclasses.replace(ROW, adapter="latestk"), "not trained on what this method shows"),
        (dataclasses.replace(ROW, adapter="contextsft", strengths=(0.5,)), ""),
        (dataclasses.replace(ROW, styles=(Style(0.5, 1.0),), strengths=(0.5,)), "adds style vectors to a model that"),
        (dataclasses.replace(ROW, styles=(Style(0.5, 1.0),)), ""),
        (dataclasses.replace(ROW, shown="peers", personal=True), "has soft tokens beside another change"),
        (dataclasses.replace(ROW, shown="peers"), ""),
        (ROW, ""),
        (dataclasses.replace(ROW, training=OFFICIAL), ""),
    ],
)
def test_what_another_package_gives_is_checked(found: Any, wrong: str) -> None:
    assert wrong in METHODS.check("mine", found)
    assert bool(wrong) == bool(METHODS.check("mine", found))


def test_a_method_of_another_package_joins_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "from nextquill_core.methods.registry import Method\nmine = Method('mine', 'a row', 'newest')\n"
    add_package(tmp_path, monkeypatch, "added_method", code, "nextquill.methods", {"mine": "added_method:mine"})
    assert list(METHODS)[-1] == "mine"
    assert METHODS["mine"].summary == "a row"
    assert EvaluateConfig(methods=("qwen", "mine"), server={"models": {"mine": "m"}}).methods == ("qwen", "mine")
    assert METHODS.listed(lambda method: method.summary)[0]["mine"] == "a row [added_method 1.0]"
