"""The table of methods: what each shows the model and which terms of the loss train it."""

from __future__ import annotations

from typing import get_args

import pytest

from nextquill_core.config import MethodName
from nextquill_core.errors import UserError
from nextquill_core.evaluation.methods import METHODS, method


def test_the_table_is_what_the_paper_says() -> None:
    settings = {
        name: (row.history, (row.training.weighted, row.training.causal) if row.training else None)
        for name, row in METHODS.items()
    }
    assert settings == {
        "qwen": (False, None),
        "latestk": (True, None),
        "sft": (False, (False, False)),
        "contextsft": (True, (False, False)),
        "causal-only": (True, (False, True)),
        "norm-only": (True, (True, False)),
        "nextquill": (True, (True, True)),
    }


def test_config_and_table_name_the_same_methods() -> None:
    assert set(get_args(MethodName)) == set(METHODS)


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    assert method("nextquill").name == "nextquill"
    with pytest.raises(UserError, match="did you mean 'contextsft'"):
        method("contextft")
