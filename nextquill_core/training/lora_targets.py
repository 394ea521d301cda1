"""Check that `train.lora.targets` fits the layers of a base model."""

from __future__ import annotations

import difflib
import re
from typing import Any

from nextquill_core.config.lora import ALL_LINEAR, LoraSettings
from nextquill_core.config.model import ModelConfig
from nextquill_core.errors import ModelError, first_line

SETTING = "train.lora.targets"
SHOWN_NAMES = 12


def check_targets(lora: LoraSettings, base: ModelConfig) -> None:
    """Check the targets against the base model's configuration; no weights are read.

    Raises:
        ModelError: A name or expression matches nothing, or a module that is not a linear layer of the decoder; or
            the model's configuration cannot be read, or is not that of a causal language model.
    """
    if lora.targets != ALL_LINEAR:
        check_modules(lora, _without_weights(base))


def check_modules(lora: LoraSettings, model: Any) -> None:
    """Check the targets against a model that is loaded, on any device.

    Args:
        lora: Settings with the targets.
        model: A causal language model without adapters.

    Raises:
        ModelError: As for `check_targets`.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    wanted = lora.target_modules
    if wanted == ALL_LINEAR:
        return
    modules = {path: module for path, module in model.named_modules() if path}
    head = model.get_output_embeddings()
    linear = {path for path, module in modules.items() if isinstance(module, nn.Linear | Conv1D) and module is not head}
    names = sorted({path.rpartition(".")[2] for path in linear})
    layers = ", ".join(names[:SHOWN_NAMES]) + (", ..." if len(names) > SHOWN_NAMES else "")
    for one in [wanted] if isinstance(wanted, str) else wanted:
        found = [path for path in modules if _matches(one, path, regex=isinstance(wanted, str))]
        if not found:
            near = difflib.get_close_matches(one, names, n=1)
            remedy = f"did you mean `{near[0]}`? " if near else ""
            raise ModelError(
                f"`{one}` matches no module of the base model", SETTING, f"{remedy}its linear layers are {layers}"
            )
        if other := [path for path in found if path not in linear]:
            kind = "the output layer" if modules[other[0]] is head else f"of type {type(modules[other[0]]).__name__}"
            raise ModelError(
                f"`{one}` matches {other[0]}, {kind}, which gets no adapter",
                SETTING,
                f"name linear layers below the output layer only: {layers}",
            )


def _matches(target: str, path: str, *, regex: bool) -> bool:
    """Return whether PEFT would adapt the module at `path`."""
    return bool(re.fullmatch(target, path)) if regex else path == target or path.endswith(f".{target}")


def _without_weights(base: ModelConfig) -> Any:
    """Return the model on the meta device, built from its configuration in a second at any size."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from nextquill_core.model.identity import REMEDY
    from nextquill_core.model.loading import load_pretrained

    config = load_pretrained(AutoConfig, base)
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=base.trust_remote_code)
    except Exception as error:  # a model's code may raise anything for a configuration that it does not know
        raise ModelError(f"cannot build it ({first_line(error)})", base.name_or_path, REMEDY) from error
