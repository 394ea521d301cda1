"""Models, adapters and tokenizers from a folder or the hub: safetensors only, and every tensor that belongs to them.

All weights are loaded here. Weights that are missing would otherwise be drawn at random without an error, and weights
with other names would be ignored. No remote code runs unless the settings ask for it.
"""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import MODEL_MAPPING, AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from nextquill_core import hub
from nextquill_core.errors import ModelError, UserError, first_line
from nextquill_core.model.cpu.half import spare_half_products
from nextquill_core.model.identity import REMEDY, ModelSpec
from nextquill_core.model.weights import describe, file_faults, model_faults
from nextquill_core.prompts import PLAIN, Template, chat_template

ADAPTER_FILE, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
WEIGHTS_REMEDY = "copy or download the model again, all of its files"
TOKENIZER_REMEDY = "add the tokenizer's files (tokenizer.json, tokenizer_config.json) to the folder"


def best_device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator if accelerator is not None else torch.device("cpu")


def load_model(spec: ModelSpec, device: torch.device | None = None) -> Any:
    """The model in evaluation mode on `device` (default: the accelerator if there is one).

    Raises:
        ModelError: It cannot be found or read, or its weights are not complete and finite.
    """
    options: dict[str, Any] = {} if spec.attention == "auto" else {"attn_implementation": spec.attention}
    options |= {"dtype": getattr(torch, spec.dtype), "use_safetensors": True}
    model = _load_weights(AutoModelForCausalLM, spec, **options)
    device = device or best_device()
    if device.type == "cpu":
        spare_half_products(model)
    return model.to(device).eval()


def load_encoder_model(spec: ModelSpec, *, remedy: str = REMEDY) -> Any:
    """Return an encoder without a head in fp32 and evaluation mode, on the accelerator if there is one.

    Its last hidden states are what is used, so a pooler above them is neither built nor required.

    Args:
        spec: Which; its `dtype` and `attention` are not used.
        remedy: What to do where it cannot be loaded.

    Raises:
        ModelError: It cannot be found or read, or its weights are not complete and finite.
    """
    options: dict[str, Any] = {"dtype": torch.float32, "use_safetensors": True}
    known = MODEL_MAPPING.get(type(load_pretrained(AutoConfig, spec, remedy=remedy)), None)
    if isinstance(known, type) and "add_pooling_layer" in inspect.signature(known).parameters:
        options["add_pooling_layer"] = False
    return _load_weights(AutoModel, spec, remedy=remedy, **options).to(best_device()).eval()


def load_adapter(
    model: Any,
    folder: Path,
    *,
    name: str = "default",
    autocast_dtype: bool = True,
    remedy: str = "train the adapter again on this base model",
) -> Any:
    """Put an adapter on a model: exactly the tensors that its configuration makes on this base.

    Args:
        model: The base model, or a PEFT model, which gets a further adapter.
        folder: A PEFT folder with `adapter_config.json` and `adapter_model.safetensors`.
        name: What PEFT calls the adapter; the model has none of this name yet.
        autocast_dtype: Hold an adapter in half precision in single precision, as PEFT does by default.
        remedy: What to do where the adapter cannot be used.

    Returns:
        The PEFT model in evaluation mode. A model that had no adapter is as before where this raises.

    Raises:
        ModelError: A file is missing or cannot be read, the adapter is for another model, or it lacks tensors, has
            others, other shapes or values that are not finite.
    """
    from peft import PeftConfig, PeftModel, get_peft_model

    for file in (ADAPTER_FILE, ADAPTER_CONFIG):
        if not (folder / file).is_file():  # PEFT would look for a pickle, or on the hub, next
            raise ModelError(f"there is no {file}", str(folder), remedy)
    further = isinstance(model, PeftModel)
    adapted = None
    try:
        config = PeftConfig.from_pretrained(str(folder))
        config.inference_mode = True
        if further:
            adapted = model
            model.add_adapter(name, config, autocast_adapter_dtype=autocast_dtype)
        else:
            config.base_model_name_or_path = None  # the name on another machine, of which PEFT would warn
            adapted = get_peft_model(model, config, adapter_name=name, autocast_adapter_dtype=autocast_dtype)
        if faults := file_faults(folder / ADAPTER_FILE, adapter_shapes(adapted, name)):
            raise ModelError(f"the adapter is damaged or for another base model: it {faults}", str(folder), remedy)
        adapted.load_adapter(
            str(folder), name, torch_device=str(model.device), autocast_adapter_dtype=autocast_dtype
        )  # the name is known, so this reads the weights alone
        return adapted.eval()
    except Exception as error:  # whatever PEFT raises for files that it did not write
        if adapted is not None and not further:
            adapted.unload()
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"PEFT cannot load the adapter ({first_line(error)})", str(folder), remedy) from error


