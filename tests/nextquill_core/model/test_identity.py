"""Model, tokenizer and settings are compared before anything is loaded: what could fail is refused, nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nextquill_core.errors import ModelError, UserError
from nextquill_core.model.identity import check_limits, is_hub_name

ROOM = {"a and b": 100}


def folder(path: Path, added: list[dict[str, Any]] | None = None, settings: Any = None, **config: Any) -> str:
    # A model of 4 rows and 100 positions, and a tokenizer of four tokens and those `added`.
    path.mkdir()
    vocabulary = {"a": 0, "b": 1, "c": 2, "d": 3}
    tokenizer = {"model": {"vocab": vocabulary}, "added_tokens": added or []}
    config = {"vocab_size": 4, "max_position_embeddings": 100} | config
    for name, value in (("config", config), ("tokenizer", tokenizer), ("tokenizer_config", settings or {})):
        (path / f"{name}.json").write_text(json.dumps({key: part for key, part in value.items() if part is not None}))
    return str(path)


def token(number: int, text: str, special: bool = True) -> dict[str, Any]:
    return {"id": number, "content": text, "special": special}


def test_a_tokenizer_with_more_tokens_than_rows_is_refused(tmp_path: Path) -> None:
    check_limits(folder(tmp_path / "fits", [token(3, "d")]), "main", ROOM)
    with pytest.raises(ModelError, match=r"the tokenizer has 6 tokens, and the model's embedding has 4 rows.*\(6\)"):
        check_limits(folder(tmp_path / "word", [token(4, "x"), token(5, "word", special=False)]), "main", ROOM)
    with pytest.raises(ModelError, match="5 tokens"):
        check_limits(folder(tmp_path / "pad", [token(4, "<pad>")], {"pad_token": {"content": "<pad>"}}), "main", ROOM)
    with pytest.raises(ModelError, match="5 tokens"):
        check_limits(folder(tmp_path / "chat", [token(4, "<e>")], {"chat_template": "{{ x }}<e>"}), "main", ROOM)
    with pytest.raises(ModelError, match="the model's embedding has 3 rows"):
        check_limits(folder(tmp_path / "other", vocab_size=3), "main", ROOM)


def test_a_special_token_that_cannot_occur_needs_no_row(tmp_path: Path) -> None:
    settings = {"added_tokens_decoder": {"4": {"content": "<image>"}}, "chat_template": "{{ x }}"}
    check_limits(folder(tmp_path / "gemma", [token(4, "<image>")], settings), "main", ROOM)


def test_the_text_part_of_a_model_that_reads_images_counts(tmp_path: Path) -> None:
    parts = {"vocab_size": 3, "max_position_embeddings": 100}
    with pytest.raises(ModelError, match="3 rows"):
        check_limits(folder(tmp_path / "m", vocab_size=None, text_config=parts), "main", ROOM)


@pytest.mark.parametrize(
    ("config", "settings", "allowed"),
    [
        ({}, {}, 100),
        ({"max_position_embeddings": None, "n_positions": 64}, {}, 64),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 50}}, {}, 200),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, {}, 200),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8, "original_max_position_embeddings": 10}}, {}, 100),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "factor": 9.0}}, {}, 100),
        ({"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0}}}, {}, 800),
        ({}, {"model_max_length": 10}, 100),  # a note for truncation, where the model itself says what it has
        ({"max_position_embeddings": None}, {"model_max_length": 70}, 70),
        ({"max_position_embeddings": None}, {"model_max_length": 1e30}, None),
    ],
)
def test_positions(tmp_path: Path, config: dict[str, Any], settings: dict[str, Any], allowed: int | None) -> None:
    model = folder(tmp_path / "m", settings=settings, **config)
    check_limits(model, "main", {"x": allowed or 10**9})
    if allowed:
        with pytest.raises(ModelError, match=rf"the model has {allowed} positions, and x allow {allowed + 1} tokens"):
            check_limits(model, "main", {"x": allowed + 1})


@pytest.mark.parametrize(
    "tokenizer",
    [
        {"model": None},
        {"model": [1]},
        {"model": {"vocab": [1]}},
        {"model": {"vocab": {"a": "b"}}},
        {"added_tokens": None},
        {"added_tokens": [{"id": 9, "content": "x"}]},
    ],
)
def test_a_tokenizer_of_another_form_is_one_line(tmp_path: Path, tokenizer: Any) -> None:
    model = folder(tmp_path / "m")
    (tmp_path / "m" / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match=r"the JSON files of .*/m: .* unexpected form .*; copy or download the model"):
        check_limits(model, "main", ROOM)


def test_no_name_is_no_hub_name() -> None:
    assert not is_hub_name("")


def test_a_model_that_is_not_here_is_not_looked_at() -> None:
    check_limits("acme/unknown-of", "main", {"x": 10**9})
