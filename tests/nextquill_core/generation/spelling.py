"""A model that writes a given text, whatever it reads, and a tokenizer that shows ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel


class Numbers:
    """A tokenizer whose texts are the ids themselves, so that equal texts are equal tokens."""

    eos_token_id = 0

    def decode(self, ids: Sequence[int], **_options: Any) -> str:
        return " ".join(map(str, ids))


def speller(tokens: Sequence[int], prompt_length: int, vocabulary: int) -> Any:
    """A GPT-2 that knows its position and nothing else, and answers a prompt of this length with these tokens.

    Its layers add nothing, its word embeddings are zero, position p is the p-th unit vector, and the head's column p
    names the token that comes next.
    """
    places = prompt_length + len(tokens)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocabulary, n_positions=places, n_embd=places, n_layer=1, n_head=1, tie_word_embeddings=False
        )
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.transformer.wpe.weight.copy_(torch.eye(places))
        model.transformer.ln_f.weight.fill_(1.0)
        for place, token in enumerate(tokens):
            model.lm_head.weight[token, prompt_length - 1 + place] = 1.0
    model.generation_config.eos_token_id = None
    return model
