"""BERTScore (Zhang et al. 2020): how well the tokens of two texts match by their contextual embeddings.

Each token of the prediction is matched with the most similar token of the reference (precision), each token of the
reference with the most similar one of the prediction (recall). Similarity is the cosine of hidden states, F1 the
harmonic mean. There are no idf weights and no rescaling against a baseline. The markers that a tokenizer puts around a
text can be matched but do not count themselves, as in the authors' code.

    T tokens of a text, D hidden size
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from torch.nn import functional as F

from nextquill_core.config import ModelConfig
from nextquill_core.errors import ModelError
from nextquill_core.evaluation.significance import Floats
from nextquill_core.methods.text_encoder import batches_by_length, padded
from nextquill_core.model.loading import load_encoder_model, load_tokenizer
from nextquill_core.model.packaged import encoder_title, hub_remedy, located_encoder
from nextquill_core.tokens import UserTextTokenizer

PAIRS_AT_ONCE = 64  # pairs whose hidden states are in memory together
LONGEST = 512
REMEDY = "name a folder or a hub model whose weights are safetensors"


@dataclass(frozen=True, slots=True)
class TokenStates:
    """The hidden states of a text's tokens.

    Attributes:
        states: Final hidden states, fp32 on the CPU, shape (T, D).
        counted: Which tokens belong to the text and are not the tokenizer's markers, bool, shape (T,).
    """

    states: Tensor
    counted: Tensor


class TokenEncoder(Protocol):
    """Turns texts into the hidden states of their tokens."""

    def __call__(self, texts: Sequence[str]) -> list[TokenStates]:
        """Return the states of each text, in order."""


def bert_f1(predictions: Sequence[str], references: Sequence[str], encoder: TokenEncoder) -> Floats:
    """Return BERTScore F1 of each prediction against its reference, shape (n,), at most 1.

    An empty prediction or reference scores 0. Texts are cut at the encoder's maximum length.

    Args:
        predictions: Generated texts.
        references: The texts that the users wrote, in the same order.
        encoder: Gives the hidden states.

    Raises:
        ValueError: Predictions and references differ in number.
    """
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions for {len(references)} references")
    scores = np.zeros(len(predictions))
    readable = [row for row, pair in enumerate(zip(predictions, references, strict=True)) if all(map(str.strip, pair))]
    readable.sort(key=lambda row: len(predictions[row]) + len(references[row]), reverse=True)
    for start in range(0, len(readable), PAIRS_AT_ONCE):
        rows = readable[start : start + PAIRS_AT_ONCE]
        states = encoder([predictions[row] for row in rows] + [references[row] for row in rows])
        for row, prediction, reference in zip(rows, states[: len(rows)], states[len(rows) :], strict=True):
            scores[row] = matched_f1(prediction, reference)
    return scores


def matched_f1(prediction: TokenStates, reference: TokenStates) -> float:
    """Return F1 of greedy matching (Zhang et al. 2020, section 3); 0 where either text has no counted token."""
    if not prediction.counted.any() or not reference.counted.any():
        return 0.0
    similarity_PR = F.normalize(prediction.states, dim=-1) @ F.normalize(reference.states, dim=-1).T
    precision = similarity_PR.amax(dim=1)[prediction.counted].double().mean().item()
    recall = similarity_PR.amax(dim=0)[reference.counted].double().mean().item()
    return 2 * precision * recall / (precision + recall) if precision > 0 and recall > 0 else 0.0


class BertEncoder:
    """A Hugging Face encoder as a `TokenEncoder`.

    Args:
        model: Gives hidden states for ids and a mask; a causal model works too.
        tokenizer: Its fast tokenizer.
        layer: Layer whose output is used, 1 for the first; None for the last.
        max_tokens: Maximum number of tokens in a text, markers included; the rest is cut off.
        batch_tokens: Number of token positions in a batch, padding included.
        name: Name of the encoder for readers; by default where it was loaded from.

    Raises:
        ModelError: The model has fewer layers.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        layer: int | None = None,
        max_tokens: int = LONGEST,
        batch_tokens: int = 4096,
        name: str | None = None,
    ) -> None:
        layers = model.config.num_hidden_layers
        if layer is not None and not 1 <= layer <= layers:
            raise ModelError(
                f"no layer {layer} in an encoder of {layers}", str(model.config.name_or_path), f"set 1 to {layers}"
            )
        self.model = model
        self.tokenizer = tokenizer
        self.name = name or str(model.config.name_or_path)
        self.layer = layer
        self.max_tokens = max_tokens
        self.batch_tokens = batch_tokens
        self.opening = _opening(tokenizer)
        self._text = UserTextTokenizer(tokenizer)

    @property
    def settings(self) -> Mapping[str, Any]:
        """The settings that decide the scores, as JSON values."""
        layer = self.model.config.num_hidden_layers if self.layer is None else self.layer
        return {"encoder": self.name, "layer": layer, "max_tokens": self.max_tokens}

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> list[TokenStates]:
        """Return the states of each text, in order."""
        encoded = self._text.encode_marked([self.opening + text.strip() for text in texts], self.max_tokens)
        ids = [text.ids for text in encoded]
        found: dict[int, TokenStates] = {}
        for batch in batches_by_length([len(text) for text in ids], self.batch_tokens):
            for row, states in zip(batch, self._states([ids[row] for row in batch]), strict=True):
                found[row] = TokenStates(states, ~torch.tensor(encoded[row].markers, dtype=torch.bool))
        return [found[row] for row in range(len(texts))]

    def _states(self, ids: Sequence[Sequence[int]]) -> list[Tensor]:
        """Return the hidden states of each text; the mask hides the padding on its right."""
        ids_BT, mask_BT = padded(ids, self.tokenizer, self.model)
        inputs = {"input_ids": ids_BT, "attention_mask": mask_BT.long()}
        if self.layer is None:
            states_BTD = self.model(**inputs).last_hidden_state
        else:
            states_BTD = self.model(**inputs, output_hidden_states=True).hidden_states[self.layer]
        states_BTD = states_BTD.float().cpu()
        return [states[: len(text)] for states, text in zip(states_BTD, ids, strict=True)]


