"""Whether the tensors of a file are exactly those that a model or an adapter has."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from nextquill_core.errors import first_line

SHOWN = 3
"""Tensors that a message names of each kind of fault; the rest is counted."""


def describe(
    missing: Collection[str] = (),
    unexpected: Collection[str] = (),
    shapes: Mapping[str, tuple[Sequence[int], Sequence[int]]] | None = None,
    not_finite: Collection[str] = (),
) -> str:
    """Return one clause for each kind of fault, or "" where there is none.

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
    """Compare a safetensors file with the tensors that it must hold: no more, no fewer, of the same shapes, finite.

    Args:
        path: The file.
        expected: The shape of each tensor by its name.

    Returns:
        What is wrong, or "".
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
    """Compare tensors in memory with the tensors that there must be, as `file_faults` does."""
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
    """Return which parameters of a model are empty or not finite, or ""."""
    named = dict(model.named_parameters())
    return describe(not_finite=[name for name, value in named.items() if not value.numel() or not is_finite(value)])


@torch.no_grad()
def is_finite(tensor: Tensor) -> bool:
    """Return whether all values are finite, in one pass over the memory and without a copy of the tensor's size."""
    if not tensor.is_floating_point() or not tensor.numel() or tensor.is_meta or tensor.element_size() < 2:
        return True
    return bool(torch.isfinite(torch.stack(torch.aminmax(tensor.detach()))).all())
