"""Loading of models, adapters and tokenizers from a folder or the hub, with a check of every tensor.

All weights are loaded here, from safetensors only. transformers would draw missing weights at random without an error
and ignore weights with other names. No remote code runs unless the settings ask for it.
"""

from __future__ import annotations

import inspect
import logging
import os
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from nextquill_core import hub
from nextquill_core.config.data import PromptConfig
from nextquill_core.config.model import ModelConfig
from nextquill_core.errors import ModelError, UserError, first_line
from nextquill_core.model.cpu import make_fast
from nextquill_core.model.gguf import COPY_AGAIN, USE_FOLDER
from nextquill_core.model.identity import COPY_MODEL, REMEDY, check_limits
from nextquill_core.prompts import PLAIN, REVIEW, WORDINGS, Template, chat_template
from nextquill_core.tokens import PairEncoder, prompt_lengths

logger = logging.getLogger(__name__)
ADAPTER_FILE, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
NO_TOKENIZER = "there is no tokenizer with a vocabulary"
TOKENIZER_REMEDY = "add the tokenizer's files (tokenizer.json, tokenizer_config.json) to the folder"


def best_device() -> torch.device:
    """Return the accelerator if there is one, else the CPU."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator if accelerator is not None else torch.device("cpu")


def load_model(config: ModelConfig, device: torch.device | None = None) -> Any:
    """Return the model in evaluation mode on `device`, by default the accelerator if there is one.

    Raises:
        ModelError: The model cannot be found or read, or its weights are not complete and finite.
    """
    options: dict[str, Any] = {} if config.attention == "auto" else {"attn_implementation": config.attention}
    options |= {"dtype": getattr(torch, config.dtype), "use_safetensors": True}
    model = _load_weights(AutoModelForCausalLM, config, **options)
    return make_fast(model.to(device or best_device()).eval())


def load_gguf_model(path: Path, dtype: torch.dtype) -> Any:
    """Return the dequantised model of a GGUF file on the CPU, in evaluation mode; see `gguf_conversion` for a folder.

    Args:
        path: The file.
        dtype: Data type of the weights.

    Raises:
        ModelError: The file cannot be read, or its weights are not complete and finite.
    """
    from transformers import GgufConfig

    options = {"gguf_file": path.name, "quantization_config": GgufConfig(dequantize=True), "dtype": dtype}
    with _of_file(path):
        return _load_weights(AutoModelForCausalLM, ModelConfig(name_or_path=str(path.parent)), **options).eval()


@contextmanager
def _of_file(path: Path) -> Iterator[None]:
    """Name the file in errors, and suppress the progress bar that transformers draws for GGUF files alone."""
    try:
        with redirect_stderr(StringIO()):
            yield
    except ModelError as error:
        raise ModelError(error.what, str(path), f"{COPY_AGAIN}, or {USE_FOLDER}") from error


def load_encoder_model(config: ModelConfig, *, remedy: str = REMEDY) -> Any:
    """Return an encoder without a head in fp32 and evaluation mode, on the accelerator if there is one.

    Only its last hidden states are used, so a pooler above them is neither built nor required.

    Args:
        config: The encoder; its `dtype` and `attention` are not used.
        remedy: How to fix a failure, for the error message.

    Raises:
        ModelError: The encoder cannot be found or read, or its weights are not complete and finite.
    """
    options: dict[str, Any] = {"dtype": torch.float32, "use_safetensors": True}
    known = MODEL_MAPPING.get(type(load_pretrained(AutoConfig, config, remedy=remedy)), None)
    if isinstance(known, type) and "add_pooling_layer" in inspect.signature(known).parameters:
        options["add_pooling_layer"] = False
    return _load_weights(AutoModel, config, remedy=remedy, **options).to(best_device()).eval()


def load_adapter(
    model: Any,
    folder: Path,
    *,
    name: str = "default",
    autocast_dtype: bool = True,
    remedy: str = "train the adapter again on this base model",
) -> Any:
    """Load an adapter onto a model; its file must have exactly the tensors that its configuration creates there.

    Args:
        model: The base model, or a PEFT model, which gets a further adapter.
        folder: A PEFT folder with `adapter_config.json` and `adapter_model.safetensors`.
        name: Name of the adapter in the PEFT model, which must not have one of this name yet.
        autocast_dtype: Hold a half-precision adapter in single precision, as PEFT does by default.
        remedy: How to fix a failure, for the error message.

    Returns:
        The PEFT model in evaluation mode. If this raises, a model without adapter is unchanged.

    Raises:
        ModelError: A file is missing or cannot be read, the adapter is for another model, or its tensors are
            incomplete, of another shape or not finite.
    """
    from peft import PeftConfig, PeftModel, get_peft_model

    for file in (ADAPTER_FILE, ADAPTER_CONFIG):
        if not (folder / file).is_file():  # otherwise PEFT looks for a pickle, or on the hub
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
            config.base_model_name_or_path = None  # a name of another machine, about which PEFT would warn
            adapted = get_peft_model(model, config, adapter_name=name, autocast_adapter_dtype=autocast_dtype)
        if faults := file_faults(folder / ADAPTER_FILE, adapter_shapes(adapted, name)):
            raise ModelError(f"the adapter is damaged or for another base model: it {faults}", str(folder), remedy)
        adapted.load_adapter(
            str(folder), name, torch_device=str(model.device), autocast_adapter_dtype=autocast_dtype
        )  # the adapter exists, so this reads its weights only
        return adapted.eval()
    except Exception as error:  # PEFT may raise anything for files that it did not write
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


def load_gguf_tokenizer(path: Path) -> Any:
    """Return the tokenizer of a GGUF file as transformers understands it.

    Raises:
        ModelError: The tokenizer cannot be read, or has no vocabulary.
    """
    with _of_file(path):
        return load_tokenizer(ModelConfig(name_or_path=str(path.parent)), gguf_file=path.name)


def load_tokenizer(config: ModelConfig, *, remedy: str = REMEDY, **options: Any) -> Any:
    """Return the model's tokenizer, which splits text as the model's `tokenizer.json` says.

    For some types of models transformers replaces the splitting of that file by that of the type's first model. A model
    that was trained with its own tokenizer would then read tokens that it has not learned.

    Args:
        config: The model.
        remedy: How to fix a failure, for the error message.
        options: Further arguments of `from_pretrained`.

    Raises:
        ModelError: The tokenizer cannot be found or read, or has no vocabulary.
    """
    try:
        tokenizer = load_pretrained(AutoTokenizer, config, remedy=remedy, **options)
    except ModelError as error:
        if "instantiate the backend tokenizer" not in str(error):
            raise
        raise ModelError(NO_TOKENIZER, config.name_or_path, TOKENIZER_REMEDY) from error
    if "gguf_file" not in options and not _splits_as_its_file(tokenizer, config):
        kind = type(tokenizer).__name__
        logger.info("%s: its tokenizer.json is used, from which %s differs in splitting", config.name_or_path, kind)
        tokenizer = load_pretrained(PreTrainedTokenizerFast, config, remedy=remedy, **options)
    # Without the tokenizer's files, transformers creates a tokenizer with the special tokens only.
    if len(tokenizer) <= len({*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}):
        raise ModelError(NO_TOKENIZER, config.name_or_path, TOKENIZER_REMEDY)
    return tokenizer


def _splits_as_its_file(tokenizer: Any, config: ModelConfig) -> bool:
    """Return whether a tokenizer normalises and splits text as its `tokenizer.json`; True where there is none."""
    ours = type(tokenizer).__module__.startswith("transformers.")  # otherwise the model's own code was asked for
    loaded = getattr(tokenizer, "backend_tokenizer", None)
    if not ours or loaded is None:
        return True
    path = cached_file(
        config.name_or_path,
        "tokenizer.json",
        revision=config.revision,
        local_files_only=True,
        _raise_exceptions_for_missing_entries=False,
    )
    if path is None:
        return True
    file = Tokenizer.from_file(path)
    pairs = (file.normalizer, loaded.normalizer), (file.pre_tokenizer, loaded.pre_tokenizer)
    return all((one and one.__getstate__()) == (other and other.__getstate__()) for one, other in pairs)


def load_template(name: str, config: ModelConfig, tokenizer: Any) -> Template:
    """Return the prompt template `plain` or `chat`.

    Args:
        name: `plain` or `chat`.
        config: The model, for the error message.
        tokenizer: The model's tokenizer, which has the chat template.

    Raises:
        ModelError: The tokenizer has no chat template that can be used.
    """
    if name == "plain":
        return PLAIN
    from jinja2 import TemplateError

    try:
        return chat_template(tokenizer)
    except (ValueError, TemplateError) as error:
        raise ModelError(first_line(error), config.name_or_path, "set prompt.template to plain") from None


def encoder_for(model: ModelConfig, prompt: PromptConfig, tokenizer: Any) -> PairEncoder:
    """Return the encoder for the `prompt` settings of a run.

    Args:
        model: The base model.
        prompt: Settings with `template` resolved to plain or chat, and `writes` to a kind of text; auto is a review.
        tokenizer: The model's tokenizer.

    Raises:
        ModelError: Model, tokenizer and limits do not fit each other.
    """
    # Checked again, because a hub model's files may be on this machine only now.
    lengths = prompt_lengths(prompt.max_prompt_tokens, prompt.max_target_tokens)
    check_limits(model.name_or_path, model.revision, lengths)
    limits = prompt.model_dump(exclude={"template", "writes"})
    wording = REVIEW if prompt.writes == "auto" else WORDINGS[prompt.writes]
    template = load_template(prompt.template, model, tokenizer)
    return PairEncoder(tokenizer, template=template, wording=wording, **limits)


def quiet_libraries() -> None:
    """Turn off progress bars and warnings of other libraries that say less than our own output."""
    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)  # PEFT reads it
    if not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # otherwise DeepSpeed, which other libraries import, warns


def _load_weights(kind: Any, config: ModelConfig, *, remedy: str = REMEDY, **options: Any) -> Any:
    """Return a model with all of its weights.

    transformers decides which tensors may be missing or unused (tied weights, computed buffers, the frequencies of
    rotary embeddings). A model without a head may leave the tensors of heads unused.

    Raises:
        ModelError: The model cannot be found or read, or its weights are not complete and finite.
    """
    with _without_loading_report():
        model, info = load_pretrained(
            kind, config, remedy=remedy, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    unexpected = set(info["unexpected_keys"])
    if kind is AutoModel:
        parts = {name for name, _ in model.named_children()} | {model.base_model_prefix}
        unexpected = {name for name in unexpected if name.partition(".")[0] in parts}
    shapes = {name: (found, wanted) for name, found, wanted in info["mismatched_keys"]}
    faults = describe(set(info["missing_keys"]), unexpected, shapes) or model_faults(model)
    if faults:
        raise ModelError(f"the weights are not complete: the model {faults}", config.name_or_path, COPY_MODEL)
    return model


@contextmanager
def _without_loading_report() -> Iterator[None]:
    """Suppress transformers' table of missing weights; an error reports them instead.

    The logger's level stays as it is: with a higher one, transformers warns of layers that it did not shard.
    """
    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(_is_error)
    try:
        yield
    finally:
        logger.removeFilter(_is_error)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def load_pretrained(kind: Any, config: ModelConfig, *, remedy: str = REMEDY, **options: Any) -> Any:
    """Return what an Auto class of transformers loads from a folder or hub name.

    Args:
        kind: Class with `from_pretrained`.
        config: The model, and whether its own code may run; the caller passes dtype and attention as options.
        remedy: How to fix a failure, for the error message.
        options: Further arguments of `from_pretrained`.

    Raises:
        HubUnreachableError: The hub cannot be reached and the model is not in the cache.
        ModelError: The model cannot be found or read.
    """
    quiet_libraries()
    hub.require_model(config.name_or_path, config.revision, remedy)
    try:
        with hub.offline_if_unreachable(config.name_or_path):
            return kind.from_pretrained(
                config.name_or_path, revision=config.revision, trust_remote_code=config.trust_remote_code, **options
            )
    except UserError:
        raise
    except Exception as error:  # transformers may raise anything for a user's files
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"cannot load it ({reason})", config.name_or_path, remedy) from error


SHOWN = 3
"""Number of tensors that a message names for each kind of fault; the rest is counted."""


def describe(
    missing: Collection[str] = (),
    unexpected: Collection[str] = (),
    shapes: Mapping[str, tuple[Sequence[int], Sequence[int]]] | None = None,
    not_finite: Collection[str] = (),
) -> str:
    """Return a description with one clause for each kind of fault, or "" if there is none.

    Args:
        missing: Names of tensors that the file lacks.
        unexpected: Names of tensors in the file that the model does not have.
        shapes: By name, the shape in the file and the shape in the model.
        not_finite: Names of tensors with NaN or infinite values.
    """
    differing = [f"{name} {list(found)} instead of {list(wanted)}" for name, (found, wanted) in (shapes or {}).items()]
    parts = (
        ("lacks {}", missing),
        ("has {} that the model does not have", unexpected),
        ("has {} of another shape", differing),
        ("has {} with values that are not finite", not_finite),
    )
    return ", ".join(sentence.format(_listed(names)) for sentence, names in parts if names)


def _listed(names: Collection[str]) -> str:
    count = f"{len(names):,} tensor{'s' if len(names) > 1 else ''}"
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return f"{count} ({', '.join(sorted(names)[:SHOWN])}{more})"


def file_faults(path: Path, expected: Mapping[str, Sequence[int]]) -> str:
    """Compare a safetensors file with the tensors that it must hold: the same names and shapes, finite values.

    Args:
        path: The file.
        expected: The shape of each tensor by its name.

    Returns:
        A description of the faults, or "".
    """
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping
            if faults := _named_faults(found, expected):
                return faults
            return describe(not_finite=[name for name in found if not is_finite(file.get_tensor(name))])
    except (OSError, SafetensorError) as error:
        return f"cannot be read as safetensors ({first_line(error)})"


def tensor_faults(found: Mapping[str, Tensor], expected: Mapping[str, Sequence[int]]) -> str:
    """Compare tensors in memory with the tensors that there must be; returns what `file_faults` does."""
    shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    return _named_faults(shapes, expected) or describe(
        not_finite=[name for name, tensor in found.items() if not is_finite(tensor)]
    )


def _named_faults(found: Mapping[str, Sequence[int]], expected: Mapping[str, Sequence[int]]) -> str:
    return describe(
        expected.keys() - found.keys(),
        found.keys() - expected.keys(),
        {
            name: (shape, expected[name])
            for name, shape in found.items()
            if name in expected and tuple(shape) != tuple(expected[name])
        },
    )


def model_faults(model: nn.Module) -> str:
    """Return a description of a model's parameters that are empty or not finite, or ""."""
    named = dict(model.named_parameters())
    return describe(not_finite=[name for name, value in named.items() if not value.numel() or not is_finite(value)])


@torch.no_grad()
def is_finite(tensor: Tensor) -> bool:
    """Return whether all values are finite, in one pass over the memory and without a copy of the tensor's size."""
    if not tensor.is_floating_point() or not tensor.numel() or tensor.is_meta or tensor.element_size() < 2:
        return True
    return bool(torch.isfinite(torch.stack(torch.aminmax(tensor.detach()))).all())
