"""The sizes of models against models that exist."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nextquill_core.config import ModelConfig, TinyModelConfig
from nextquill_core.costs.shape import KNOWN, ModelShape, model_shape
from nextquill_core.errors import ModelError
from nextquill_core.model.tiny import tiny_qwen3
from tests.gguf_files import write_gguf
from tests.models import FAMILIES, lora_model, small_model

QWEN = KNOWN["Qwen/Qwen2.5-3B"]


def saved(tmp_path: Path, model: Any) -> ModelConfig:
    model.config.save_pretrained(tmp_path)
    return ModelConfig(name_or_path=str(tmp_path))


def matrices(model: Any, *without: str) -> int:
    return sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2 and not any(part in name for part in without)
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_the_numbers_are_those_of_a_model_with_these_settings(tmp_path: Path, family: str) -> None:
    model = small_model(family)
    shape = model_shape(saved(tmp_path, model))
    assert shape.parameters == matrices(model, "wpe"), "without learned positions, which no product reads"
    assert shape.body == matrices(model, "embed_tokens", "lm_head", "wte", "wpe")
    assert shape.head == model.get_output_embeddings().weight.numel()


def test_the_numbers_of_qwen_are_the_published_ones() -> None:
    assert (round(QWEN.parameters / 1e9, 2), round(QWEN.body / 1e9, 2)) == (3.09, 2.77)
    assert QWEN.cached * 2 == 36_864, "bytes of a position in bfloat16: 36 layers × 2 × 2 heads × 128 × 2"
    assert QWEN.attended == 4 * 36 * 2048


def test_the_offline_model_has_the_sizes_that_it_is_built_with() -> None:
    settings = TinyModelConfig(vocab_size=600, hidden_size=48, layers=2, heads=4)
    shape = model_shape(ModelConfig(name_or_path="tiny", tiny=settings))
    assert shape.parameters == matrices(tiny_qwen3(settings, 600, 0, 1))


def test_a_lora_adapter_has_as_many_numbers_as_peft_makes() -> None:
    model = small_model("llama")
    shape = ModelShape(400, 32, 64, 2, 4, 2, 8, tied=False)
    for targets in ("all-linear", ["q_proj", "v_proj"]):
        adapted = lora_model(small_model("llama"), target_modules=targets)
        assert shape.lora(4, targets) == sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert shape.parameters == matrices(model)


def test_a_gguf_file_says_its_sizes(tmp_path: Path) -> None:
    path = tmp_path / "small.gguf"
    model = write_gguf(path)
    shape = model_shape(ModelConfig(name_or_path=str(path)))
    assert shape.parameters == matrices(model)


def test_the_files_count_before_the_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(small_model("qwen2").config.to_dict()))
    assert model_shape(ModelConfig(name_or_path="tiny"), tmp_path).hidden == 32


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden_size": 32, "num_local_experts": 8}, "it has 8 experts, and the plan only knows dense models"),
        ({"hidden_size": 32, "num_attention_heads": 4}, "its settings do not say its vocabulary"),
    ],
)
def test_a_model_whose_sizes_are_not_known_is_an_error(tmp_path: Path, settings: Any, message: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match=message):
        model_shape(ModelConfig(name_or_path=str(tmp_path)))


def test_a_model_of_the_hub_that_is_not_here_is_an_error_with_a_remedy() -> None:
    with pytest.raises(ModelError, match=r"hf download org/unknown config\.json"):
        model_shape(ModelConfig(name_or_path="org/unknown"))
