"""How an encoder's states become one vector, as the files of sentence-transformers beside the model say.

A model without such files is pooled as Contriever is: by the mean, not normalised.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nextquill_core.errors import ModelError
from nextquill_core.model.identity import model_file
from storage.files import read_json

MODULES, LENGTH, POOLING = "modules.json", "sentence_bert_config.json", "1_Pooling/config.json"
FILES = (MODULES, LENGTH, POOLING)
Mode = Literal["mean", "cls", "last"]
MODES: dict[str, Mode] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
}
REMEDY = "name an encoder that pools by the mean or by its first or last token"
STATES: dict[Mode, str] = {
    "mean": "mean of the last hidden states",
    "cls": "last hidden state of the first token",
    "last": "last hidden state of the last token",
}


@dataclass(frozen=True)
class Pooling:
    """How the states of a text's tokens become its vector.

    Attributes:
        mode: The mean of the states, or the state of the first token (`cls`) or of the last one, markers included.
        normalized: Whether vectors have the length 1, so that their inner product is the cosine.
        max_tokens: Maximum number of tokens in a text that the model asks for; None for no wish.
    """

    mode: Mode = "mean"
    normalized: bool = False
    max_tokens: int | None = None

    @property
    def described(self) -> dict[str, str]:
        """How vectors are made and compared, in words."""
        return {"vectors": STATES[self.mode], "similarity": "cosine" if self.normalized else "inner product"}


def stored_pooling(model: str, revision: str = "main") -> Pooling:
    """Return how a model pools, from its files on this machine.

    Args:
        model: A folder, or a hub name whose files are in the local cache.
        revision: Branch, tag or commit on the hub.

    Raises:
        ModelError: The files ask for something else than a mean, first or last token, perhaps normalised.
    """
    modules = _read(model_file(model, MODULES, revision), model, list)
    if modules is None:
        return Pooling()
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in modules if isinstance(module, dict)]
    if others := sorted(set(kinds) - {"Transformer", "Pooling", "Normalize"}):
        raise ModelError(f"its vectors pass through {', '.join(others)}, which is not supported", model, REMEDY)
    settings = _read(model_file(model, POOLING, revision), model, dict) or {}
    asked = [key for key, value in settings.items() if key.startswith("pooling_mode") and value is True]
    named = settings.get("pooling_mode", [])
    asked += map(_older_key, named if isinstance(named, list) else [named])
    if len(asked) > 1 or not set(asked) <= MODES.keys():
        raise ModelError(f"it pools by {', '.join(asked)}, which is not supported", model, REMEDY)
    length = (_read(model_file(model, LENGTH, revision), model, dict) or {}).get("max_seq_length")
    return Pooling(
        MODES[asked[0]] if asked else "mean", "Normalize" in kinds, length if isinstance(length, int) else None
    )


def _older_key(mode: Any) -> str:
    """Return the key that sentence-transformers had up to 5.3 for a value that `pooling_mode` has since 5.4."""
    keys = [f"pooling_mode_{mode}{end}" for end in ("_tokens", "_token", "")]
    return next((key for key in keys if key in MODES), str(mode))


def _read(path: Path | None, model: str, form: type) -> Any:
    """Return the list or object in a JSON file, or None without a file."""
    if path is None:
        return None
    try:
        value = read_json(path)
    except (OSError, ValueError):
        value = None
    if not isinstance(value, form):
        raise ModelError(f"{path.name} cannot be read", model, "copy or download the model again")
    return value
