"""`template: auto`: what decides between plain prompts and the chat template, and what is said of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nextquill_core.config import ModelConfig
from nextquill_core.errors import ModelError, UserError
from nextquill_core.model.template_choice import choose_template
from tests.gguf_files import write_gguf

CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
BY_VARIABLE = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n{% endfor %}"


def model_folder(folder: Path, **files: Any) -> Path:
    """A folder with these JSON files (or texts), named without their endings; `readme` and `jinja` are texts."""
    folder.mkdir(parents=True)
    names = {"readme": "README.md", "jinja": "chat_template.jinja"}
    for name, value in {"config": {}, **files}.items():
        path = folder / names.get(name, f"{name}.json")
        path.write_text(value if isinstance(value, str) else json.dumps(value))
    return folder


@pytest.mark.parametrize(
    ("setting", "name", "expected"),
    [
        ("auto", "tiny", "plain"),
        ("auto", "Qwen/Qwen2.5-3B", "plain"),
        ("auto", "Qwen/Qwen2.5-3B-Instruct", "chat"),
        ("auto", "google/gemma-2-2b-it", "chat"),
        ("auto", "google/gemma-3-1b-pt", "plain"),
        ("auto", "meta-llama/Llama-3.2-1B", "plain"),
        ("auto", "HuggingFaceH4/zephyr-7b-beta", "chat"),
        ("auto", "Qwen/Qwen3-4B", "chat"),
        ("auto", "Qwen/Qwen3-4B-Base", "plain"),
        ("auto", "mistralai/Mistral-Nemo-Instruct-2407", "chat"),
        ("auto", "mistralai/Mistral-Nemo-Base-2407", "plain"),
        ("auto", "instruct-lab/Qwen2.5-3B", "plain"),  # the owner's name says nothing
        ("auto", "/models/chat/Qwen2.5-3B/", "plain"),  # the family's name says more than a folder above it
        ("auto", "/models/instruct/qwen", "chat"),
        ("auto", "/home/it/somemodel", "plain"),
        ("auto", "~/.cache/hub/models--Qwen--Qwen2.5-3B-Instruct/snapshots/aa8e7253", "chat"),
        ("auto", "~/.cache/hub/models--instruct--Qwen2.5-3B/snapshots/aa8e7253", "plain"),
        ("auto", "/runs/my-model-instruct/checkpoint-500", "chat"),
        ("auto", "/runs/my_model_chat/final/", "chat"),
        ("auto", "Qwen2.5.3B.Instruct", "chat"),
        ("plain", "Qwen/Qwen2.5-3B-Instruct", "plain"),
        ("chat", "tiny", "chat"),
    ],
)
def test_names(setting: str, name: str, expected: str) -> None:
    assert choose_template(setting, name).name == expected


def test_stopping_at_the_end_of_a_turn_tells_an_instruct_model(tmp_path: Path) -> None:
    instruct = model_folder(
        tmp_path / "a", jinja=CHATML, tokenizer_config={"eos_token": "<|im_end|>"}, generation_config={}
    )
    choice = choose_template("auto", str(instruct))
    assert (choice.name, choice.reason) == ("chat", "it stops at <|im_end|>, with which its chat template ends a turn")
    assert str(choice).startswith("template: chat, because it stops at")


def test_a_base_model_with_a_chat_template_it_never_learned_stays_plain(tmp_path: Path) -> None:
    base = model_folder(tmp_path / "b", jinja=CHATML, tokenizer_config={"eos_token": {"content": "<|endoftext|>"}})
    assert choose_template("auto", str(base)).name == "plain"
    generic = model_folder(tmp_path / "c", jinja=BY_VARIABLE, tokenizer_config={"eos_token": "</s>"})
    assert choose_template("auto", str(generic)).name == "plain"


def test_generation_stops_are_looked_up_by_their_ids(tmp_path: Path) -> None:
    gemma = "{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content }}<end_of_turn>\n{% endfor %}"
    added = {"1": {"content": "<eos>"}, "106": {"content": "<end_of_turn>"}}
    settings = {"eos_token": "<eos>", "added_tokens_decoder": added, "chat_template": gemma}
    folder = model_folder(tmp_path / "g", tokenizer_config=settings, generation_config={"eos_token_id": [1, 106]})
    assert choose_template("auto", str(folder)).name == "chat"
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 1}))
    assert choose_template("auto", str(folder)).name == "plain"
    del settings["added_tokens_decoder"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 106]}))
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": [{"id": 106, "content": "<end_of_turn>"}]}))
    assert choose_template("auto", str(folder)).name == "chat"


@pytest.mark.parametrize(
    "files",
    [
        {"config": {"_name_or_path": "Qwen/Qwen2.5-3B-Instruct"}},
        {"adapter_config": {"base_model_name_or_path": "/hub/models--acme--tiny-instruct/snapshots/0a"}},
        {"readme": "---\nlicense: mit\nbase_model: google/gemma-2-2b-it\n---\n# X\n"},
        {"readme": "---\nbase_model:\n- google/gemma-2-2b-it\n---\n"},
        {"readme": "# zephyr-7b-beta\nText\n"},
    ],
)
def test_names_in_the_models_own_files(tmp_path: Path, files: dict[str, Any]) -> None:
    folder = model_folder(tmp_path / "plainly", **files)
    assert choose_template("auto", str(folder)).name == "chat"


def test_the_same_files_under_two_paths_decide_the_same(tmp_path: Path) -> None:
    files = {"jinja": CHATML, "tokenizer_config": {"eos_token": "<|im_end|>"}}
    one, two = model_folder(tmp_path / "one", **files), model_folder(tmp_path / "shop" / "checkpoint-5", **files)
    assert choose_template("auto", str(one)) == choose_template("auto", str(two))


def test_a_derived_model_is_not_plain_for_its_base_models_name(tmp_path: Path) -> None:
    files = {"jinja": CHATML, "tokenizer_config": {"eos_token": "<|im_end|>"}}
    folder = model_folder(tmp_path / "x", config={"_name_or_path": "Qwen/Qwen3-4B-Base"}, **files)
    assert choose_template("auto", str(folder)).name == "chat"


def test_broken_files_are_left_to_the_loading_of_the_model(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "x", tokenizer_config="{", generation_config=[1])
    assert choose_template("auto", str(folder)).name == "plain"


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config": {"added_tokens_decoder": {"1": {}}}, "generation_config": {"eos_token_id": 1}},
        {"tokenizer_config": {"added_tokens_decoder": [1]}},
        {"tokenizer_config": {"chat_template": [1]}},
        {"tokenizer_config": {"chat_template": "{{ eos_token }}", "eos_token": 5}},
        {"tokenizer": {"added_tokens": None}},
    ],
)
def test_files_of_another_form_are_one_line(tmp_path: Path, files: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"the JSON files of .*/x: .* unexpected form"):
        choose_template("auto", str(model_folder(tmp_path / "x", **files)))


@pytest.mark.parametrize(
    ("name", "metadata", "expected", "reason"),
    [
        ("Some-1B-Instruct.Q4_1", {}, "chat", "the model is called Some-1B-Instruct.Q4_1"),
        ("Some-1B-base", {}, "plain", "the model is called Some-1B-base"),
        ("model", {}, "chat", "it stops at <|im_end|>, with which its chat template ends a turn"),
        ("x", {"tokenizer.chat_template": "", "general.name": "Some Chat"}, "chat", "its metadata (general.name) nam"),
        ("x", {"tokenizer.chat_template": "", "general.finetune": "Instruct"}, "chat", "its metadata (general.finet"),
        ("x", {"tokenizer.chat_template": ""}, "plain", "neither its name nor its files say"),
    ],
)
def test_a_gguf_file_is_asked_in_place_of_a_folders_files(
    name: str, metadata: dict[str, str], expected: str, reason: str, tmp_path: Path
) -> None:
    write_gguf(tmp_path / f"{name}.gguf", metadata=metadata)
    choice = choose_template("auto", str(tmp_path / f"{name}.gguf"), strict=True)
    assert choice.name == expected
    assert choice.reason.startswith(reason)


def test_smollm2_is_known_to_be_an_instruct_model_with_and_without_its_package(monkeypatch: Any) -> None:
    from nextquill_core.model import packaged

    monkeypatch.setattr(packaged.PackagedModel, "path", None)
    base = packaged.located_model(ModelConfig(name_or_path="smollm2"))
    assert base.name_or_path == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert choose_template("auto", base.name_or_path, strict=True).name == "chat"
    monkeypatch.undo()
    base = packaged.located_model(ModelConfig(name_or_path="smollm2"))
    assert choose_template("auto", base.name_or_path, strict=True).name == "chat"


def test_a_hub_model_is_read_from_the_local_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--acme--thing"
    snapshot = model_folder(
        repository / "snapshots" / "0abc", jinja=CHATML, tokenizer_config={"eos_token": "<|im_end|>"}
    )
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(snapshot.name)
    assert choose_template("auto", "acme/thing", strict=True).name == "chat"


def test_an_unknown_hub_model_is_not_guessed_when_it_is_to_be_used() -> None:
    assert choose_template("auto", "acme/unknown-of").name == "plain"
    with pytest.raises(ModelError, match=r"set prompt\.template to plain or chat"):
        choose_template("auto", "acme/unknown-of", strict=True)
    assert choose_template("plain", "acme/unknown-of", strict=True).name == "plain"
    assert choose_template("auto", "acme/gpt2-medium", strict=True).name == "plain"
