"""Settings of the base model θ0."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from nextquill_core.config.base import OPERATIONAL, Positive, Section


class TinyModelConfig(Section):
    """The offline base model that `model.name_or_path: tiny` trains: a byte-level BPE tokenizer and a small Qwen2."""

    vocab_size: Annotated[
        int, Field(ge=300, description="number of tokens in the BPE vocabulary, special tokens included")
    ] = 2048
    hidden_size: Annotated[
        int, Field(ge=16, multiple_of=16, description="size of a hidden state, a multiple of 16")
    ] = 128
    layers: Annotated[Positive, Field(description="number of decoder layers")] = 3
    heads: Annotated[Positive, Field(description="number of attention heads in a layer")] = 4
    steps: Annotated[int, Field(ge=1, description="number of AdamW steps in pretraining")] = 600
    batch_tokens: Annotated[int, Field(ge=128, description="number of tokens in a pretraining step")] = 2048
    learning_rate: Annotated[float, Field(gt=0, description="learning rate of AdamW in pretraining")] = 3e-3


class ModelConfig(Section):
    """The initial model θ0."""

    name_or_path: Annotated[
        str,
        Field(
            description="base model: a hub name, a local Hugging Face folder, a .gguf file, `smollm2` or `tiny`; see "
            "`nextquill models`"
        ),
    ] = "Qwen/Qwen2.5-3B"
    revision: Annotated[str, Field(description="branch, tag or commit of the model on the hub")] = "main"
    dtype: Annotated[
        Literal["bfloat16", "float16", "float32"], Field(description="data type of the weights and of the computation")
    ] = "bfloat16"
    attention: Annotated[
        Literal["auto", "eager", "sdpa", "flash_attention_2"],
        Field(description="attention implementation; auto: the choice of transformers", json_schema_extra=OPERATIONAL),
    ] = "auto"
    trust_remote_code: Annotated[bool, Field(description="run the Python code that comes with the model")] = False
    tiny: TinyModelConfig = TinyModelConfig()