def adapter_shapes(model: Any, name: str = "default") -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor in the file of an adapter, by its name there.

    Args:
        model: A PEFT model.
        name: Which of its adapters.
    """
    from peft import get_peft_model_state_dict

    tensors = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}


def load_tokenizer(spec: ModelSpec, *, remedy: str = REMEDY) -> Any:
    """Return the model's tokenizer.

    Raises:
        ModelError: It cannot be found or read, or has no vocabulary.
    """
    tokenizer = load_pretrained(AutoTokenizer, spec, remedy=remedy)
    # Without the tokenizer's files transformers makes one that knows the special tokens alone.
    if len(tokenizer) <= len({*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}):
        raise ModelError("there is no tokenizer with a vocabulary", spec.name_or_path, TOKENIZER_REMEDY)
    return tokenizer


def load_template(name: str, spec: ModelSpec, tokenizer: Any) -> Template:
    """The prompt template `plain` or `chat`.

    Raises:
        ModelError: A chat template is asked for and the tokenizer has none that can be used.
    """
    if name == "plain":
        return PLAIN
    from jinja2 import TemplateError

    try:
        return chat_template(tokenizer)
    except (ValueError, TemplateError) as error:
        raise ModelError(first_line(error), spec.name_or_path, "set prompt.template to plain") from None


def quiet_libraries() -> None:
    """Keep the terminal for what the user asked for: our own bars tell more, and the absent GPU is no news."""
    transformers_logging.disable_progress_bar()
    if not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed, imported by others in passing, would warn


def _load_weights(kind: Any, spec: ModelSpec, *, remedy: str = REMEDY, **options: Any) -> Any:
    """Return a model with all of its weights.

    What may be missing or left over (tied weights, buffers that are computed, a rotary embedding's frequencies) is for
    transformers to say. A model without a head may leave the tensors of heads.

    Raises:
        ModelError: It cannot be found or read, or its weights are not complete and finite.
    """
    with _report_in_our_words():
        model, info = load_pretrained(
            kind, spec, remedy=remedy, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    unexpected = set(info["unexpected_keys"])
    if kind is AutoModel:
        parts = {name for name, _ in model.named_children()} | {model.base_model_prefix}
        unexpected = {name for name in unexpected if name.partition(".")[0] in parts}
    shapes = {name: (found, wanted) for name, found, wanted in info["mismatched_keys"]}
    faults = describe(set(info["missing_keys"]), unexpected, shapes) or model_faults(model)
    if faults:
        raise ModelError(f"the weights are not complete: the model {faults}", spec.name_or_path, WEIGHTS_REMEDY)
    return model


@contextmanager
def _report_in_our_words() -> Iterator[None]:
    """Keep the table that transformers prints of missing weights away: an error or nothing says it."""
    logger = logging.getLogger("transformers.modeling_utils")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def load_pretrained(kind: Any, spec: ModelSpec, *, remedy: str = REMEDY, **options: Any) -> Any:
    """What `kind`, an Auto class of transformers, makes of a folder or hub name.

    Args:
        kind: Has `from_pretrained`.
        spec: Which, and whether its own code may run; dtype and attention are the caller's to pass on.
        remedy: What to do where it cannot be loaded.
        options: Further arguments of `from_pretrained`.

    Raises:
        HubUnreachableError: It is on the hub, which cannot be reached, and not in the cache.
        ModelError: It cannot be found or read.
    """
    quiet_libraries()
    hub.require_model(spec.name_or_path, spec.revision, remedy)
    try:
        with hub.offline_if_unreachable(spec.name_or_path):
            return kind.from_pretrained(
                spec.name_or_path, revision=spec.revision, trust_remote_code=spec.trust_remote_code, **options
            )
    except UserError:
        raise
    except Exception as error:  # the files are the user's, and transformers raises whatever it comes upon in them
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"cannot load it ({reason})", spec.name_or_path, remedy) from error
