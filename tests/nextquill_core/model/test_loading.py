"""Every door that loads weights refuses weights that are not exactly those of the model or the adapter."""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast

from nextquill_core.causal.worker import with_adapters
from nextquill_core.config import ModelConfig
from nextquill_core.errors import ModelError
from nextquill_core.evaluation.bertscore import load_bert_encoder
from nextquill_core.methods.personal_adapters import PersonalTraining, merge_adapter, with_personal_adapters
from nextquill_core.methods.text_encoder import load_encoder
from nextquill_core.model.loading import (
    ADAPTER_FILE,
    describe,
    load_adapter,
    load_encoder_model,
    load_model,
    load_tokenizer,
    quiet_libraries,
)
from nextquill_core.pipeline.methods import adapted
from nextquill_core.training import checkpoints
from tests.models import lora_model, small_model

MODEL = "model.safetensors"
Tensors = dict[str, torch.Tensor]
Change = Callable[[Tensors], object]
IDS = torch.arange(3, 20)[None]


def changed(source: Path, folder: Path, change: Change, file: str = MODEL) -> Path:
    # A copy of a model's or adapter's folder whose tensors are changed.
    shutil.copytree(source, folder)
    tensors = load_file(source / file)
    change(tensors)
    save_file(tensors, folder / file, metadata={"format": "pt"})
    return folder


def lacks(part: str) -> Change:
    def change(tensors: Tensors) -> None:
        for name in [name for name in tensors if part in name]:
            del tensors[name]

    return change


