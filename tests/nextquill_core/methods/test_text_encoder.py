"""Vectors: the mean of hidden states of one text alone, whatever the batch, for encoders and for the base model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from nextquill_core.config import ModelConfig
from nextquill_core.errors import ModelError
from nextquill_core.methods import text_encoder
from nextquill_core.methods.pooling import Pooling
from nextquill_core.methods.retrieval import dense_scores, query_text, review_text
from nextquill_core.methods.text_encoder import TextEncoder, batches_by_length, load_encoder
from nextquill_core.schemas import Example
from tests.conftest import WORDS

BASE = ModelConfig(name_or_path="nowhere", dtype="float32")
POSITIONS = 16
TEXTS = [
    "the plot was slow",
    "warm",
    "i loved this quiet book about rivers",
    "",
    "\U0001f600 \u05e9\u05dc\u05d5\u05dd never dull",
    "bright always but the book",
]


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT of two layers whose words are those of the tests."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=POSITIONS,
    )  # fmt: skip
    BertModel(config).eval().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bert(bert_folder: Path) -> TextEncoder:
    return load_encoder(str(bert_folder), base=BASE)


def alone(model: Any, ids: list[int]) -> Tensor:
    """One text, no padding, no mask: the sum of its states, one by one, through their number."""
    with torch.no_grad():
        states = model(torch.tensor([ids])).last_hidden_state[0]
    total = torch.zeros(states.shape[1])
    for state in states:
        total = total + state
    return total / len(ids)


@pytest.mark.parametrize("budget", [1, 12, 10_000])
def test_a_vector_is_the_mean_of_its_own_texts_states(bert: TextEncoder, budget: int) -> None:
    encoder = TextEncoder(bert.model, bert.tokenizer, batch_tokens=budget)
    heard: list[int] = []
    vectors = encoder(TEXTS, heard.append)
    assert vectors.shape == (len(TEXTS), 16)
    assert vectors.dtype == torch.float32
    for text, vector in zip(TEXTS, vectors, strict=True):
        ids = [2, *(WORDS.index(word) + 4 if word in WORDS else 1 for word in text.split()), 3]
        torch.testing.assert_close(vector, alone(bert.model, ids), rtol=1e-4, atol=1e-5)
    assert sum(heard) == len(TEXTS)
    assert len(heard) == {1: 6, 12: 4, 10_000: 1}[budget]
    assert encoder.truncated == 0


@pytest.mark.parametrize("mode", ["cls", "last"])
def test_the_first_tokens_state_and_vectors_of_length_one(bert: TextEncoder, mode: Literal["cls", "last"]) -> None:
    texts = TEXTS[:3]
    encoder = TextEncoder(bert.model, bert.tokenizer, pooling=Pooling(mode, normalized=True, max_tokens=4))
    for text, vector in zip(texts, encoder(texts), strict=True):
        ids = [2, *(WORDS.index(word) + 4 for word in text.split()[:2]), 3]
        with torch.no_grad():
            state = bert.model(torch.tensor([ids])).last_hidden_state[0, {"cls": 0, "last": -1}[mode]]
        torch.testing.assert_close(vector, state / state.norm(), rtol=1e-4, atol=1e-5)


def test_longer_texts_are_cut_and_counted(bert: TextEncoder) -> None:
    encoder = TextEncoder(bert.model, bert.tokenizer)
    exact, longer = " ".join(WORDS[: POSITIONS - 2]), " ".join(WORDS[: POSITIONS - 1])
    vectors = encoder([longer, exact, "warm"])
    torch.testing.assert_close(vectors[0], vectors[1])
    assert encoder.truncated == 1
    encoder([longer])
    assert encoder.truncated == 2
    shorter = TextEncoder(bert.model, bert.tokenizer, max_tokens=3)
    torch.testing.assert_close(shorter([longer])[0], shorter([WORDS[0]])[0])


@pytest.mark.parametrize(("asked", "longest"), [(9, 9), (4, 4), (100, POSITIONS)])
def test_a_longer_limit_of_the_encoder_counts_where_it_may(
    asked: int, longest: int, bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As bge-m3, which reads 8,192 tokens; here its files ask for `asked`, and 5 stands for our 512."""
    monkeypatch.setattr(text_encoder, "LONGEST", 5)
    folder = shutil.copytree(bert_folder, tmp_path / "encoder")
    assert load_encoder(str(folder), base=BASE, own_limit=True).max_tokens == 5, "its files ask for nothing"
    (folder / "modules.json").write_text("[]")
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": asked}))
    assert load_encoder(str(folder), base=BASE).max_tokens == min(5, asked)
    encoder = load_encoder(str(folder), base=BASE, own_limit=True)
    assert encoder.max_tokens == longest
    ids = [2, *range(4, 2 + longest), 3]
    torch.testing.assert_close(encoder([" ".join(WORDS)])[0], alone(encoder.model, ids), rtol=1e-4, atol=1e-5)


def test_no_texts_no_rows(bert: TextEncoder) -> None:
    assert bert([]).shape == (0, 16)


def test_the_base_models_decoder_encodes_offline(tiny_folder: Path, tiny_model: Any, tiny_tokenizer: Any) -> None:
    encoder = load_encoder("base", base=ModelConfig(name_or_path=str(tiny_folder), dtype="float32"), batch_tokens=64)
    texts = [*TEXTS[:3], *TEXTS[4:], ""]
    vectors = encoder(texts)
    for text, vector in zip(texts[:-1], vectors, strict=False):
        ids = torch.tensor([tiny_tokenizer(text)["input_ids"]])
        with torch.no_grad():
            states = tiny_model(ids, output_hidden_states=True).hidden_states[-1][0]
        torch.testing.assert_close(vector, states.mean(0), rtol=1e-4, atol=1e-5)
    assert not tiny_tokenizer("")["input_ids"]
    assert (vectors[-1] == 0).all()


def test_retrieval_through_a_real_encoder(bert: TextEncoder, examples: list[Example]) -> None:
    encoder = TextEncoder(bert.model, bert.tokenizer, batch_tokens=40)
    for example, scores in zip(examples, dense_scores(examples, encoder), strict=True):
        query = encoder([query_text(example)])[0]
        expected = [float((encoder([review_text(past)])[0] * query).sum()) for past in example.history]
        assert scores == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_an_encoder_of_pickles_is_refused_in_one_line(bert_folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((bert_folder / name).read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"anything")
    with pytest.raises(ModelError, match=r"no safetensors.*save_pretrained") as raised:
        load_encoder(str(tmp_path), base=BASE)
    assert "\n" not in str(raised.value)


def test_an_encoder_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot load it") as raised:
        load_encoder(str(tmp_path / "absent"), base=BASE)
    assert "\n" not in str(raised.value)


def test_batches_are_longest_first_and_within_budget() -> None:
    assert list(batches_by_length([3, 9, 1, 9, 4], 18)) == [[1, 3], [4, 0, 2]]
    assert list(batches_by_length([0, 5], 3)) == [[1], [0]]
