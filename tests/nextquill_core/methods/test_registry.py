"""The table of methods: what each shows the model and which terms of the loss train it."""

from __future__ import annotations

from typing import get_args

import pytest

from nextquill_core.config import CausalLossConfig, MethodName, TrainConfig
from nextquill_core.errors import UserError
from nextquill_core.methods.registry import METHODS, method


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
        "cos": ("newest", None),
        "sft": ("nothing", (False, False)),
        "oppu": ("nothing", None),
        "contextsft": ("newest", (False, False)),
        "perce": ("newest", (True, False)),
        "causal-only": ("newest", (False, True)),
        "norm-only": ("newest", (True, False)),
        "nextquill": ("newest", (True, True)),
        "nextquill-official": ("newest", (True, True)),
    }
    assert [name for name, row in METHODS.items() if row.steered] == ["cos"]
    assert [name for name, row in METHODS.items() if row.personal] == ["oppu"]
    assert [name for name, row in METHODS.items() if row.training and row.training.policy] == ["perce"]


def test_the_official_objective_stays_what_it_is_under_any_configuration() -> None:
    training = METHODS["nextquill-official"].training
    assert training
    assert [name for name, row in METHODS.items() if row.training and row.training.fixed] == ["nextquill-official"]
    configured = TrainConfig(
        alpha=0.05, normalization="weight", epochs=2, causal_loss=CausalLossConfig(counterfactual_grad="stop")
    )
    found = training.settings(configured)
    assert (found.alpha, found.normalization, found.weights_from) == (0.1, "sample_weight", "live")
    assert found.causal_loss == CausalLossConfig(weighted=False)
    assert found.epochs == 2, "what is not the objective's is shared"


def test_live_weights_and_their_sum_exclude_each_other() -> None:
    assert TrainConfig(weights_from="live", normalization="sample_weight")
    with pytest.raises(ValueError, match="set normalization to sample_weight or sequence"):
        TrainConfig(weights_from="live", normalization="weight")


def test_config_and_table_name_the_same_methods() -> None:
    assert list(get_args(MethodName)) == list(METHODS)


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    assert method("nextquill").name == "nextquill"
    with pytest.raises(UserError, match="did you mean `contextsft`"):
        method("contextft")
