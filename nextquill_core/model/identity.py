"""What is known about a base model without loading it: names, revisions, digests of its files, and limits.

Limits are embedding rows for the tokenizer and positions for the prompts. A model with too few of either fails in the
middle of the work, and on a GPU without a reason in its message. So both are compared before anything is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from nextquill_core.config.model import ModelConfig
from nextquill_core.errors import ModelError
from storage import DigestCache
from storage.files import read_json
from storage.stored_json import expect_form

WEIGHTS_AND_TOKENIZER = ("*.safetensors", "*.json", "*.model", "*.jinja", "*.txt")
HUB_CACHE = re.compile(r"models--(?P<owner>[^/]+?)--(?P<name>[^/]+)")
"""Folder of a model in a Hugging Face cache."""
TINY = "nextquill-tiny"
"""The offline base model's name in adapters; its folder is `model/` of the model artifact."""
CODE = ("*.py",)
"""Python files of a model folder, which run only if `model.trust_remote_code` is set."""
GGUF = ".gguf"
"""How the name of a GGUF file ends."""
COPY_MODEL = "copy or download the model again, all of its files"
REMEDY = "set model.name_or_path to a folder, a .gguf file, a hub name (org/name), `smollm2` or `tiny`"


@dataclass(frozen=True)
class BaseName:
    """A base model's name, valid on any machine.

    Attributes:
        name: The hub name; the folder's name for a local folder that is not a snapshot of a hub model; or the name of
            a GGUF file without its ending.
        revision: Revision on the hub; None for a model that is not from the hub.
    """

    name: str
    revision: str | None = None

    @property
    def on_hub(self) -> bool:
        """Whether the name can be loaded on other machines."""
        return self.revision is not None


def base_name(name_or_path: str, revision: str) -> BaseName:
    """Return a model's name for other machines, which is never a path of this one.

    The path of a folder in a Hugging Face cache (`models--ORG--NAME/snapshots/REVISION`) names the hub model.

    Args:
        name_or_path: A hub name, a folder, a GGUF file, or `tiny`.
        revision: `model.revision`, which counts for hub names only.
    """
    folder = Path(name_or_path).expanduser()
    if name_or_path == "tiny":
        return BaseName(TINY)
    if is_gguf(name_or_path):
        return BaseName(folder.stem)
    if not folder.is_dir():
        return BaseName(name_or_path, revision)
    for path in (folder.absolute(), folder.resolve()):
        if path.parent.name == "snapshots" and (found := HUB_CACHE.fullmatch(path.parent.parent.name)):
            return BaseName(f"{found['owner']}/{found['name']}", path.name)
    return BaseName(folder.resolve().name)


def is_gguf(name: str) -> bool:
    """Return whether the name of a model is that of a GGUF file, which need not exist."""
    return name.lower().endswith(GGUF) and not Path(name).expanduser().is_dir()


def is_hub_name(name: str) -> bool:
    """Return whether a name is a hub name (OWNER/NAME) and neither a folder of this machine nor a GGUF file."""
    local = name[:1] in "./~" or is_gguf(name) or Path(name).expanduser().is_dir()
    return name.count("/") == 1 and not local


def model_file(model: str, name: str, revision: str = "main") -> Path | None:
    """Return the path of a model's file in its folder or in the local hub cache, or None.

    Args:
        model: A folder or a hub name.
        name: Name of the file.
        revision: Branch, tag or commit on the hub.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    if not is_hub_name(model):
        return None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        path = try_to_load_from_cache(model, name, revision=revision)
    except HFValidationError:
        return None
    return Path(path) if isinstance(path, str) else None


def external_model_identity(config: ModelConfig, digests: DigestCache, remedy: str = REMEDY) -> dict[str, Any]:
    """Return what identifies a model in fingerprints: its hub name and revision or its files' digests, and its dtype.

    Args:
        config: Which model it is, and how it is loaded.
        digests: Digests of the files of a local folder.
        remedy: What to do if there is no such model, for the message.

    Raises:
        ModelError: The name is not a hub name, and there is no such model folder or GGUF file.
    """
    how = {"dtype": config.dtype, "trust_remote_code": config.trust_remote_code}
    folder = Path(config.name_or_path).expanduser()
    if is_gguf(config.name_or_path):
        if not folder.is_file():
            raise ModelError("no such GGUF file", config.name_or_path, remedy)
        return {"gguf": digests.whole(folder), "dtype": config.dtype}
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError("not a Hugging Face model folder: it has no config.json", config.name_or_path, remedy)
        patterns = (*WEIGHTS_AND_TOKENIZER, *(CODE if config.trust_remote_code else ()))
        files = sorted({path for pattern in patterns for path in folder.glob(pattern)})
        return {"files": {path.name: digests.whole(path) for path in files}, **how}
    if not is_hub_name(config.name_or_path):
        raise ModelError("no such model folder", config.name_or_path, remedy)
    return {"name": config.name_or_path, "revision": config.revision, **how}


UNLIMITED = 10**7
"""A tokenizer's `model_max_length` above this means that there is no limit."""
POSITIONS = ("max_position_embeddings", "n_positions")


