"""Texts as vectors: the mean of an encoder's last hidden states, as Contriever has it (arXiv 2112.09118).

The encoder is any Hugging Face model that comes as safetensors, or the base language model's own decoder, which is
there already and needs no network.

    N texts, B texts of a batch, T token positions, D hidden size
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nextquill_core.errors import ModelError
from nextquill_core.generation.engines import unheard
from nextquill_core.methods.registry import BASE_ENCODER
from nextquill_core.model.control_tokens import UserTextTokenizer
from nextquill_core.model.forward import decoder_of
from nextquill_core.model.identity import ModelSpec
from nextquill_core.model.loading import load_encoder_model, load_model, load_tokenizer

BATCH_TOKENS = 8192
LONGEST = 512
REMEDY = (
    "name an encoder that comes as safetensors, such as sentence-transformers/all-MiniLM-L6-v2, or `base`; convert one "
    "that has only a pickle (facebook/contriever) once, model and tokenizer each by from_pretrained(NAME)."
    "save_pretrained(FOLDER), and name the folder"
)


class TextEncoder:
    """Mean-pooled last hidden states.

    Args:
        model: Gives `last_hidden_state` for ids and a mask: an encoder, an encoder-decoder (its encoder is taken), or
            the decoder of a causal language model.
        tokenizer: Its tokenizer.
        max_tokens: Longest text, the tokenizer's own markers included; less where the model has fewer positions.
        batch_tokens: Token positions of a batch, padding included.

    Attributes:
        truncated: How many texts have been longer than that, so far; their ends were not read.
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, max_tokens: int = LONGEST, batch_tokens: int = BATCH_TOKENS
    ) -> None:
        self.model = model.get_encoder() if model.config.is_encoder_decoder else model
        self.tokenizer = tokenizer
        positions = getattr(model.config, "max_position_embeddings", None) or max_tokens
        self.max_tokens = min(max_tokens, positions, tokenizer.model_max_length)
        self.batch_tokens = batch_tokens
        self.truncated = 0
        self._text = UserTextTokenizer(tokenizer)

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str], advance: Callable[[int], None] = unheard) -> Tensor:
        """The vector of each text: Σ_t h_t / T over its tokens, markers included; 0 for a text without any token.

        Args:
            texts: In any order; they are encoded longest first, those of like length together.
            advance: Told of every batch: how many texts it had.

        Returns:
            (N, D), fp32, on the CPU.
        """
        ids = self._ids(texts)
        rows: list[int] = []
        vectors = []
        for batch in batches_by_length([len(text) for text in ids], self.batch_tokens):
            vectors.append(self._means([ids[row] for row in batch]))
            rows += batch
            advance(len(batch))
        if not vectors:
            return torch.zeros(0, self.model.config.hidden_size)
        return torch.cat(vectors)[torch.tensor(rows).argsort()]

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        ids = [encoded.ids for encoded in self._text.encode_marked(texts, self.max_tokens)]
        full = [text for text, found in zip(texts, ids, strict=True) if len(found) == self.max_tokens]
        longer = self._text.encode_marked(full, self.max_tokens + 1)
        self.truncated += sum(len(found.ids) > self.max_tokens for found in longer)
        return ids

    def _means(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """(B, D): padded on the right, where a decoder's tokens do not see it; the mask keeps it from an encoder's."""
        ids_BT, mask_BT = padded(ids, self.tokenizer, self.model)
        states_BTD: Tensor = self.model(input_ids=ids_BT, attention_mask=mask_BT.long()).last_hidden_state.float()
        # Padding may hold anything, NaN included, so it is replaced and not multiplied by 0.
        sums_BD = states_BTD.masked_fill(~mask_BT[..., None], 0.0).sum(dim=1)
        return (sums_BD / mask_BT.sum(dim=1).clamp(min=1)[:, None]).cpu()


def batches_by_length(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices in batches, longest first, so that padding is small and memory trouble comes at once."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    start = 0
    while start < len(order):
        size = max(1, batch_tokens // max(1, lengths[order[start]]))
        yield order[start : start + size]
        start += size


def padded(ids: Sequence[Sequence[int]], tokenizer: Any, model: Any) -> tuple[Tensor, Tensor]:
    """Texts of a batch, padded on their right, and which positions are their own: (B, T) each, where the model is."""
    device = next(model.parameters()).device
    width, pad = max(1, *map(len, ids)), tokenizer.pad_token_id or 0
    ids_BT = torch.tensor([[*text, *[pad] * (width - len(text))] for text in ids], device=device)
    lengths_B = torch.tensor([len(text) for text in ids], device=device)
    return ids_BT, torch.arange(width, device=device)[None] < lengths_B[:, None]


def load_encoder(
    name: str,
    revision: str = "main",
    *,
    base: ModelSpec,
    trust_remote_code: bool = False,
    max_tokens: int = LONGEST,
    batch_tokens: int = BATCH_TOKENS,
) -> TextEncoder:
    """An encoder from a folder or the hub, from safetensors only, in fp32; on the accelerator if there is one.

    Args:
        name: A folder or hub name; or `base` for the base language model's decoder, in its own dtype.
        revision: On the hub.
        base: The base language model.
        trust_remote_code: Whether the encoder's own code may run.
        max_tokens: As for `TextEncoder`.
        batch_tokens: As for `TextEncoder`.

    Raises:
        ModelError: It cannot be found or read, or has no safetensors.
    """
    limits = {"max_tokens": max_tokens, "batch_tokens": batch_tokens}
    if name == BASE_ENCODER:
        return TextEncoder(decoder_of(load_model(base)), load_tokenizer(base), **limits)
    folder = Path(name).expanduser()
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        raise ModelError("the encoder has no safetensors", name, REMEDY)
    spec = ModelSpec(str(folder) if folder.is_dir() else name, revision, trust_remote_code=trust_remote_code)
    model = load_encoder_model(spec, remedy=REMEDY)
    return TextEncoder(model, load_tokenizer(spec, remedy=REMEDY), **limits)
