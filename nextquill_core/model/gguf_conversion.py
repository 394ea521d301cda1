"""A GGUF file as an ordinary Hugging Face folder: dequantised weights, tokenizer and chat template.

transformers reads the weights, but the model that it returns cannot be saved, its tokenizer splits some vocabularies'
texts in another way than the model was trained with, and tensors that it does not know vanish. Here the first is done,
the second is set right, and the third is refused.
"""

from __future__ import annotations

import hashlib
from math import prod
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from torch import nn
from transformers import AutoModelForCausalLM

from nextquill_core.errors import ModelError
from nextquill_core.model.gguf import USE_FOLDER, GgufHeader, read_header
from nextquill_core.model.identity import COPY_MODEL
from nextquill_core.model.loading import load_gguf_model, load_gguf_tokenizer
from nextquill_core.model.packaged import INSTALL, MODELS, installed_version
from nextquill_core.progress import Progress, silent

AS_GPT2 = frozenset(("", "default", "gpt-2", "mpt", "olmo", "phi-2", "roberta-bpe", "jina-es", "jina-de", "jina-v1-en",
                     "jina-v2-es", "jina-v2-de"))  # fmt: skip
"""Values of `tokenizer.ggml.pre` for vocabularies that split words as GPT-2's does, in llama.cpp."""
DIGITS_APART = frozenset(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"))
"""Values for those that first take each digit apart, which transformers does not know and would split as GPT-2 does."""


def convert_gguf(source: Path, folder: Path, dtype: str, progress: Progress = silent) -> dict[str, Any]:
    """Write the model of a GGUF file to a Hugging Face folder.

    Args:
        source: The file.
        folder: The new folder.
        dtype: Data type of the weights, such as `float32`.
        progress: Receives the phases of the work.

    Returns:
        Facts for the manifest: `parameters`, and where the model comes from under `source`.

    Raises:
        ModelError: The package `gguf` is missing, the file cannot be read, its architecture or tokenizer is not
            supported, or its weights are not complete and finite.
    """
    header = read_header(source)
    _require_package(source)
    progress(0, 0, phase="reading the GGUF file")
    loaded = load_gguf_model(source, getattr(torch, dtype))
    _check_all_was_read(header, loaded, source)
    tokenizer = load_gguf_tokenizer(source)
    _split_as_trained(tokenizer, header, source)
    progress(0, 0, phase="writing the model")
    model = _ordinary(loaded)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"parameters": parameters, "source": source_of(source, header)}


def source_of(path: Path, header: GgufHeader) -> dict[str, Any]:
    """Return where a converted model comes from, without a path: package, file, digest, licence and name."""
    packaged = next((known for known in MODELS.values() if known.path == path), None)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "package": f"{packaged.package} {packaged.version}" if packaged else None,
        "file": path.name,
        "bytes": path.stat().st_size,
        "sha256": digest,
        "license": header.text("general.license") or (packaged.license if packaged else None),
        "name": header.text("general.name") or None,
    }


def _require_package(source: Path) -> None:
    if installed_version("gguf") is None:
        remedy = f"{INSTALL} or `pip install 'nextquill[real]'`"
        raise ModelError("a GGUF file needs the package gguf, which is not installed", str(source), remedy)


def _check_all_was_read(header: GgufHeader, model: nn.Module, source: Path) -> None:
    """Compare the numbers of values in the file and in the model; transformers leaves unknown tensors out silently.

    An example are the frequencies that stretch the positions of Llama 3.
    """
    sizes = {name: prod(shape) for name, shape in header.tensors.items()}
    held = {tensor.data_ptr(): tensor.numel() for tensor in model.state_dict().values()}  # a tied tensor counts once
    left_out = sum(sizes.values()) - sum(held.values())
    if left_out:
        names = ", ".join(name for name, size in sizes.items() if size == left_out) or "unknown names"
        raise ModelError(f"{left_out:,} values of the file are not in the model ({names})", str(source), USE_FOLDER)


def _split_as_trained(tokenizer: Any, header: GgufHeader, source: Path) -> None:
    """Make the tokenizer of a byte-level vocabulary split texts before merging as the file says, in place."""
    split = header.text("tokenizer.ggml.pre")
    backend = tokenizer.backend_tokenizer
    by_bytes = isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel) and backend.pre_tokenizer.use_regex
    if header.text("tokenizer.ggml.model") != "gpt2" or not by_bytes:
        return
    if split in DIGITS_APART:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    elif split not in AS_GPT2:
        raise ModelError(f"its tokenizer splits words as `{split}`, which is not supported", str(source), USE_FOLDER)


def _ordinary(loaded: Any) -> Any:
    """Return a model of the same weights that can be saved; transformers refuses one that was read from GGUF."""
    values = loaded.config.to_dict()
    values.pop("quantization_config", None)
    config = type(loaded.config).from_dict(values)
    with torch.device("meta"):  # the weights are those of the other model
        model = AutoModelForCausalLM.from_config(config, dtype=loaded.dtype)
    state = loaded.state_dict()
    found = model.load_state_dict(state, strict=False, assign=True)
    if found.missing_keys or found.unexpected_keys:
        raise ModelError("the weights cannot be carried over", config.name_or_path, COPY_MODEL)
    model.tie_weights()
    model.generation_config = loaded.generation_config
    return model.eval()