def first_is(value: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    def change(tensors: Tensors) -> None:
        name = sorted(tensors)[-1]
        tensors[name] = value(tensors[name])

    return change


def not_a_number(tensor: torch.Tensor) -> torch.Tensor:
    tensor.view(-1)[-1] = float("nan")
    return tensor


def infinite(tensor: torch.Tensor) -> torch.Tensor:
    tensor.view(-1)[0] = -float("inf")
    return tensor


def renamed(tensors: Tensors) -> None:
    for name in sorted(tensors)[::2]:
        tensors[name.replace(".weight", ".mass")] = tensors.pop(name)


COMMON: dict[str, tuple[Change, str]] = {
    "renamed": (renamed, r"lacks \d+ tensors? \(.*has \d+ tensors? \(.*mass.* that the model does not have"),
    "empty": (
        first_is(lambda tensor: tensor[:0].clone()),
        r"has 1 tensor \(.* \[0.*\] instead of \[.*of another shape",
    ),
    "another shape": (first_is(lambda tensor: tensor[:1].clone()), r"has 1 tensor \(.* \[1.*\] instead of \["),
    "not a number": (first_is(not_a_number), r"has 1 tensor \(.*not finite"),
    "infinite": (first_is(infinite), r"has 1 tensor \(.*not finite"),
}
BASE: dict[str, tuple[Change, str]] = COMMON | {
    "a layer fewer": (
        lacks(".layers.1."),
        r"lacks 11 tensors \(model\.layers\.1\.input_layernorm\.weight, .* and 8 more\)",
    ),
    "no embedding, which the head shares": (lambda t: t.pop("model.embed_tokens.weight"), r"lacks \d tensors?"),
    "a layer more": (
        lambda t: t.__setitem__("model.layers.2.mlp.up_proj.weight", torch.ones(2, 2)),
        r"has 1 tensor \(model\.layers\.2\.mlp\.up_proj\.weight\) that the model does not have",
    ),
    "nothing": (lambda tensors: tensors.clear(), r"lacks 2\d tensors"),
}


@pytest.mark.parametrize("kind", BASE)
def test_a_base_model_with_other_weights_is_refused(
    tiny_folder: Path, tmp_path: Path, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    change, message = BASE[kind]
    folder = changed(tiny_folder, tmp_path / "model", change)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(ModelConfig(name_or_path=str(folder), dtype="float32"), torch.device("cpu"))
    assert str(folder) in str(caught.value)
    assert "copy or download the model again" in str(caught.value)
    assert "LOAD REPORT" not in "".join(capfd.readouterr())


def test_files_that_are_no_weights_are_refused_in_one_line(tiny_folder: Path, tmp_path: Path) -> None:
    for number, write in enumerate(
        (
            lambda folder: (folder / MODEL).write_bytes((tiny_folder / MODEL).read_bytes()[:5000]),
            lambda folder: (folder / MODEL).write_bytes(b""),
            lambda folder: (folder / MODEL).unlink(),
            lambda folder: (folder / "config.json").write_text("[]"),
            lambda folder: (folder / "config.json").write_text('{"model_type": "qwen2", "hidden_size": "x"}'),
        )
    ):
        folder = tmp_path / str(number)
        shutil.copytree(tiny_folder, folder)
        write(folder)
        with pytest.raises(ModelError, match="cannot load it"):
            load_model(ModelConfig(name_or_path=str(folder), dtype="float32"), torch.device("cpu"))


def test_loading_prints_no_warning_about_shards(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    small_model("llama").save_pretrained(tmp_path)
    logger = logging.getLogger("transformers")  # whose records do not reach the root logger
    logger.addHandler(caplog.handler)
    try:
        load_model(ModelConfig(name_or_path=str(tmp_path), dtype="float32"), torch.device("cpu"))
    finally:
        logger.removeHandler(caplog.handler)
    assert "sharded" not in caplog.text


@pytest.mark.parametrize("family", ["qwen2", "llama", "gpt2", "gemma2"])
def test_whole_models_of_all_families_are_accepted(tmp_path: Path, family: str) -> None:
    model = small_model(family)
    model.save_pretrained(tmp_path)
    loaded = load_model(ModelConfig(name_or_path=str(tmp_path), dtype="float32"), torch.device("cpu"))
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)


def test_a_missing_tokenizer_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder, tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"no tokenizer with a vocabulary; add the tokenizer's files"):
        load_tokenizer(ModelConfig(name_or_path=str(tmp_path / "model"), dtype="float32"))
    small_model("llama").config.save_pretrained(tmp_path / "other")
    with pytest.raises(ModelError, match=r"no tokenizer with a vocabulary; add the tokenizer's files"):
        load_tokenizer(ModelConfig(name_or_path=str(tmp_path / "other"), dtype="float32"))
    assert len(load_tokenizer(ModelConfig(name_or_path=str(tiny_folder), dtype="float32"))) > 100


@pytest.mark.parametrize("family", ["qwen2", "llama", "gemma2", "gpt2"])
def test_a_tokenizer_splits_as_its_file_whatever_the_type_of_the_model(family: str, tmp_path: Path) -> None:
    splitting = Tokenizer(WordLevel({"?": 0, " 45": 1, "Rating:": 2, " ": 3, "4": 4, "5": 5, "é": 6}, unk_token="?"))
    splitting.pre_tokenizer = Split(Regex(r" ?\d+"), "isolated")
    splitting.normalizer = Lowercase() if family == "gpt2" else None
    PreTrainedTokenizerFast(tokenizer_object=splitting, unk_token="?").save_pretrained(tmp_path)
    small_model(family).config.save_pretrained(tmp_path)
    loaded = load_tokenizer(ModelConfig(name_or_path=str(tmp_path)))
    for text in ("Rating: 45", "4", "e\u0301"):
        assert loaded(text, add_special_tokens=False).input_ids == splitting.encode(text).ids


def bert(folder: Path, tiny_folder: Path, *, kind: str = "AutoModelForMaskedLM") -> Path:
    import transformers

    config = transformers.BertConfig(
        vocab_size=400, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    torch.manual_seed(0)
    getattr(transformers, kind).from_config(config).save_pretrained(folder)
    for file in tiny_folder.glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


def test_an_encoder_may_have_a_head_too_many_and_no_pooler_but_all_of_its_layers(
    tiny_folder: Path, tmp_path: Path
) -> None:
    from transformers import AutoModel

    whole = bert(tmp_path / "masked", tiny_folder)  # with a head, without a pooler
    pooled = bert(tmp_path / "pooled", tiny_folder, kind="AutoModel")
    for folder in (whole, pooled):
        ours = load_encoder_model(ModelConfig(name_or_path=str(folder), dtype="float32")).cpu()
        theirs = AutoModel.from_pretrained(folder).eval()
        assert torch.equal(ours(IDS).last_hidden_state, theirs(IDS).last_hidden_state)
    broken = changed(whole, tmp_path / "broken", lacks(".layer.1."))
    for load in (
        lambda: load_encoder_model(ModelConfig(name_or_path=str(broken), dtype="float32")),
        lambda: load_encoder(str(broken), base=ModelConfig(name_or_path=str(tiny_folder), dtype="float32")),
        lambda: load_bert_encoder(str(broken)),
    ):
        with pytest.raises(ModelError, match=r"lacks 16 tensors \(.*layer\.1\..* and 13 more\)"):
            load()
    more = changed(pooled, tmp_path / "more", lambda t: t.__setitem__("encoder.layer.2.x.weight", torch.ones(1)))
    with pytest.raises(ModelError, match=r"has 1 tensor \(encoder\.layer\.2\.x\.weight\) that the model does not have"):
        load_encoder_model(ModelConfig(name_or_path=str(more), dtype="float32"))


def half(tensors: Tensors) -> None:
    for name in sorted(tensors)[1::2]:
        del tensors[name]


ADAPTER: dict[str, tuple[Change, str]] = COMMON | {
    "half": (half, r"lacks 14 tensors \(base_model\.model\..* and 11 more\)"),
    "none": (lambda tensors: tensors.clear(), r"lacks 28 tensors"),
    "one more": (lambda t: t.__setitem__("base_model.extra", torch.ones(1)), r"has 1 tensor \(base_model\.extra\)"),
}


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    lora_model(small_model("qwen2"), r=2).save_pretrained(folder)
    return folder


def evaluating(base: Any, folder: Path) -> None:
    with adapted(base, folder):
        pass


DOORS: dict[str, Callable[[Any, Path], Any]] = {
    "load_adapter": load_adapter,
    "evaluating": evaluating,
    "merging": merge_adapter,
    "scoring": lambda base, folder: with_adapters(base, [folder]),
}


@pytest.mark.parametrize("kind", ADAPTER)
def test_an_adapter_with_other_tensors_is_refused_and_leaves_the_base_as_it_was(
    adapter: Path, tmp_path: Path, kind: str
) -> None:
    change, message = ADAPTER[kind]
    folder = changed(adapter, tmp_path / "adapter", change, ADAPTER_FILE)
    base = small_model("qwen2")
    before = base(IDS).logits
    for load in DOORS.values():
        with pytest.raises(ModelError, match=f"damaged or for another base model: it {message}"):
            load(base, folder)
        assert torch.equal(base(IDS).logits, before)
        assert not [name for name, _ in base.named_modules() if "lora" in name]


def test_an_adapter_is_refused_without_its_files_and_on_another_base(adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has \d+ tensors \(.* of another shape"):
        load_adapter(small_model("qwen2", hidden_size=64), adapter)
    with pytest.raises(ModelError, match=r"has 14 tensors \(.*layers\.1\..* that the model does not have"):
        load_adapter(small_model("qwen2", num_hidden_layers=1), adapter)
    for number, (name, content) in enumerate(
        (("adapter_config.json", "[]"), ("adapter_config.json", "{}"), (ADAPTER_FILE, "x"))
    ):
        folder = tmp_path / str(number)
        shutil.copytree(adapter, folder)
        (folder / name).write_text(content)
        with pytest.raises(ModelError, match=r"cannot load the adapter|cannot be read as safetensors"):
            load_adapter(small_model("qwen2"), folder)
        (folder / name).unlink()
        with pytest.raises(ModelError, match=f"there is no {name}"):
            load_adapter(small_model("qwen2"), folder)


def test_an_adapter_is_loaded_without_warnings_of_other_libraries(adapter: Path) -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        quiet_libraries()
        load_adapter(small_model("qwen2"), adapter)
    assert [str(one.message) for one in seen] == []


def test_a_whole_adapter_answers_as_peft_loads_it(adapter: Path) -> None:
    from peft import PeftModel

    expected = PeftModel.from_pretrained(small_model("qwen2"), str(adapter))(IDS).logits
    base = small_model("qwen2")
    plain = base(IDS).logits
    assert (expected - plain).abs().max() > 1e-3
    with adapted(base, adapter) as model:
        assert torch.equal(model(IDS).logits, expected)
        assert not any(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(base(IDS).logits, plain)
    several = with_adapters(base, [adapter, adapter])
    several.set_adapter("fold-1")
    assert torch.equal(several(IDS).logits, expected)


def test_a_personal_adapter_with_other_tensors_is_refused() -> None:
    base = small_model("qwen2")
    spec = PersonalTraining(r=2)
    layers = {"q_proj": 32, "v_proj": 16}
    whole = {
        f"base_model.model.model.layers.{layer}.self_attn.{name}.lora_{part}.weight": torch.ones(
            (2, 32) if part == "A" else (outputs, 2)
        )
        for layer in (0, 1)
        for name, outputs in layers.items()
        for part in "AB"
    }
    with with_personal_adapters(base, {"ann": whole}, spec):
        pass
    for change, message in (
        (half, "lacks 4 tensors"),
        (first_is(infinite), "not finite"),
        (renamed, "lacks 4 tensors"),
    ):
        tensors = {name: tensor.clone() for name, tensor in whole.items()}
        change(tensors)
        with (
            pytest.raises(ModelError, match=f"the adapter of ann is damaged .*{message}.*train them again"),
            with_personal_adapters(base, {"ann": tensors}, spec),
        ):
            pass


def test_a_checkpoint_of_training_that_lacks_tensors_is_refused(tmp_path: Path) -> None:
    class Engine:
        module = torch.nn.Linear(3, 2)

    names = [f"{key}/{name}" for key in (checkpoints.WEIGHT, *checkpoints.MOMENTS) for name in ("weight", "bias")]
    shapes = {"weight": (2, 3), "bias": (2,)}
    tensors = {name: torch.zeros(shapes[name.partition("/")[2]]) for name in names}
    del tensors["exp_avg/bias"]
    checkpoints.write_state(tmp_path, tensors, {"adam_steps": 1, "scaler": {}})
    with pytest.raises(
        ModelError, match=r"the checkpoint is damaged: it lacks 1 tensor \(exp_avg/bias\); run the stage"
    ):
        checkpoints.restore_state(Engine(), tmp_path)


def test_a_message_names_three_tensors_and_counts_the_rest() -> None:
    assert describe() == ""
    assert describe({"c", "a"}, shapes={"b": ((1, 2), (2, 2))}) == (
        "lacks 2 tensors (a, c), has 1 tensor (b [1, 2] instead of [2, 2]) of another shape"
    )
    assert describe(unexpected="edcba") == "has 5 tensors (a, b, c and 2 more) that the model does not have"
