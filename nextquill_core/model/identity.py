"""What decides which model this is, told without loading it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nextquill_core.errors import ModelError
from storage import DigestCache

if TYPE_CHECKING:
    from nextquill_core.config import ModelConfig

WEIGHTS_AND_TOKENIZER = ("*.safetensors", "*.json", "*.model", "*.jinja", "*.txt")
HUB_CACHE = re.compile(r"models--(?P<owner>[^/]+?)--(?P<name>[^/]+)")
"""Folder of a model in a Hugging Face cache."""
TINY = "nextquill-tiny"
"""The offline base model's name in adapters; its folder is `model/` of the model artifact."""

CODE = ("*.py",)
"""Python files of a model folder, which are run where `model.trust_remote_code` is set."""
REMEDY = "set model.name_or_path to a folder, a hub name (org/name) or `tiny`"


@dataclass(frozen=True)
class ModelSpec:
    """Which model, and how to hold it.

    Attributes:
        name_or_path: A hub name or a Hugging Face folder.
        dtype: Name of a torch dtype.
        attention: `auto`, or an implementation that transformers knows.
    """

    name_or_path: str
    revision: str = "main"
    dtype: str = "float32"
    attention: str = "auto"
    trust_remote_code: bool = False


@dataclass(frozen=True)
class BaseName:
    """What a base model is called on any machine.

    Attributes:
        name: The hub name; the folder's name where the model is a local folder that is no snapshot of a hub model.
        revision: On the hub; None where it is not from there.
    """

    name: str
    revision: str | None = None

    @property
    def on_hub(self) -> bool:
        """Whether others can load it by its name."""
        return self.revision is not None


def base_name(name_or_path: str, revision: str) -> BaseName:
    """The name of a model for other machines, never a path of this one.

    A folder in a Hugging Face cache (`models--ORG--NAME/snapshots/REVISION`) says which hub model it is.

    Args:
        name_or_path: A hub name, a folder, or `tiny`.
        revision: `model.revision`; counts for hub names alone.
    """
    folder = Path(name_or_path).expanduser()
    if name_or_path == "tiny":
        return BaseName(TINY)
    if not folder.is_dir():
        return BaseName(name_or_path, revision)
    for path in (folder.absolute(), folder.resolve()):
        if path.parent.name == "snapshots" and (found := HUB_CACHE.fullmatch(path.parent.parent.name)):
            return BaseName(f"{found['owner']}/{found['name']}", path.name)
    return BaseName(folder.resolve().name)


def is_hub_name(name: str) -> bool:
    """Return whether a model's name is one of the hub's (OWNER/NAME), and not a folder of this machine."""
    return name.count("/") == 1 and name[0] not in "./~" and not Path(name).expanduser().is_dir()


def external_model_identity(config: ModelConfig, digests: DigestCache) -> dict[str, Any]:
    """Name and revision of a hub model, or the digests of a local folder's files; and how it is loaded.

    Raises:
        ModelError: The name can only be a folder, and there is no model in it.
    """
    how = {"dtype": config.dtype, "trust_remote_code": config.trust_remote_code}
    folder = Path(config.name_or_path).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError("not a Hugging Face model folder: it has no config.json", config.name_or_path, REMEDY)
        patterns = (*WEIGHTS_AND_TOKENIZER, *(CODE if config.trust_remote_code else ()))
        files = sorted({path for pattern in patterns for path in folder.glob(pattern)})
        return {"files": {path.name: digests.whole(path) for path in files}, **how}
    if not is_hub_name(config.name_or_path):
        raise ModelError("no such model folder", config.name_or_path, REMEDY)
    return {"name": config.name_or_path, "revision": config.revision, **how}
