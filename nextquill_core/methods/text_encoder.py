"""Texts as vectors: the mean of an encoder's last hidden states, as in Contriever (arXiv 2112.09118).

The encoder is any Hugging Face model with safetensors weights, or the base language model's own decoder, which needs no
download. A model of sentence-transformers is pooled as its files say.

    N texts, B texts of a batch, T token positions, D hidden size
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nextquill_core import hub
from nextquill_core.config import ModelConfig
from nextquill_core.errors import ModelError
from nextquill_core.generation.engines import no_progress
from nextquill_core.methods.pooling import FILES, Pooling, stored_pooling
from nextquill_core.methods.registry import BASE_ENCODER
from nextquill_core.model.forward import decoder_of
from nextquill_core.model.identity import is_hub_name
from nextquill_core.model.loading import load_encoder_model, load_model, load_tokenizer
from nextquill_core.model.packaged import hub_remedy, located_encoder
from nextquill_core.tokens import UserTextTokenizer

MEAN = Pooling()
BATCH_TOKENS = 8192
LONGEST = 512
REMEDY = (
    "name an encoder with safetensors, such as sentence-transformers/all-MiniLM-L6-v2, or `minilm` or `base`; convert "
    "one that has only a pickle (facebook/contriever) once, model and tokenizer each by from_pretrained(NAME)."
    "save_pretrained(FOLDER), and name the folder"
)


class TextEncoder:
    """Turns texts into vectors by pooling the last hidden states.

    Args:
        model: Gives `last_hidden_state` for ids and a mask: an encoder, an encoder-decoder (its encoder is used), or
            the decoder of a causal language model.
        tokenizer: Its tokenizer.
        max_tokens: Maximum number of tokens in a text, markers included; less where the model has fewer positions.
        batch_tokens: Number of token positions in a batch, padding included.
        pooling: How states become a vector; by default their mean.

    Attributes:
        truncated: Number of texts so far whose ends were cut off.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        max_tokens: int = LONGEST,
        batch_tokens: int = BATCH_TOKENS,
        pooling: Pooling = MEAN,
    ) -> None:
        self.model = model.get_encoder() if model.config.is_encoder_decoder else model
        self.tokenizer = tokenizer
        positions = getattr(model.config, "max_position_embeddings", None) or max_tokens
        self.pooling = pooling
        self.max_tokens = min(max_tokens, positions, tokenizer.model_max_length, pooling.max_tokens or max_tokens)
        self.batch_tokens = batch_tokens
        self.truncated = 0
        self._text = UserTextTokenizer(tokenizer)

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str], advance: Callable[[int], None] = no_progress) -> Tensor:
        """Return the vector of each text: Σ_t h_t / T over its tokens, markers included; 0 for a text without tokens.

        Where the encoder's files ask for it, it is the state of the first or last token, or the vector divided by its
        length.

        Args:
            texts: In any order; they are encoded longest first, those of similar length together.
            advance: Receives the number of texts in each finished batch.

        Returns:
            (N, D), fp32, on the CPU.
        """
        ids = self._ids(texts)
        rows: list[int] = []
        vectors = []
        for batch in batches_by_length([len(text) for text in ids], self.batch_tokens):
            vectors.append(self._vectors([ids[row] for row in batch]))
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

    def _vectors(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """Return the vectors, (B, D); a causal decoder ignores right padding, the mask hides it elsewhere."""
        ids_BT, mask_BT = padded(ids, self.tokenizer, self.model)
        states_BTD: Tensor = self.model(input_ids=ids_BT, attention_mask=mask_BT.long()).last_hidden_state.float()
        # Padding may hold anything, NaN included, so it is replaced and not multiplied by 0.
        states_BTD = states_BTD.masked_fill(~mask_BT[..., None], 0.0)
        if self.pooling.mode == "cls":
            vectors_BD = states_BTD[:, 0]
        elif self.pooling.mode == "last":
            last_B = mask_BT.sum(dim=1).clamp(min=1) - 1
            vectors_BD = states_BTD[torch.arange(len(states_BTD), device=last_B.device), last_B]
        else:
            vectors_BD = states_BTD.sum(dim=1) / mask_BT.sum(dim=1).clamp(min=1)[:, None]
        return (F.normalize(vectors_BD, dim=-1) if self.pooling.normalized else vectors_BD).cpu()


def batches_by_length(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Yield indices in batches, longest first, so that padding is small and a lack of memory shows at once."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    start = 0
    while start < len(order):
        size = max(1, batch_tokens // max(1, lengths[order[start]]))
        yield order[start : start + size]
        start += size


def padded(ids: Sequence[Sequence[int]], tokenizer: Any, model: Any) -> tuple[Tensor, Tensor]:
    """Pad the texts of a batch on the right.

    Args:
        ids: Token ids of each text.
        tokenizer: Names the padding token.
        model: The result is on its device.

    Returns:
        Token ids and the mask of real tokens, (B, T) each.
    """
    device = next(model.parameters()).device
    width, pad = max(1, *map(len, ids)), tokenizer.pad_token_id or 0
    ids_BT = torch.tensor([[*text, *[pad] * (width - len(text))] for text in ids], device=device)
    lengths_B = torch.tensor([len(text) for text in ids], device=device)
    return ids_BT, torch.arange(width, device=device)[None] < lengths_B[:, None]


def load_encoder(
    name: str,
    revision: str = "main",
    *,
    base: ModelConfig,
    trust_remote_code: bool = False,
    batch_tokens: int = BATCH_TOKENS,
    own_limit: bool = False,
) -> TextEncoder:
    """Load an encoder from a folder or the hub, from safetensors only, in fp32; on the accelerator if there is one.

    Args:
        name: A folder, hub name or packaged encoder; or `base` for the base language model's decoder, in its dtype.
        revision: Branch, tag or commit on the hub.
        base: The base language model.
        trust_remote_code: Whether code from the encoder's repository may run.
        batch_tokens: As for `TextEncoder`.
        own_limit: Whether texts may have as many tokens as the encoder's files say, even if that is above 512.

    Raises:
        ModelError: The encoder cannot be found or loaded, or has no safetensors.
    """
    if name == BASE_ENCODER:
        return TextEncoder(decoder_of(load_model(base)), load_tokenizer(base), batch_tokens=batch_tokens)
    located, remedy = located_encoder(name), hub_remedy(name, REMEDY)
    folder = Path(located).expanduser()
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        raise ModelError("the encoder has no safetensors", name, REMEDY)
    found = str(folder) if folder.is_dir() else located
    spec = ModelConfig(name_or_path=found, revision=revision, trust_remote_code=trust_remote_code)
    model = load_encoder_model(spec, remedy=remedy)
    tokenizer = load_tokenizer(spec, remedy=remedy)
    pooling = _pooling(found, revision)
    longest = (pooling.max_tokens if own_limit else None) or LONGEST
    return TextEncoder(model, tokenizer, max_tokens=longest, batch_tokens=batch_tokens, pooling=pooling)


def _pooling(name: str, revision: str) -> Pooling:
    """Return how an encoder pools; of a hub model, the files that say so are fetched first."""
    if is_hub_name(name):
        from transformers.utils import cached_file

        with hub.offline_if_unreachable(name):
            for file in FILES:
                cached_file(name, file, revision=revision, _raise_exceptions_for_missing_entries=False)
    return stored_pooling(name, revision)
