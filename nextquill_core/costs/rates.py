"""How fast accelerators work: from measurements where there are any, otherwise scaled, and each rate says which.

No accelerator has been measured yet. `python -m benchmarks.gpu` measures one, and `nextquill plan --rates FILE` reads
what it printed. Until then a rate is the product of the data sheet, of the share of it that plain products are assumed
to reach, and of the share of the plain products' rate that useful work reached on a CPU (docs/BENCHMARKS.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nextquill_core.costs.cards import CARDS, Card
from nextquill_core.costs.shape import ModelShape
from nextquill_core.costs.work import Answers, Work
from nextquill_core.errors import UserError
from storage.stored_json import read_lines

Kind = Literal["score", "train", "generate"]
"""Kinds of work, as `benchmarks/gpu.py` names them."""


ON_CPU: Mapping[Kind, float] = {"score": 0.92, "train": 0.6}
"""Share of the rate of plain products that useful operations reached on a CPU (docs/BENCHMARKS.md)."""
PLAIN_PRODUCTS = 0.75
"""Share of the data sheet that plain products are assumed to reach."""
STREAMED = 0.7
"""Share of the data sheet's bandwidth that a decode step is assumed to reach."""
LAUNCH_S = 0.5e-3
"""Assumed shortest time of a layer in a decode step, in which its kernels are launched one by one."""
MOST_POSITIONS = 262_144
"""Positions of a batch at most, as in `generation.cache`."""
LOAD_S, LOADED_S = 10.0, 1e-9
"""Time to start a process that loads a model, and the time for a byte of it."""
PROCESSES_S = 15.0
"""Time until the processes of a training have started and have set up DeepSpeed."""


@dataclass(frozen=True)
class Rates:
    """How fast one machine works with one model.

    Attributes:
        name: Name of the card, or `this machine`.
        forward: Operations per second in forward passes.
        training: Operations per second in training.
        step_s: Seconds of a decode step without its rows.
        row_s: Seconds that one more row adds to a decode step.
        positions: Positions that a batch can hold.
        source: What was measured and what is scaled, in a sentence.
    """

    name: str
    forward: float
    training: float
    step_s: float
    row_s: float
    positions: float
    source: str

    def seconds(self, work: Work, model_bytes: float, *, longest: bool = False) -> float:
        """Return how long a step takes, without what only the processor does.

        Args:
            work: The step's work.
            model_bytes: Bytes of the model's weights.
            longest: Whether every text reaches its maximum length.
        """
        starts = work.loads * (LOAD_S + LOADED_S * model_bytes)
        starts += work.processes * (PROCESSES_S + LOADED_S * model_bytes)
        decoding = sum(self._decoding(answers, longest=longest) for answers in work.answers)
        return work.forward / self.forward + work.training / self.training + decoding + starts

    def _decoding(self, answers: Answers, *, longest: bool) -> float:
        tokens = answers.most if longest else answers.tokens
        rows = max(1.0, min(answers.count, self.positions / (answers.branches * (answers.prompt + tokens))))
        steps = tokens * max(1.0, answers.count / rows)
        return steps * (self.step_s + min(rows, answers.count) * answers.branches * self.row_s)


@dataclass(frozen=True)
class Measured:
    """A share of a data sheet that a card reached: of the products in `score` and `train`, else of the bandwidth."""

    card: str
    kind: Kind
    share: float


def read_measured(path: Path) -> list[Measured]:
    """Return what `python -m benchmarks.gpu` printed about the cards of this module.

    Raises:
        UserError: The file cannot be read, or has no such line.
    """
    remedy = "write what `python -m benchmarks.gpu` prints into a file, and name that"
    lines = read_lines(path, dict[str, Any], remedy)
    found = [
        Measured(card, line["stage"], float(share))
        for line in lines
        for card in CARDS
        if card in str(line.get("chip"))
        for share in [line.get("share_of_bandwidth" if line.get("stage") == "generate" else "share_of_data_sheet")]
        if line.get("stage") in ("score", "train", "generate") and isinstance(share, int | float) and share > 0
    ]
    if not found:
        raise UserError(f"no line measures one of {', '.join(CARDS)}", str(path), remedy)
    return found


def card_rates(card: Card, shape: ModelShape, number_bytes: int, context: float, known: Iterable[Measured]) -> Rates:
    """Return how fast a card works with a model.

    Args:
        card: The card.
        shape: The model.
        number_bytes: Bytes of a number of the model and of its cache.
        context: Mean number of positions that a row's token attends to.
        known: What was measured on this and on other cards.
    """
    measured = list(known)
    forward, how_forward = _share(card, "score", measured)
    training, how_training = _share(card, "train", measured)
    streamed, how_streamed = _share(card, "generate", measured)
    bandwidth = card.bandwidth * streamed
    weights = shape.parameters * number_bytes
    floor = 0.0 if how_streamed.startswith("measured") else shape.layers * LAUNCH_S
    row = shape.cached * number_bytes * context / bandwidth + 2 * (shape.body + shape.head) / (card.products * forward)
    sources = {"scoring": how_forward, "training": how_training, "decoding": how_streamed}
    return Rates(
        card.name,
        card.products * forward,
        card.products * training,
        max(weights / bandwidth, floor),
        row,
        min(MOST_POSITIONS, max(0.0, card.memory - weights) / 2 / (shape.cached * number_bytes)),
        "; ".join(f"{what} {how}" for what, how in sources.items()),
    )


def _share(card: Card, kind: Kind, measured: Iterable[Measured]) -> tuple[float, str]:
    """Return the share of the data sheet that a kind of work reaches on a card, and where it is from."""
    of_kind = {one.card: one.share for one in measured if one.kind == kind}
    if card.name in of_kind:
        return of_kind[card.name], f"measured ({of_kind[card.name]:.2f} of the data sheet)"
    if of_kind:
        other, share = next(iter(of_kind.items()))
        return share, f"scaled from the {other} by the data sheets ({share:.2f} of both)"
    if kind == "generate":
        return STREAMED, f"assumed ({STREAMED:g} of the bandwidth, {LAUNCH_S * 1e3:g} ms a layer at least)"
    share = PLAIN_PRODUCTS * ON_CPU[kind]
    return share, f"scaled from a CPU ({share:.2f} of the data sheet: {ON_CPU[kind]:g} × an assumed {PLAIN_PRODUCTS:g})"
