"""The sizes of a causal language model, from its settings alone; no weight is read or downloaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nextquill_core.config.model import ModelConfig, TinyModelConfig
from nextquill_core.errors import ModelError
from nextquill_core.model.gguf import GgufHeader, read_header
from nextquill_core.model.identity import is_gguf, model_file
from storage.files import read_json

BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
"""Bytes of a number by `model.dtype`."""
LORA_BYTES = 4
"""Bytes of a number of an adapter, which is stored in single precision."""


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a dense decoder.

    Attributes:
        vocabulary: Rows of the embedding.
        hidden: Size of a hidden state.
        intermediate: Size inside a feed-forward part.
        layers: Number of layers.
        heads: Number of attention heads in a layer.
        kv_heads: Number of heads that keys and values have.
        head_size: Size of a head.
        tied: Whether embedding and head are one matrix.
        gated: Whether a feed-forward part has a third matrix, a gate, as those of Llama, Qwen and Gemma have.
    """

    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    tied: bool = True
    gated: bool = True

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """The matrices of one layer: (inputs, outputs) by name."""
        queries, keys = self.heads * self.head_size, self.kv_heads * self.head_size
        return {
            "q_proj": (self.hidden, queries),
            "k_proj": (self.hidden, keys),
            "v_proj": (self.hidden, keys),
            "o_proj": (queries, self.hidden),
            **({"gate_proj": (self.hidden, self.intermediate)} if self.gated else {}),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }

    @property
    def body(self) -> int:
        """Numbers in the matrices of all layers."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.matrices.values())

    @property
    def head(self) -> int:
        """Numbers in the head, which gives the logits."""
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """Numbers in all matrices."""
        return self.body + self.head * (1 if self.tied else 2)

    @property
    def cached(self) -> int:
        """Numbers that the cache of keys and values holds for one position."""
        return 2 * self.layers * self.kv_heads * self.head_size

    @property
    def attended(self) -> int:
        """Operations for one query that sees one key, over all layers: the product of both, and that with the value."""
        return 4 * self.layers * self.heads * self.head_size

    def lora(self, r: int, targets: str | Sequence[str]) -> int:
        """Return the numbers in a LoRA adapter.

        Args:
            r: Rank.
            targets: Names of the adapted matrices; `all-linear`, or a pattern, counts all of them.
        """
        chosen = self.matrices.values() if isinstance(targets, str) else map(self.matrices.get, targets)
        return self.layers * r * sum(sum(sizes) for sizes in chosen if sizes)


UNGATED = frozenset({"gpt2", "gptj", "gpt_neox", "opt", "bloom", "falcon", "phi", "mpt", "starcoder2"})
"""Values of `model_type` whose feed-forward parts have no gate."""
KNOWN: Mapping[str, ModelShape] = {
    "Qwen/Qwen2.5-3B": ModelShape(151_936, 2048, 11_008, 36, 16, 2, 128),
    "Qwen/Qwen2.5-3B-Instruct": ModelShape(151_936, 2048, 11_008, 36, 16, 2, 128),
    "HuggingFaceTB/SmolLM2-135M-Instruct": ModelShape(49_152, 576, 1536, 30, 9, 3, 64),
}
"""Models whose sizes are known where their files are not on this machine."""


def model_shape(model: ModelConfig, made: Path | None = None) -> ModelShape:
    """Return the sizes of the base model.

    Args:
        model: The section `model` with what its name stands for on this machine.
        made: Folder of the model that the stage `model` made, if it did.

    Raises:
        ModelError: Its settings are not on this machine, or it is no dense decoder.
    """
    name = model.name_or_path
    if made is None and name == "tiny":
        return _tiny(model.tiny)
    if made is None and is_gguf(name):
        return _gguf(read_header(Path(name).expanduser()), name)
    path = model_file(str(made), "config.json") if made else model_file(name, "config.json", model.revision)
    if path is not None:
        return _hugging_face(read_json(path), name)
    if name in KNOWN:
        return KNOWN[name]
    remedy = f"fetch it with `hf download {name} config.json`, which is a few kB"
    raise ModelError("its config.json is not on this machine, so its sizes are not known", name, remedy)


def _tiny(settings: TinyModelConfig) -> ModelShape:
    return ModelShape(
        settings.vocab_size,
        settings.hidden_size,
        settings.intermediate_size,
        settings.layers,
        settings.heads,
        settings.kv_heads,
        settings.hidden_size // settings.heads,
    )


def _gguf(header: GgufHeader, name: str) -> ModelShape:
    def number(key: str) -> int | None:
        found = header.metadata.get(f"{header.architecture}.{key}")
        return found if isinstance(found, int) else None

    hidden, heads = number("embedding_length"), number("attention.head_count")
    embedding = header.tensors.get("token_embd.weight", (0, 0))
    return _checked(
        name,
        vocabulary=embedding[-1],
        hidden=hidden,
        intermediate=number("feed_forward_length"),
        layers=number("block_count"),
        heads=heads,
        kv_heads=number("attention.head_count_kv") or heads,
        head_size=number("attention.key_length") or (hidden or 0) // (heads or 1),
        tied="output.weight" not in header.tensors,
    )


def _hugging_face(settings: Mapping[str, Any], name: str) -> ModelShape:
    text = settings.get("text_config")
    found = text if isinstance(text, dict) else settings
    experts = next((key for key in ("num_experts", "num_local_experts", "n_routed_experts") if found.get(key)), None)
    if experts:
        raise ModelError(
            f"it has {found[experts]} experts, and the plan only knows dense models",
            name,
            "plan a dense model, or run a small part and read its seconds in `nextquill status`",
        )
    hidden, heads = (found.get(key, found.get(old)) for key, old in (("hidden_size", "n_embd"),
                                                                     ("num_attention_heads", "n_head")))  # fmt: skip
    return _checked(
        name,
        vocabulary=found.get("vocab_size"),
        hidden=hidden,
        intermediate=found.get("intermediate_size", found.get("n_inner")) or 4 * (hidden or 0),
        layers=found.get("num_hidden_layers", found.get("n_layer")),
        heads=heads,
        kv_heads=found.get("num_key_value_heads") or heads,
        head_size=found.get("head_dim") or (hidden or 0) // (heads or 1),
        tied=bool(found.get("tie_word_embeddings", settings.get("tie_word_embeddings", True))),
        gated=found.get("model_type") not in UNGATED,
    )


def _checked(name: str, **sizes: Any) -> ModelShape:
    for key, value in sizes.items():
        if not isinstance(value, int) or (value < 1 and not isinstance(value, bool)):
            raise ModelError(f"its settings do not say its {key}", name, "plan a model that has a config.json")
    return ModelShape(**sizes)
