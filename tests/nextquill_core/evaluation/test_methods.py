"""The table of methods: what each shows the model and which terms of the loss train it."""

from __future__ import annotations

from typing import get_args

import pytest

from nextquill_core.config import MethodName
from nextquill_core.errors import UserError
from nextquill_core.evaluation.methods import METHODS, method


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
    }
    assert [name for name, row in METHODS.items() if row.steered] == ["cos"]
    assert [name for name, row in METHODS.items() if row.personal] == ["oppu"]
    assert [name for name, row in METHODS.items() if row.training and row.training.policy] == ["perce"]


def test_config_and_table_name_the_same_methods() -> None:
    assert list(get_args(MethodName)) == list(METHODS)


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    assert method("nextquill").name == "nextquill"
    with pytest.raises(UserError, match="did you mean `contextsft`"):
        method("contextft")
