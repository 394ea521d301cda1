"""Which layers get a LoRA adapter: `train.lora.targets`, in the forms that PEFT's `target_modules` has."""

from __future__ import annotations

import difflib
import re
from typing import Any

from nextquill_core.errors import ModelError
from nextquill_core.model.identity import ModelSpec

ALL_LINEAR = "all-linear"
SETTING = "train.lora.targets"
NAME = re.compile(r"\w+(\.\w+)*")
"""A module's name or path. PEFT would read a string like this as a regular expression, which matches no whole path."""
SHOWN_NAMES = 12


def checked_targets(targets: str | tuple[str, ...]) -> str | tuple[str, ...]:
    """Return `targets` if PEFT can read them in any model; for a validator.

    Raises:
        ValueError: They are neither `all-linear` nor a regular expression nor names.
    """
    if not targets:
        raise ValueError("nothing named adapts nothing: name layers, or set all-linear")
    if not isinstance(targets, str):
        if len(targets) == 1 and targets[0].lower() == ALL_LINEAR:
            return ALL_LINEAR
        if wrong := [name for name in targets if not NAME.fullmatch(name)]:
            raise ValueError(
                f"{wrong[0]!r} in a list is not the name of a module: write a regular expression without a list"
            )
        return targets
    if targets.lower() == ALL_LINEAR:
        return ALL_LINEAR
    names = [name.strip("\"' ") for name in re.split(r"[,;\s]+", targets.strip("[]() "))]
    if len(names) > 1 and all(map(NAME.fullmatch, names)):
        raise ValueError(f"{targets!r} is read as one regular expression: write a list, [{', '.join(names)}]")
    try:
        re.compile(targets)
    except re.error as error:
        raise ValueError(
            f"{targets!r} is not a regular expression ({error}): write one such as .*\\.(q_proj|v_proj), or a list of "
            "names such as [q_proj, v_proj]"
        ) from None
    return targets


def peft_targets(targets: str | tuple[str, ...]) -> str | list[str]:
    """The same layers as PEFT's `target_modules`: a name alone is a list of one, and a list is sorted."""
    if isinstance(targets, str):
        return [targets] if targets != ALL_LINEAR and NAME.fullmatch(targets) else targets
    return sorted(set(targets))


def check_targets(targets: str | tuple[str, ...], spec: ModelSpec) -> None:
    """Refuse targets that do not fit the model; reads its configuration and no weights.

    Args:
        targets: As `checked_targets` returns them.
        spec: The base model.

    Raises:
        ModelError: A name or expression matches nothing, or something that is not a linear layer of the decoder; or
            the model's configuration cannot be read.
    """
    if targets != ALL_LINEAR:
        check_modules(targets, _without_weights(spec))


def check_modules(targets: str | tuple[str, ...], model: Any) -> None:
    """As `check_targets`, for a model that is there, on whatever device.

    Args:
        targets: As `checked_targets` returns them.
        model: A causal language model without adapters.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    wanted = peft_targets(targets)
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
    """Whether PEFT would adapt the module at `path`."""
    return bool(re.fullmatch(target, path)) if regex else path == target or path.endswith(f".{target}")


def _without_weights(spec: ModelSpec) -> Any:
    """The model on the meta device, made from its configuration: a second for billions of parameters."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from nextquill_core.model.loading import load_pretrained

    config = load_pretrained(AutoConfig, spec)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=spec.trust_remote_code)
