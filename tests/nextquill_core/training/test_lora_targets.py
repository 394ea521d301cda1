"""`train.lora.targets` in the forms that PEFT takes, and one line for targets that fit no model."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextquill_core.config import LoraSettings, ModelConfig
from nextquill_core.errors import ModelError
from nextquill_core.training.lora_targets import check_modules, check_targets
from tests.models import lora_model, small_model

QV = ["q_proj", "v_proj"]
REGEX = r".*\.(q_proj|v_proj)"


def adapted(model: Any, targets: Any) -> set[str]:
    """The modules that PEFT itself puts an adapter on."""
    whole = lora_model(model, target_modules=LoraSettings(targets=targets).target_modules)
    names = (name for name, _ in whole.named_modules() if name.endswith(".lora_A"))
    return {name.removesuffix(".lora_A").removeprefix("base_model.model.") for name in names}


@pytest.mark.parametrize(
    ("targets", "names"),
    [
        (REGEX, QV),
        ("q_proj", ["q_proj"]),
        (("v_proj", "q_proj", "q_proj"), QV),
        (("self_attn.q_proj", "v_proj"), QV),
        ("All-Linear", ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]),
        (("all-linear",), ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]),
    ],
)
def test_forms_that_peft_users_write_adapt_the_layers_they_mean(targets: Any, names: list[str]) -> None:
    check_modules(LoraSettings(targets=targets), small_model("qwen2"))
    found = adapted(small_model("qwen2"), targets)
    assert sorted({name.rpartition(".")[2] for name in found}) == names
    assert len(found) == 2 * len(names), "in both layers"


def test_a_full_module_path_adapts_one_layer_alone() -> None:
    path = "model.layers.1.self_attn.q_proj"
    assert adapted(small_model("qwen2"), path) == adapted(small_model("qwen2"), (path,)) == {path}


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        ("q_proj,v_proj", r"'q_proj,v_proj' is read as one regular expression: write a list, \[q_proj, v_proj\] \["),
        ("q_proj v_proj", r"write a list, \[q_proj, v_proj\] \["),
        ("[q_proj, v_proj]", r"write a list, \[q_proj, v_proj\] \["),
        ("['q_proj', 'v_proj']", r"write a list, \[q_proj, v_proj\] \["),
        ("*.q_proj", r"'\*.q_proj' is not a regular expression \(nothing to repeat at position 0\): write one such as"),
        ((), "no layer is named"),
        ("", "no layer is named"),
        ((".*q_proj", "v_proj"), "'.\\*q_proj' in a list is not the name of a module"),
        (("all-linear", "q_proj"), "'all-linear' in a list is not the name of a module"),
        (("",), "'' in a list is not the name of a module"),
    ],
)
def test_what_no_model_could_have_is_refused_in_the_configuration(targets: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        LoraSettings(targets=targets)


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (
            "nosuch",
            "train.lora.targets: `nosuch` matches no module of the base model; its linear layers are down_proj,",
        ),
        (
            "q_prj",
            "`q_prj` matches no module of the base model; did you mean `q_proj`? its linear layers are down_proj,",
        ),
        (("q_proj", "nosuch"), "`nosuch` matches no module of the base model;"),
        (r".*\.nosuch", r"`.*\.nosuch` matches no module of the base model;"),
        ("proj", "`proj` matches no module of the base model;"),
        (
            ".*mlp.*",
            "`.*mlp.*` matches model.layers.0.mlp, of type Qwen2MLP, which gets no adapter; name linear layers",
        ),
        ("lm_head", "`lm_head` matches lm_head, the output layer, which gets no adapter;"),
        ("embed_tokens", "`embed_tokens` matches model.embed_tokens, of type Embedding, which gets no adapter;"),
    ],
)
def test_what_the_model_does_not_have_is_refused_in_one_line(targets: Any, said: str) -> None:
    with pytest.raises(ModelError) as caught:
        check_modules(LoraSettings(targets=targets), small_model("qwen2"))
    assert said in str(caught.value)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_other_families_have_layers_of_other_names(family: str) -> None:
    name = "c_attn" if family == "gpt2" else "q_proj"
    check_modules(LoraSettings(targets=(name,)), small_model(family))
    with pytest.raises(ModelError):
        check_modules(LoraSettings(targets="nosuch"), small_model(family))


def test_a_model_is_asked_for_its_layers_without_its_weights(tiny_folder: Any, tmp_path: Any) -> None:
    (tmp_path / "config.json").write_bytes((tiny_folder / "config.json").read_bytes())
    model = ModelConfig(name_or_path=str(tmp_path), dtype="float32")
    check_targets(LoraSettings(targets=REGEX), model)
    check_targets(LoraSettings(), ModelConfig(name_or_path="not/read", dtype="float32"))
    with pytest.raises(ModelError, match="`nosuch` matches no module of"):
        check_targets(LoraSettings(targets="nosuch"), model)


def test_a_model_of_another_kind_is_one_line(tmp_path: Any) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "t5", "d_model": 16, "num_layers": 1, "vocab_size": 20}')
    with pytest.raises(ModelError, match=r"cannot build it \(Unrecognized configuration class.*T5.*; set model\."):
        check_targets(LoraSettings(targets="q"), ModelConfig(name_or_path=str(tmp_path)))


def test_the_same_list_is_the_same_adapter() -> None:
    written: list[Any] = ["q_proj", ("q_proj",)]
    assert len({str(LoraSettings(targets=targets).fingerprint_fields()) for targets in written}) == 1
    lists: list[Any] = [("v_proj", "q_proj"), ("q_proj", "v_proj", "v_proj")]
    assert [LoraSettings(targets=targets).fingerprint_fields()["targets"] for targets in lists] == [QV, QV]
    assert LoraSettings(targets=REGEX).fingerprint_fields()["targets"] == REGEX


@given(st.one_of(st.text(max_size=12), st.lists(st.text("abq_.,*( ", max_size=6), max_size=3).map(tuple)))
def test_any_text_is_taken_or_refused_by_a_value_error(targets: Any) -> None:
    try:
        settings = LoraSettings(targets=targets)
    except ValueError:
        return
    assert LoraSettings(targets=settings.targets) == settings
    assert settings.target_modules
