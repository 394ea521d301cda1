"""Files with one tensor for each example, such as its style vector, named by the example's id."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nextquill_core.errors import ModelError, first_line
from storage.files import atomic_path

AGAIN = "run `nextquill evaluate --force`"


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors to a safetensors file."""
    with atomic_path(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)


def load_tensors(paths: Iterable[Path], what: str) -> dict[str, Tensor]:
    """Return the tensors of some files by name.

    Args:
        paths: The files.
        what: What they hold, for the error message.

    Raises:
        ModelError: A file cannot be read.
    """
    found: dict[str, Tensor] = {}
    for path in paths:
        try:
            with safe_open(path, framework="pt") as file:
                found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        except (OSError, SafetensorError) as error:
            raise ModelError(f"holds no {what} ({first_line(error)})", str(path), AGAIN) from error
    return found
