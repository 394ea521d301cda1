"""What decides which model this is, told without loading it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nextquill_core.errors import ModelError
from storage import DigestCache

if TYPE_CHECKING:
    from nextquill_core.config import ModelConfig

WEIGHTS_AND_TOKENIZER = ("*.safetensors", "*.json", "*.model", "*.jinja", "*.txt")
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


def external_model_identity(config: ModelConfig, digests: DigestCache) -> dict[str, Any]:
    """Name and revision of a hub model, or the digests of a local folder's files.

    Raises:
        ModelError: The name can only be a folder, and there is no model in it.
    """
    folder = Path(config.name_or_path).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError("not a Hugging Face model folder: it has no config.json", config.name_or_path, REMEDY)
        files = sorted({path for pattern in WEIGHTS_AND_TOKENIZER for path in folder.glob(pattern)})
        return {"files": {path.name: digests.whole(path) for path in files}, "dtype": config.dtype}
    if config.name_or_path.count("/") != 1 or config.name_or_path[0] in "./~":
        raise ModelError("no such model folder", config.name_or_path, REMEDY)
    return {"name": config.name_or_path, "revision": config.revision, "dtype": config.dtype}
