"""Tests for BERTScore: by hand on vectors, and against the paper's formula written out on a tiny Bert."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from nextquill_core.errors import ModelError
from nextquill_core.evaluation.bertscore import BertEncoder, TokenStates, bert_f1, load_bert_encoder

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "fine", "book", "film", "about", "rivers", "dull", "!"]
PAIRS = [
    ("a fine book", "a dull film about rivers"),
    ("a fine book about rivers !", "a fine book about rivers !"),
    ("book", "a fine film"),
    ("rivers about about a", "unknown words about a film !"),
]


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    named = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=24,
        initializer_range=0.5,  # so that tokens differ well
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(bert_folder: Path) -> BertEncoder:
    return load_bert_encoder(str(bert_folder))


def written_out(encoder: BertEncoder, prediction: str, reference: str, layer: int) -> float:
    """Zhang et al. 2020, Eq. 3, a pair of tokens at a time, each text through the model alone and without padding."""

    def states(text: str) -> list[np.ndarray]:
        ids = [2, *(WORDS.index(word) if word in WORDS else 1 for word in text.split()), 3]
        with torch.no_grad():
            hidden = encoder.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[layer]
        return list(hidden[0].numpy())

    def cosine(x: np.ndarray, y: np.ndarray) -> float:
        return float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)))

    ours, theirs = states(prediction), states(reference)
    precision = np.mean([max(cosine(x, y) for y in theirs) for x in ours[1:-1]])
    recall = np.mean([max(cosine(x, y) for x in ours) for y in theirs[1:-1]])
    return float(2 * precision * recall / (precision + recall))


@pytest.mark.parametrize("layer", [None, 1, 3])
def test_agrees_with_the_formula_written_out(bert_folder: Path, layer: int | None) -> None:
    encoder = load_bert_encoder(str(bert_folder), layer=layer)
    predictions, references = zip(*PAIRS, strict=True)
    expected = [written_out(encoder, *pair, layer or 3) for pair in PAIRS]
    assert bert_f1(predictions, references, encoder) == pytest.approx(expected, abs=1e-5)
    assert expected[1] == pytest.approx(1)
    assert len({round(value, 3) for value in expected}) == 4


def vectors(texts: Sequence[str]) -> list[TokenStates]:
    """An encoder a person can follow: a is (1, 0), b is (0, 1), c is (0.6, 0.8), and a marker that counts nothing."""
    known = {"a": (1.0, 0.0), "b": (0.0, 1.0), "c": (0.6, 0.8)}
    return [
        TokenStates(
            torch.tensor([*(known[letter] for letter in text), (-1.0, -1.0)]),
            torch.tensor([*(True for _ in text), False]),
        )
        for text in texts
    ]


def test_by_hand() -> None:
    """Prediction a, c; reference a, b. a finds a (1), c finds b (0.8): P = 0.9. a finds a (1), b finds c (0.8):
    R = 0.9. F = 0.9. And a alone: P = 1, R = (1 + 0) / 2, F = 2/3. And c against b: 0.8 either way.
    """
    assert bert_f1(["ac", "a", "c"], ["ab", "ab", "b"], vectors) == pytest.approx([0.9, 2 / 3, 0.8])


def test_scores_do_not_depend_on_the_batch(bert_folder: Path, encoder: BertEncoder) -> None:
    predictions, references = zip(*(PAIRS * 40), strict=True)
    many = bert_f1(predictions, references, encoder)
    alone = BertEncoder(encoder.model, encoder.tokenizer, batch_tokens=1)
    assert many[:4] == pytest.approx(bert_f1(predictions[:4], references[:4], alone), abs=1e-5)
    assert many.reshape(40, 4) == pytest.approx(np.tile(many[:4], (40, 1)), abs=1e-5)


def test_odd_texts(encoder: BertEncoder) -> None:
    """Nothing scores 0; one character, emoji, other scripts and 100,000 words are finite."""
    predictions = ["", " \n", "a", "😀 👍🏽", "ספר נפלא", "a " * 100_000, "a"]
    references = ["a fine book", "a", "a", "a", "مرحبا", "a book", ""]
    found = bert_f1(predictions, references, encoder)
    assert found[[0, 1, 6]].tolist() == [0, 0, 0]
    assert found[2] == pytest.approx(1)
    assert np.isfinite(found).all()
    assert found.max() <= 1 + 1e-6
    assert bert_f1([], [], encoder).shape == (0,)


def test_longer_texts_are_cut_where_the_model_ends(encoder: BertEncoder) -> None:
    assert encoder.max_tokens == 24
    (states,) = encoder(["a " * 100])
    assert states.states.shape == (24, 16)
    assert states.counted.sum() == 22


def test_settings_name_what_decides(bert_folder: Path, encoder: BertEncoder) -> None:
    assert encoder.settings == {"encoder": str(bert_folder), "layer": 3, "max_tokens": 24}


def test_what_cannot_be_loaded(bert_folder: Path, encoder: BertEncoder, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot load it .*safetensors"):
        load_bert_encoder(str(tmp_path / "none"))
    with pytest.raises(ModelError, match="no layer 4 in an encoder of 3"):
        load_bert_encoder(str(bert_folder), layer=4)
    with pytest.raises(ValueError, match="1 predictions for 2 references"):
        bert_f1(["a"], ["a", "b"], encoder)


def test_a_causal_model_is_an_encoder_too(tiny_folder: Path) -> None:
    """The offline base model: no markers around a text, and a token without a future."""
    encoder = load_bert_encoder(str(tiny_folder))
    found = bert_f1(["the plot was slow", "the plot was slow"], ["the plot was slow", "never dull"], encoder)
    assert found[0] == pytest.approx(1)
    assert 0 < found[1] < 1


@pytest.mark.parametrize("blank", [False, True])
def test_the_first_word_is_like_all_others_where_words_begin_with_a_blank(encoder: BertEncoder, blank: bool) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"book": 4, "Ġ": 5, "Ġbook": 6} | {letter: place + 7 for place, letter in enumerate("bok")}
    merges = [("b", "o"), ("bo", "o"), ("boo", "k"), ("Ġ", "book")]
    vocabulary |= {"bo": 10, "boo": 11}
    splitting = Tokenizer(models.BPE(vocabulary, merges))
    splitting.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=blank)
    reader = BertEncoder(encoder.model, PreTrainedTokenizerFast(tokenizer_object=splitting, pad_token="[PAD]"))
    (found,) = reader(["book book"])
    expected = encoder.model(torch.tensor([[6, 6]])).last_hidden_state[0]
    torch.testing.assert_close(found.states, expected)