def load_bert_encoder(name_or_path: str, revision: str = "main", *, layer: int | None = None) -> BertEncoder:
    """Load an encoder from a folder or the hub, from safetensors only, on the accelerator if there is one.

    Args:
        name_or_path: A folder, hub name or packaged encoder, such as FacebookAI/roberta-large, whose 17th layer the
            authors of BERTScore recommend.
        revision: Branch, tag or commit on the hub.
        layer: As for `BertEncoder`.

    Raises:
        ModelError: The encoder cannot be found or loaded, has no safetensors, or has fewer layers.
    """
    located = located_encoder(name_or_path)
    folder = Path(located).expanduser()
    located = str(folder) if folder.is_dir() else located
    spec = ModelConfig(name_or_path=located, revision=revision)
    remedy = hub_remedy(name_or_path, REMEDY)
    model = load_encoder_model(spec, remedy=remedy)
    tokenizer = load_tokenizer(spec, remedy=remedy)
    longest = min(LONGEST, int(tokenizer.model_max_length), _positions(model))
    name = encoder_title(name_or_path)
    return BertEncoder(model, tokenizer, layer=layer, max_tokens=longest, name=name)


def _opening(tokenizer: Any) -> str:
    """Return a blank where words begin with one (RoBERTa, GPT-2), so that the first word is like all others."""
    splits = getattr(getattr(tokenizer, "backend_tokenizer", None), "pre_tokenizer", None)
    return " " if isinstance(splits, ByteLevel) and not splits.add_prefix_space else ""


def _positions(model: Any) -> int:
    """Return the maximum number of tokens in a text; RoBERTa's first positions are for padding."""
    positions = getattr(model.config, "max_position_embeddings", None) or LONGEST
    skipped = (model.config.pad_token_id or 0) + 1 if "roberta" in model.config.model_type else 0
    return int(positions) - skipped
