"""Models and tokenizers from a folder or the hub: safetensors only, no remote code unless asked for by name."""

from __future__ import annotations

import os
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from nextquill_core.errors import ModelError
from nextquill_core.model.half import spare_half_products
from nextquill_core.model.identity import REMEDY, ModelSpec
from nextquill_core.prompts import PLAIN, Template, chat_template


def best_device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator if accelerator is not None else torch.device("cpu")


def load_model(spec: ModelSpec, device: torch.device | None = None) -> Any:
    """The model in evaluation mode on `device` (default: the accelerator if there is one).

    Raises:
        ModelError: It cannot be found or read.
    """
    options: dict[str, Any] = {} if spec.attention == "auto" else {"attn_implementation": spec.attention}
    options |= {"dtype": getattr(torch, spec.dtype), "use_safetensors": True}
    model = load_pretrained(AutoModelForCausalLM, spec, **options)
    device = device or best_device()
    if device.type == "cpu":
        spare_half_products(model)
    return model.to(device).eval()


def load_tokenizer(spec: ModelSpec) -> Any:
    """The model's tokenizer.

    Raises:
        ModelError: It cannot be found or read.
    """
    return load_pretrained(AutoTokenizer, spec)


def load_template(name: str, spec: ModelSpec, tokenizer: Any) -> Template:
    """The prompt template `plain` or `chat`.

    Raises:
        ModelError: A chat template is asked for and the tokenizer has none that can be used.
    """
    if name == "plain":
        return PLAIN
    try:
        return chat_template(tokenizer)
    except ValueError as error:
        raise ModelError(str(error), spec.name_or_path, "set prompt.template to plain") from None


def quiet_libraries() -> None:
    """Keep the terminal for what the user asked for: our own bars tell more, and the absent GPU is no news."""
    transformers_logging.disable_progress_bar()
    if not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed, imported by others in passing, would warn


def load_pretrained(kind: Any, spec: ModelSpec, *, remedy: str = REMEDY, **options: Any) -> Any:
    """What `kind`, an Auto class of transformers, makes of a folder or hub name.

    Args:
        kind: Has `from_pretrained`.
        spec: Which, and whether its own code may run; dtype and attention are the caller's to pass on.
        remedy: What to do where it cannot be loaded.
        options: Further arguments of `from_pretrained`.

    Raises:
        ModelError: It cannot be found or read.
    """
    quiet_libraries()
    try:
        return kind.from_pretrained(
            spec.name_or_path, revision=spec.revision, trust_remote_code=spec.trust_remote_code, **options
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"cannot load it ({reason})", spec.name_or_path, remedy) from error
