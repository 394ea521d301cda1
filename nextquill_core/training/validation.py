"""The losses on the val split while training goes on, and the adapter that was best there."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nextquill_core.schemas import Example
from nextquill_core.training import curves
from nextquill_core.training.batches import TrainExample, micro_batches, steps_per_epoch
from nextquill_core.training.checkpoints import save_adapter
from nextquill_core.training.disk import Writer, sweep, whole_folder
from nextquill_core.training.spec import TrainSpec


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
    """

    def __init__(
        self, spec: TrainSpec, engine: Any, examples: Sequence[TrainExample], writer: Writer, train_examples: int
    ) -> None:
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
        """
        line = {"step": step, **self.measure(), "examples": len(self.examples)}
        self.writer(lambda: curves.append(self._curve, line), "the curve")
        if self._compare(line) and self.spec.keep == "best":
            save_adapter(self.engine, self._kept / _tag(step), self.writer)
        return line

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """The losses over all examples, without dropout; a call for all ranks."""
        tokens = sum(len(example.pair.target) for example in self.examples)
        weight = sum(sum(example.weights) for example in self.examples)
        self.engine.module.eval()
        loss, normal, causal = self._sums(self.examples, weight if self.spec.normalization == "weight" else 0).tolist()
        module = self.engine.module
        module.spec = replace(self.spec, alpha=0.0)  # the plain likelihood needs one branch
        plain = [replace(example, weights=[1.0] * len(example.pair.target)) for example in self.examples]
        nll = self._sums(plain, tokens)[1].item()
        module.spec = self.spec
        self.engine.train()
        return {"loss": loss, "normal": normal, "causal": causal, "nll": nll}

    def _sums(self, examples: Sequence[TrainExample], denominator: float) -> Tensor:
        rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
        sums = torch.zeros(3, device=self.engine.device)
        for micro in micro_batches(examples, self.spec.batch_tokens, ranks)[rank::ranks]:
            output = self.engine(micro.examples, float(denominator or len(examples)))
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

    def publish(self, adapter: Path) -> bool:
        """Give the best adapter its place, if the best is to be kept; a call for all ranks."""
        if self.spec.keep != "best" or self._best is None:
            return False
        source = self._kept / _tag(self._best["step"])

        def copy() -> None:
            with whole_folder(adapter) as folder:
                shutil.copytree(source, folder, dirs_exist_ok=True)

        self.writer(copy, "the adapter")
        return True

    def _compare(self, line: dict[str, Any]) -> bool:
        better = self._best is None or line["loss"] < self._best["loss"]
        if better:
            self._best = line
        return better


def _tag(step: int) -> str:
    return f"step-{step:06d}"
