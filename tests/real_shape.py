"""Shapes of real models with random weights, and examples of real lengths."""

from __future__ import annotations

import os
import random
from typing import Any

import pytest
import torch

from nextquill_core.model.cpu import make_fast
from nextquill_core.tokens import TokenPair

PROMPT, ANSWER, OPENING, REST = 2048, 512, 180, 20
VOCABULARY = 151_936
NEEDED_GB = 16


def qwen_3b() -> Any:
    from transformers import AutoModelForCausalLM, Qwen2Config

    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=2048,
        intermediate_size=11_008,
        num_hidden_layers=36,
        num_attention_heads=16,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    return make_fast(model)


def full_length(number: int) -> TokenPair:
    draw = random.Random(number)
    opening, rest, answer = ([draw.randrange(VOCABULARY) for _ in range(n)] for n in (OPENING, REST, ANSWER))
    history = [draw.randrange(VOCABULARY) for _ in range(PROMPT - OPENING - REST)]
    return TokenPair(str(number), opening + history + rest, opening + rest, answer)


def smollm2() -> Any:
    """SmolLM2-135M's shape with random weights in single precision."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=49_152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    return make_fast(AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval())


def reviews_of_real_length(count: int) -> list[TokenPair]:
    """Prompts of 1,024 tokens, of which 180 open both branches, and answers of 256."""
    pairs = []
    for number in range(count):
        draw = random.Random(number)
        opening, history, rest, answer = ([draw.randrange(49_152) for _ in range(n)] for n in (180, 824, 20, 256))
        pairs.append(TokenPair(str(number), opening + history + rest, opening + rest, answer))
    return pairs


def wanted(minutes: str) -> Any:
    """Mark a test that runs only on request."""
    return pytest.mark.skipif(
        os.environ.get("NEXTQUILL_REAL_SHAPE") != "1",
        reason=f"takes {minutes} and {NEEDED_GB} GB: set NEXTQUILL_REAL_SHAPE=1",
    )
