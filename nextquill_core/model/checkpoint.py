"""The checkpoint of a small model that one process trains: one safetensors file, which is replaced atomically."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from nextquill_core.errors import UserError
from nextquill_core.model.loading import tensor_faults
from storage.files import atomic_path

EVERY_S = 5.0
LARGEST_SHARE = 0.01
Losses = Sequence[float] | Sequence[Sequence[float]]
"""By step, a loss or its parts."""
WEIGHT, MOMENT, LOSSES, RANDOM = "weight", "optimizer", "losses", "torch_rng"


class Checkpoint:
    """Model, optimizer, random state and losses after a step, in a safetensors file.

    A new checkpoint is due after `every_s` seconds, and later if writing is slow, so that writing takes at most 1 % of
    the time. The time of checkpoints does not change the result.

    Args:
        path: The file, which belongs to one training: the same data, settings and library versions.
        every_s: Seconds between two checkpoints; 0 writes one after each step.
    """

    def __init__(self, path: Path, every_s: float = EVERY_S) -> None:
        self.path = path
        self._every_s = every_s
        self._due = time.monotonic() + every_s

    def write_if_due(self, model: nn.Module, optimizer: torch.optim.Optimizer, losses: Losses) -> bool:
        """Write a checkpoint if one is due.

        Args:
            model: The model after its last step.
            optimizer: Its optimizer.
            losses: The loss of each step so far, or its parts.

        Returns:
            Whether a checkpoint was written.

        Raises:
            UserError: The file cannot be written.
        """
        started = time.monotonic()
        if started < self._due:
            return False
        self._write(model, optimizer, losses)
        now = time.monotonic()
        self._due = now + (max(self._every_s, (now - started) / LARGEST_SHARE) if self._every_s else 0.0)
        return True

    def _write(self, model: nn.Module, optimizer: torch.optim.Optimizer, losses: Losses) -> None:
        tensors = {f"{WEIGHT}/{name}": parameter.detach() for name, parameter in model.named_parameters()}
        for number, state in optimizer.state_dict()["state"].items():
            tensors |= {f"{MOMENT}/{number}/{key}": value for key, value in state.items()}
        tensors[LOSSES] = torch.tensor(losses, dtype=torch.float64)
        tensors[RANDOM] = torch.get_rng_state()
        data = save(tensors)
        try:
            with atomic_path(self.path) as temporary:
                temporary.write_bytes(data)
        except OSError as error:
            raise UserError(
                f"cannot write a checkpoint of {len(data) / 1e6:,.1f} MB: {os.strerror(error.errno or 0)}",
                str(self.path.parent),
                "free space there and run the same command again; training resumes at its last checkpoint",
            ) from error

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Any]:
        """Set model, optimizer and random state to the checkpoint.

        Args:
            model: A model of the same shape; its weights are overwritten.
            optimizer: Its optimizer, which has not stepped yet.

        Returns:
            The loss of each step that is done, or its parts; empty if there is no checkpoint that can be read.
        """
        try:
            with safe_open(self.path, framework="pt") as file:
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - no mapping
        except (OSError, SafetensorError):
            return []
        weights = {name.partition("/")[2]: value for name, value in tensors.items() if name.startswith(f"{WEIGHT}/")}
        if tensor_faults(weights, {name: tuple(value.shape) for name, value in model.named_parameters()}):
            return []
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(tensors[f"{WEIGHT}/{name}"])
        saved = optimizer.state_dict()
        for name, value in tensors.items():
            kind, _, rest = name.partition("/")
            if kind == MOMENT:
                number, _, key = rest.partition("/")
                saved["state"].setdefault(int(number), {})[key] = value
        optimizer.load_state_dict(saved)
        torch.set_rng_state(tensors[RANDOM])
        losses: list[Any] = tensors[LOSSES].tolist()
        return losses
