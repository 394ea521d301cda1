"""Exported folders: the file `nextquill.json` beside an adapter, and the writer that needs nothing else.

The file says what PEFT's own files do not: the prompt, the decoding and the base model of the adapter.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import Field

from nextquill_core.config.base import Section
from nextquill_core.config.data import PromptConfig
from nextquill_core.config.model import ModelConfig
from nextquill_core.errors import ModelError, UserError
from nextquill_core.generation.decoding import DECODINGS, GREEDY, PAPER, SAMPLED
from nextquill_core.model.identity import BaseName
from storage.files import sha256_of
from storage.stored_json import read_checked, read_document

if TYPE_CHECKING:
    from nextquill_core.generation.engines import Engine
    from nextquill_core.writing.prompter import Preset
    from nextquill_core.writing.writer import Writer

    AnyWriter = TypeVar("AnyWriter", bound=Writer)

NAME = "nextquill.json"
VERSION = 1
EXPORT_AGAIN = "export it again with `nextquill export`"


class AdapterDescription(Section):
    """The content of `nextquill.json`.

    Attributes:
        version: Version of this form.
        method: Name of the method.
        history: Whether its prompts show a history.
        adapter: Fingerprint of the adapter's artifact.
        merged: Whether the folder is a whole model, with the adapter merged into it.
        base: The base model's name on any machine.
        base_files: SHA-256 of the files of a base model that is not on the hub, by name.
        dtype: Data type of the weights and of the computation.
        trust_remote_code: Whether the base model runs code that comes with it.
        prompt: Settings of the prompts; the template is plain or chat.
        weights: Weight policy and settings of the training; None where every token had weight 1.
        sane: The decoding preset that val chose; `greedy` where no evaluation was made.
        max_new_tokens: Maximum number of tokens in a text.
        paper_max_new_tokens: The same under the preset `paper`.
        seed: Seed of the run.
    """

    version: int = VERSION
    method: str
    history: bool
    adapter: str
    merged: bool = False
    base: BaseName
    base_files: Annotated[dict[str, str], Field(default_factory=dict)]
    dtype: str
    trust_remote_code: bool = False
    prompt: PromptConfig
    weights: dict[str, Any] | None = None
    sane: str = GREEDY.name
    max_new_tokens: int
    paper_max_new_tokens: int
    seed: int


def read_description(folder: Path) -> AdapterDescription:
    """Return what the file `nextquill.json` of an exported folder says.

    Raises:
        UserError: There is none, it cannot be used, or a newer version wrote it.
    """
    path = folder / NAME
    if not path.is_file():
        what = f"there is no {NAME}: an earlier version exported this folder, or it is no exported adapter"
        raise UserError(what, str(folder), EXPORT_AGAIN)
    document = read_document(path, EXPORT_AGAIN)
    version = document.get("version") if isinstance(document, dict) else None
    if isinstance(version, int) and version > VERSION:
        raise UserError(f"a newer version wrote this file (form {version})", str(path), "upgrade nextquill")
    found: AdapterDescription = read_checked(path, AdapterDescription, EXPORT_AGAIN)
    return found


def exported_writer(kind: type[AnyWriter], folder: Path, base: Path | None) -> AnyWriter:
    """Return the writer of an exported folder.

    Args:
        kind: Class of the writer.
        folder: The exported folder.
        base: Folder of the base model; None loads it from the hub, and a merged model from `folder`.

    Raises:
        UserError: The folder has no usable `nextquill.json`.
        ModelError: The base model is missing or another one.
    """
    from nextquill_core.model.loading import encoder_for, load_adapter, load_model, load_tokenizer
    from nextquill_core.writing.prompter import Identity

    about = read_description(folder)
    config = _base_model(about, folder, base)
    encoder = encoder_for(config, about.prompt, load_tokenizer(_model_config(about, str(folder))))

    @functools.cache
    def model() -> Any:
        loaded = load_model(config)
        return loaded if about.merged else load_adapter(loaded, folder)

    def engine(preset: Preset) -> Engine:
        from nextquill_core.generation.local_engine import TransformersEngine

        return TransformersEngine(
            model(),
            encoder.tokenizer,
            preset.decoding,
            max_new_tokens=preset.limit,
            stop=encoder.stop_id,
            batch_tokens=None,
            seed=about.seed,
        )

    identity = Identity(about.method, about.history, about.adapter, about.model_dump(mode="json"))
    return kind(encoder, identity, presets(about), engine, model)


def presets(about: AdapterDescription) -> dict[str, Preset]:
    """Return the decoding presets of an exported adapter by name."""
    from nextquill_core.writing.prompter import SANE, Preset

    found = {one.name: Preset(one, about.max_new_tokens) for one in (GREEDY, SAMPLED)}
    chosen = Preset(DECODINGS.get(about.sane, GREEDY), about.max_new_tokens)
    return {SANE: chosen, PAPER.name: Preset(PAPER, about.paper_max_new_tokens), **found}


def _model_config(about: AdapterDescription, name: str, revision: str = "main") -> ModelConfig:
    values = {"name_or_path": name, "revision": revision, "dtype": about.dtype}
    return ModelConfig.model_validate(values | {"trust_remote_code": about.trust_remote_code})


def _base_model(about: AdapterDescription, folder: Path, base: Path | None) -> ModelConfig:
    """Return which model the adapter is loaded onto."""
    if about.merged:
        return _model_config(about, str(folder))
    if base is not None:
        remedy = f"name the folder of {about.base.name}, whose files the model card lists"
        for name, digest in about.base_files.items():
            if name.endswith(".safetensors"):
                path = base / name
                if not path.is_file() or sha256_of(path) != digest:
                    raise ModelError(f"{name} is not that of the adapter's base model", str(base), remedy)
        return _model_config(about, str(base))
    if not about.base.on_hub:
        what = f"the base model {about.base.name} is not on the hub"
        raise ModelError(what, str(folder), "pass its folder as base=; `nextquill path model` prints it")
    return _model_config(about, about.base.name, about.base.revision or "main")
