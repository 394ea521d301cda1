"""Whether a run still makes sense: finite numbers, and a loss that does not run away."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nextquill_core.training.batches import MicroBatch, TrainExample

WINDOW = 20
"""Steps that are averaged, and for which the average has to stay too high."""

FLOOR = 0.1
"""The best average counts as this share of the first at least: near zero, ratios are noise."""

NAMED_EXAMPLES = 8
NEARLY_ALL = 0.9
"""Share of clipped steps from which on clipping is no exception any more."""


class RunawayLoss:
    """Sees a loss that has left its course for good.

    The loss is averaged over the last `WINDOW` steps. It has run away when the average was more than `ratio` times the
    best one for `WINDOW` steps on end.

    Args:
        ratio: As above; None looks at nothing.
        losses: Those of the steps that a resumed run has behind it.
    """

    def __init__(self, ratio: float | None, losses: Iterable[float] = ()) -> None:
        self.ratio = ratio
        self.average = self.best = self.floor = math.inf
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self._above = 0
        self._last = 0.0
        for loss in losses:
            self.add(loss)

    def add(self, loss: float) -> None:
        """Take the loss of one more step."""
        self._last = loss
        self._recent.append(loss)
        if len(self._recent) < WINDOW:
            return
        first = math.isinf(self.average)
        self.average = sum(self._recent) / WINDOW
        if first:
            self.floor = FLOOR * self.average
        self._above = self._above + 1 if self.average > self.limit else 0
        self.best = max(self.floor, min(self.best, self.average))

    @property
    def limit(self) -> float:
        """What the average must not exceed; infinite as long as there is none."""
        return math.inf if self.ratio is None else self.ratio * self.best

    @property
    def suspected(self) -> bool:
        """Whether this is no time for a checkpoint: the last one is better."""
        return self._above > 0 or self._last > self.limit

    @property
    def found(self) -> bool:
        """Whether the run should end."""
        return self._above >= WINDOW


class Clipping:
    """Counts the optimizer steps whose gradient was scaled down to `train.max_grad_norm`.

    Args:
        limit: The greatest norm that a gradient keeps.
        norms: Those of the steps that a resumed run has behind it.
    """

    def __init__(self, limit: float, norms: Iterable[float] = ()) -> None:
        self.limit = limit
        self.clipped = self.steps = 0
        for norm in norms:
            self.add(norm)

    def add(self, norm: float) -> None:
        """Take the gradient norm of one more step, before clipping; one that overflowed in float16 made no step."""
        self.steps += 1
        self.clipped += math.isfinite(norm) and norm > self.limit

    @property
    def share(self) -> float:
        """Share of the steps that were clipped."""
        return self.clipped / self.steps if self.steps else 0.0


def clipping_warning(metrics: Mapping[str, float], limit: float, normalization: str) -> str:
    """What to say once when nearly all of the first `WINDOW` steps were clipped, or of all, if there are fewer.

    Args:
        metrics: A line of the training curve.
        limit: `train.max_grad_norm`.
        normalization: `train.normalization`.

    Returns:
        A sentence on what it does and what to set; empty as long as there is nothing to say.
    """
    if metrics["step"] < min(WINDOW, metrics["steps"]) or metrics["clipped_share"] < NEARLY_ALL:
        return ""
    remedy = "set train.normalization to weight or sample_weight, or " if normalization == "sequence" else ""
    return (
        f"{metrics['clipped_share']:.0%} of the steps so far had a gradient norm above train.max_grad_norm {limit:g} "
        f"(the last one {metrics['grad_norm']:.3g}) and were scaled down to it, so every step has the same length; "
        f"{remedy}raise train.max_grad_norm if that is not meant (see docs/explanation/training.md)"
    )


class GradientWatch:
    """Notes gradients that are not finite as they come out of the backward pass, before any optimizer sees them.

    Args:
        parameters: What is trained.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._norms: list[Tensor] = []
        for parameter in parameters:
            parameter.register_hook(self._note)

    def finite(self) -> Tensor:
        """Whether all gradients since the last call were finite, as a tensor, so that no device is waited for."""
        norms, self._norms = self._norms, []
        return torch.isfinite(torch.stack(norms)).all() if norms else torch.tensor(True)

    def _note(self, gradient: Tensor) -> None:
        self._norms.append(norm_of(gradient))


def norm_of(gradient: Tensor) -> Tensor:
    """The 2-norm in single precision; clipping needs it to be finite."""
    norm: Tensor = torch.linalg.vector_norm(gradient.detach(), dtype=torch.float32)
    return norm


def offenders(micros: Sequence[MicroBatch], finding: Callable[[MicroBatch, TrainExample], str]) -> str:
    """The examples of some micro-batches that are not finite by themselves, or all, if none is; a call for all ranks.

    Args:
        micros: Micro-batches in which something was not finite.
        finding: Computes one example alone and says what was wrong with it; empty if nothing.

    Returns:
        The examples with what was found, for one line of an error.
    """
    found: list[str] = []
    together: list[str] = []
    for micro in micros:
        for example in micro.examples:
            name = example.pair.example_id
            if len(found) <= NAMED_EXAMPLES and name not in together:  # a stand-in is in two of them
                together.append(name)
                if said := finding(micro, example):
                    found.append(f"{name} ({said})")
    if not found:
        return _some(together) + " (together; each alone is finite)"
    return _some(found)


def _some(names: list[str]) -> str:
    more = len(names) - NAMED_EXAMPLES
    return ", ".join(names[:NAMED_EXAMPLES]) + (" and more" if more > 0 else "")


def gradients_finite(loss: Tensor, parameters: Sequence[nn.Parameter]) -> bool:
    """Whether a loss has finite gradients; leaves `.grad` alone."""
    gradients: tuple[Any, ...] = torch.autograd.grad(loss, parameters, allow_unused=True)
    return all(bool(torch.isfinite(norm_of(gradient))) for gradient in gradients if gradient is not None)
