"""Small causal language models of several families, and the slow way to score with any of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FAMILIES = ("qwen2", "llama", "mistral", "gemma2", "gpt2")
VOCABULARY = 400


def small_model(family: str, **settings: Any) -> Any:
    """Two layers with random weights; llama's head is untied, gemma2 caps its logits, gpt2 learns its positions."""
    from transformers import AutoConfig, AutoModelForCausalLM

    shape: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    if family == "gpt2":
        shape |= {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 2048}
    elif family == "mamba":
        shape |= {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
    else:
        shape |= {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        shape |= {"num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": family != "llama"}
    if family == "gemma2":
        shape |= {"final_logit_softcapping": 0.5}
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **(shape | settings))).eval()


def lora_model(base: Any, *, seed: int | None = None, **settings: Any) -> Any:
    """A model with an adapter of rank 4 on all linear layers, of random numbers: from a seed, or drawn next."""
    from peft import LoraConfig, get_peft_model

    if seed is not None:
        torch.manual_seed(seed)
    shape = {"r": 4, "target_modules": "all-linear", "init_lora_weights": False, "task_type": "CAUSAL_LM"}
    return get_peft_model(base, LoraConfig(**(shape | settings)))


def adapted_model(base: str | Path, adapter: Path) -> Any:
    """A base model with an adapter on it, as PEFT and transformers load them without our code."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(adapter)).eval()


def oracle(model: Any, prompt: list[int], target: list[int]) -> Tensor:
    """Return log p of each answer token from the model's own full logits, one sample alone."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + target])).logits[0].float()
    rows = torch.log_softmax(logits, dim=-1)[len(prompt) - 1 : -1]
    return torch.stack([row[token] for row, token in zip(rows, target, strict=True)])