def check_limits(model: str, revision: str, lengths: Mapping[str, int]) -> None:
    """Check a model's files against each other and against the lengths that the settings allow.

    Files that are not on this machine are skipped.

    Args:
        model: A folder, a GGUF file or a hub name.
        revision: Branch, tag or commit on the hub.
        lengths: Maximum number of tokens in a sequence, by the text that names their settings.

    Raises:
        UserError: A file has an unexpected form.
        ModelError: The tokenizer has a token without an embedding row that may occur, or the model has too few
            positions.
    """
    if is_gguf(model):
        from nextquill_core.model.gguf import read_header

        positions = read_header(Path(model).expanduser()).positions
    else:
        config = _json(model_file(model, "config.json", revision))
        settings = _json(model_file(model, "tokenizer_config.json", revision))
        rows = _text_config(config).get("vocab_size")
        with expect_form(f"the JSON files of {model}", COPY_MODEL):
            if isinstance(rows, int):
                _check_rows(model, revision, settings, rows)
            positions = _positions(config) or _finite(settings.get("model_max_length"))
    for names, length in lengths.items():
        if positions is not None and length > positions:
            raise ModelError(
                f"the model has {positions:,} positions, and {names} allow {length:,} tokens",
                model,
                f"lower them to {positions:,} together",
            )


def _check_rows(model: str, revision: str, settings: Mapping[str, Any], rows: int) -> None:
    path = model_file(model, "tokenizer.json", revision)
    if path is None:
        return
    written = path.stat()
    beyond = _beyond(path, rows, written.st_mtime_ns, written.st_size)
    if not beyond:
        return
    named = {*_named(settings), *_named(_json(model_file(model, "special_tokens_map.json", revision)))}
    template = str(settings.get("chat_template") or "")
    if jinja := model_file(model, "chat_template.jinja", revision):
        template += jinja.read_text(encoding="utf-8", errors="replace")
    # A special token that nothing writes cannot occur (Gemma 3's text models have one for images without a row).
    if all(special and text not in named and text not in template for _, text, special in beyond):
        return
    tokens = max(number for number, _, _ in beyond) + 1
    raise ModelError(
        f"the tokenizer has {tokens:,} tokens, and the model's embedding has {rows:,} rows",
        model,
        f"use the tokenizer that the model was trained with, or call model.resize_token_embeddings({tokens}) and save "
        "the model again",
    )


@lru_cache(maxsize=4)
def _beyond(path: Path, rows: int, _modified: int, _size: int) -> tuple[tuple[int, str, bool], ...]:
    """Return (id, text, whether special) of each token without a row; the last two arguments are keys of the cache."""
    description = _json(path)
    vocabulary = description.get("model", {}).get("vocab", {})
    if isinstance(vocabulary, list):
        vocabulary = {entry[0]: number for number, entry in enumerate(vocabulary)}
    added = {token["id"]: token for token in description.get("added_tokens", [])}
    found = {number: (text, False) for text, number in vocabulary.items() if number >= rows}
    found |= {number: (token["content"], bool(token["special"])) for number, token in added.items() if number >= rows}
    return tuple((number, *found[number]) for number in sorted(found))


def _named(settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield the special tokens that have a role in the settings, such as `pad_token`."""
    for key, value in settings.items():
        text = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(text, str):
            yield text


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the settings of the language model, which are a part of the file for models that also read images."""
    text = config.get("text_config")
    return text if isinstance(text, dict) else config


def _positions(config: Mapping[str, Any]) -> int | None:
    """Return the number of positions of a model with its scaling of rotary positions; None for no limit."""
    text = _text_config(config)
    learned = next((text[key] for key in POSITIONS if isinstance(text.get(key), int)), None)
    if learned is None:
        return None
    most = float(learned)
    for scaling in _scalings(text.get("rope_scaling") or text.get("rope_parameters")):
        kind, factor = scaling.get("rope_type") or scaling.get("type"), scaling.get("factor")
        if kind not in (None, "default") and isinstance(factor, int | float):
            original = scaling.get("original_max_position_embeddings") or learned
            most = max(most, factor * original)
    return int(most)


def _scalings(value: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the description of a scaling, or one for each kind of layer."""
    if isinstance(value, dict):
        yield value
        for part in value.values():
            yield from _scalings(part)


def _finite(length: Any) -> int | None:
    return int(length) if isinstance(length, int | float) and 0 < length < UNLIMITED else None


def _json(path: Path | None) -> dict[str, Any]:
    """Return the object in a JSON file; an empty one if it cannot be read, which loading the model will report."""
    try:
        value = read_json(path) if path else {}
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
