"""The losses on the val split while training goes on, and the adapter that was best there."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from nextquill_core.schemas import Example
from nextquill_core.training import curves
from nextquill_core.training.batches import TrainExample, micro_batches, steps_per_epoch
from nextquill_core.training.checkpoints import example_loss, save_adapter
from nextquill_core.training.disk import Writer, sweep, whole_folder
from nextquill_core.training.objective import Denominators, denominators
from nextquill_core.training.spec import TrainSpec


class Phase(Protocol):
    """Called with what is being done besides steps, empty when it has ended, and how far it is."""

    def __call__(self, phase: str, done: float = 0, total: float = 0) -> None:
        """Report `done` of `total` units of a phase."""


def no_phase(phase: str, done: float = 0, total: float = 0) -> None:
    """Report nothing."""


def chosen(examples: Iterable[Example], count: int, seed: int) -> list[Example]:
    """At most `count` examples: those with the smallest hash of seed and id, in the order of their ids.

    Who is chosen does not depend on who else is there, beyond their number.
    """

    def place(example: Example) -> bytes:
        return hashlib.sha256(f"{seed}:{example.example_id}".encode()).digest()

    return sorted(sorted(examples, key=place)[:count], key=lambda example: example.example_id)


class Validation:
    """Measures the val split every so often and keeps the best adapter where that is asked for.

    Args:
        spec: The order.
        engine: What trains.
        examples: The chosen val examples with their weights; without any, nothing is measured.
        writer: Of the run's folder.
        train_examples: How many there are, which decides how long an epoch is.
        phase: Called while measuring.
    """

    def __init__(
        self,
        spec: TrainSpec,
        engine: Any,
        examples: Sequence[TrainExample],
        writer: Writer,
        train_examples: int,
        phase: Phase = no_phase,
    ) -> None:
        self._phase = phase
        self.spec = spec
        self.engine = engine
        self.examples = examples
        self.writer = writer
        epoch = steps_per_epoch(train_examples, spec.global_batch)
        self.every = epoch if spec.val_every is None else spec.val_every
        self.steps = spec.epochs * epoch
        self._curve = writer.output / curves.VALIDATION
        self._kept = writer.output / "scratch" / "best"
        self._best: dict[str, Any] | None = None

    def resume(self, step: int) -> None:
        """Forget what was measured after `step`; a call for all ranks.

        Adapters that were the best later than that are left alone: the same steps will find them again.
        """
        if not self.examples:
            return

        def forget() -> None:
            sweep(self._kept)
            curves.cut(self._curve, step)

        self.writer(forget, "the curve")
        for line in curves.read(self._curve):
            self._compare(line)

    def due(self, step: int) -> bool:
        """Whether to measure after `step` steps; always after the last."""
        return bool(self.examples and self.every) and (step % self.every == 0 or step == self.steps)

    def run(self, step: int) -> dict[str, Any]:
        """Measure, write the line, keep the adapter if it is the best; a call for all ranks.

        Returns:
            `loss` L, `normal` L_n and `causal` L_p as they are trained on, `nll` in nats a token without weights.
            Where the best adapter is kept also `first_example`: the negative log-likelihood of that example in nats.
        """
        line = {"step": step, **self.measure(), "examples": len(self.examples)}
        if self.spec.keep == "best":
            line["first_example"] = example_loss(self.engine, self.examples[0])
        self.writer(lambda: curves.append(self._curve, line), "the curve")
        if self._compare(line) and self.spec.keep == "best":
            save_adapter(self.engine, self._kept / _tag(step), self.writer)
        return line

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """The losses over all examples, without dropout; a call for all ranks."""
        tokens = sum(len(example.pair.target) for example in self.examples)
        module = self.engine.module
        module.eval()
        loss, normal, causal = self._sums(self.examples, denominators(self.examples, self.spec), 0.0).tolist()
        plain = [replace(example, weights=[1.0] * len(example.pair.target)) for example in self.examples]
        with module.plain_likelihood():
            nll = self._sums(plain, Denominators(1.0, 1.0), 0.5)[1].item() / tokens
        self.engine.train()
        self._phase("")
        return {"loss": loss, "normal": normal, "causal": causal, "nll": nll}

    def _sums(self, examples: Sequence[TrainExample], whole: Denominators, before: float) -> Tensor:
        """The losses summed over all ranks; `before` is the share of the validation that is done, of two halves."""
        rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
        sums = torch.zeros(3, device=self.engine.device)
        mine = micro_batches(examples, self.spec.batch_tokens, ranks)[rank::ranks]
        for position, micro in enumerate(mine):
            share = before + 0.5 * position / len(mine)
            self._phase("validating", round(share * len(examples)), len(examples))
            output = self.engine(micro.examples, whole)
            sums += torch.stack([part.detach() * micro.scale for part in output])
        if ranks > 1:
            torch.distributed.all_reduce(sums)
        return sums

    def prune(self) -> None:
        """After a checkpoint: drop the adapters that were the best before the best one."""
        best = _tag(self._best["step"]) if self._best else ""

        def drop() -> None:
            for folder in self._kept.glob("step-*"):
                if folder.name < best:
                    shutil.rmtree(folder)

        self.writer(drop, "the adapter")

    def publish(self, adapter: Path) -> float | None:
        """Give the best adapter its place, if the best is to be kept; a call for all ranks.

        Returns:
            The negative log-likelihood in nats that it gives the first val example; None where the last is kept.
        """
        if self.spec.keep != "best" or self._best is None:
            return None
        source = self._kept / _tag(self._best["step"])

        def copy() -> None:
            with whole_folder(adapter) as folder:
                shutil.copytree(source, folder, dirs_exist_ok=True)

        self.writer(copy, "the adapter")
        expected: float = self._best["first_example"]
        return expected

    def _compare(self, line: dict[str, Any]) -> bool:
        better = self._best is None or line["loss"] < self._best["loss"]
        if better:
            self._best = line
        return better


def _tag(step: int) -> str:
    return f"step-{step:06d}"
