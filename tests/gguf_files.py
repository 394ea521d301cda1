"""Small Llama models as GGUF files, written as llama.cpp's converter does, with the model that each was made from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.conftest import WORDS
from tests.models import small_model

CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
ROTARY = {"attn_q": 4, "attn_k": 2}
"""Numbers of heads of the weights whose rows GGUF orders in another way."""
NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def vocabulary() -> tuple[list[str], list[str]]:
    """Return the tokens of a byte-level BPE trained on the words of the tests, in order, and its merges."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([" ".join(WORDS), "no.  1 and  2\n\n3 are  10\n\n"] * 3, trainer)
    tokens = sorted(bpe.get_vocab(), key=bpe.get_vocab().__getitem__)
    return tokens, [" ".join(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]


def write_gguf(
    path: Path,
    *,
    architecture: str = "llama",
    quantized: bool = False,
    metadata: dict[str, Any] | None = None,
    change: Callable[[dict[str, Any]], object] = lambda tensors: None,
) -> Any:
    """Write a small Llama with random weights to a GGUF file and return it with the weights that the file holds.

    Args:
        path: The file.
        architecture: Name of the architecture in the file.
        quantized: Whether the matrices are Q8_0 and not F32.
        metadata: Texts under `general.` and `tokenizer.`, beside the usual ones or in their place.
        change: Changes the tensors before they are written.
    """
    import torch
    from gguf import GGMLQuantizationType, GGUFWriter, dequantize, quantize

    tokens, merges = vocabulary()
    model = small_model("llama", vocab_size=len(tokens), eos_token_id=2, bos_token_id=1)
    kind = GGMLQuantizationType.Q8_0
    if quantized:
        with torch.no_grad():
            for matrix in (one for one in model.parameters() if one.ndim == 2):
                matrix.copy_(torch.from_numpy(dequantize(quantize(matrix.numpy(), kind), kind)))
    writer = GGUFWriter(str(path), architecture)
    writer.add_block_count(2)
    writer.add_context_length(2048)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(8)
    writer.add_rope_freq_base(float(model.config.rope_parameters["rope_theta"]))
    writer.add_layer_norm_rms_eps(model.config.rms_norm_eps)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in SPECIAL else 1 for token in tokens])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    texts = {"general.name": "Some Model", "general.license": "mit", "tokenizer.ggml.pre": "smollm"}
    for key, value in (texts | {"tokenizer.chat_template": CHATML} | (metadata or {})).items():
        writer.add_string(key, value)
    tensors = {_name(name): tensor.numpy() for name, tensor in model.state_dict().items()}
    for name, heads in ROTARY.items():
        for layer in range(2):
            key = f"blk.{layer}.{name}.weight"
            tensors[key] = _rotary_order(tensors[key], heads)
    change(tensors)
    for name, values in tensors.items():
        if quantized and values.ndim == 2:
            writer.add_tensor(name, quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def _name(name: str) -> str:
    """Return the name in GGUF of a weight of transformers."""
    stem = name.removesuffix(".weight")
    if stem.startswith("model.layers."):
        _, _, layer, part = stem.split(".", 3)
        return f"blk.{layer}.{NAMES[part]}.weight"
    return f"{NAMES[stem]}.weight"


def _rotary_order(weight: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Return the rows with the two halves of each head interleaved."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows, columns))
