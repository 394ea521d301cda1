"""Settings of the base model θ0."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from nextquill_core.config.base import NON_EMPTY, OPERATIONAL, Positive, Section


class TinyModelConfig(Section):
    """The offline base model that `model.name_or_path: tiny` trains: a byte-level BPE tokenizer and a small Qwen3."""

    vocab_size: Annotated[int, Field(ge=300)] = 2048
    """number of tokens in the BPE vocabulary, special tokens included"""
    hidden_size: Annotated[int, Field(ge=16, multiple_of=16)] = 128
    """size of a hidden state, a multiple of 16"""
    layers: Positive = 3
    """number of decoder layers"""
    heads: Positive = 4
    """number of attention heads in a layer"""
    steps: Positive = 600
    """number of AdamW steps in pretraining"""
    batch_tokens: Annotated[int, Field(ge=128)] = 2048
    """number of tokens in a pretraining step"""
    learning_rate: Annotated[float, Field(gt=0)] = 3e-3
    """learning rate of AdamW in pretraining"""

    @model_validator(mode="after")
    def _heads_fit_the_hidden_size(self) -> TinyModelConfig:
        def fits(heads: int) -> bool:  # rotary positions need an even size, and each head of keys serves as many others
            size = self.hidden_size // heads
            return size > 0 and size % 2 == 0 and heads % max(1, heads // 2) == 0

        if not fits(self.heads):
            nearest = min(filter(fits, range(1, self.hidden_size)), key=lambda heads: abs(heads - self.heads))
            raise ValueError(f"heads {self.heads} does not fit hidden_size {self.hidden_size}: set heads to {nearest}")
        return self

    @property
    def intermediate_size(self) -> int:
        """Size inside a feed-forward part."""
        return self.hidden_size * 11 // 4 // 8 * 8

    @property
    def kv_heads(self) -> int:
        """Number of heads that keys and values have."""
        return max(1, self.heads // 2)


class ModelConfig(Section):
    """The initial model θ0."""

    name_or_path: Annotated[str, NON_EMPTY] = "Qwen/Qwen2.5-3B"
    """base model: a hub name, a local Hugging Face folder, a .gguf file, `smollm2` or `tiny`; see `nextquill models`"""
    revision: Annotated[str, NON_EMPTY] = "main"
    """branch, tag or commit of the model on the hub"""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """data type of the weights and of the computation"""
    attention: Annotated[Literal["auto", "eager", "sdpa", "flash_attention_2"], OPERATIONAL] = "auto"
    """attention implementation; auto: the choice of transformers"""
    trust_remote_code: bool = False
    """run the Python code that comes with the model"""
    tiny: TinyModelConfig = TinyModelConfig()
