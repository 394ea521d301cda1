"""The training loop: LoRA on the weighted losses, resumable at every checkpoint, with the losses on the val split."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nextquill_core.errors import ModelError
from nextquill_core.memory import is_out_of_memory, peak_memory
from nextquill_core.orders import TrainOrder
from nextquill_core.progress import Progress, silent
from nextquill_core.training import curves
from nextquill_core.training.budget import out_of_memory
from nextquill_core.training.checkpoints import (
    Checkpoints,
    check_loads,
    example_loss,
    save_adapter,
    step_folders,
    step_name,
    trained,
)
from nextquill_core.training.curves import Clipping, RunawayLoss
from nextquill_core.training.data import MicroBatch, TrainExample, micro_batches, step_examples, steps_per_epoch
from nextquill_core.training.losses import Denominators, LossOutput, denominators
from nextquill_core.training.ranks import Writer, remove_unfinished, whole_folder

NAMED_EXAMPLES = 8


def learning_rate_at(step: int, steps: int, peak: float, warmup_ratio: float) -> float:
    """Return the learning rate of a step: a linear warm-up, then a linear decay to 0 after the last step.

    Args:
        step: Step, counted from 0.
        steps: Number of steps in the run.
        peak: Highest learning rate.
        warmup_ratio: Share of the steps in which the rate rises.
    """
    warmup = math.ceil(steps * warmup_ratio)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    return peak * (steps - step) / max(1, steps - warmup)


class Trainer:
    """Runs the steps of a training order on this rank.

    Args:
        order: The order of the run.
        engine: An engine around `PreferenceLoss`.
        examples: All training examples, the same on every rank.
        left_out: Number of users and examples that a fold leaves out, written in every line of the metrics.
        val_examples: The val examples to measure, the same on every rank; may be empty.
        progress: Receives the phases besides steps.
    """

    def __init__(
        self,
        order: TrainOrder,
        engine: Any,
        examples: Sequence[TrainExample],
        left_out: Mapping[str, int],
        val_examples: Sequence[TrainExample] = (),
        progress: Progress = silent,
    ) -> None:
        self.progress = progress
        self.order = order
        self.settings = order.train
        self.left_out = left_out
        self.engine = engine
        self.examples = examples
        self.rank: int = torch.distributed.get_rank()
        self.ranks: int = torch.distributed.get_world_size()
        self.output = order.output
        self.steps = self.settings.epochs * steps_per_epoch(len(examples), self.settings.global_batch)
        self.writer = Writer(self.output, engine.device)
        self.checkpoints = Checkpoints(engine, self.writer, self.settings.keep_checkpoints)
        self.validation = Validation(order, engine, val_examples, self.writer, len(examples), progress)
        # Under float16 a gradient may overflow: DeepSpeed skips the step and scales the loss down.
        watched = trained(engine).values() if order.model.dtype != "float16" else ()
        self.gradients = GradientWatch(watched)

    def run(self) -> None:
        """Train to the end, from the newest checkpoint if there is one, and write the adapter.

        Raises:
            ModelError: The loss or a gradient is not finite, the loss has run away, or the adapter cannot be loaded
                back.
            UserError: The disk is full or cannot be written.
        """
        first = self.checkpoints.resume(self._step_once)
        self.writer(lambda: curves.cut(self.output / curves.METRICS, first), "the curve")
        self.validation.resume(first)
        lines = curves.read(self.output / curves.METRICS)
        self.runaway = RunawayLoss(self.settings.max_loss_ratio, (line["loss"] for line in lines))
        self.clipping = Clipping(self.settings.max_grad_norm, (line["grad_norm"] for line in lines))
        report_to = self.settings.report_to if self.rank == 0 else ()
        recorded = self.order.model_dump(mode="json")
        self.trackers = curves.Trackers(report_to, self.output, recorded.pop("train") | recorded, first)
        self.first, self.started = first, time.monotonic()
        self.saved = self.started
        self.engine.train()
        self.progress(0, 0)
        for step in range(first, self.steps):
            self._after(self._step(step), step + 1)
        self.progress(0, 0, phase="saving the adapter")
        adapter, example = self.output / "adapter", self.examples[0]
        expected = self.validation.publish(adapter)
        if expected is None:
            save_adapter(self.engine, adapter, self.writer)
            expected = example_loss(self.engine, example)
        else:
            example = self.validation.examples[0]
        self.progress(0, 0, phase="loading the adapter back")
        check_loads(self.engine, adapter, example, expected)
        self.trackers.close()

    def _after(self, metrics: dict[str, float], done: int) -> None:
        """Write the step's line and check the loss; validate and write a checkpoint where they are due."""
        self.runaway.add(metrics["loss"])
        due = self.writer(lambda: self._record(metrics, done), "the curve")
        if self.runaway.found:
            raise ModelError(
                f"the loss ran away by step {done}: it is {self.runaway.average:.4g} on average and was "
                f"{self.runaway.best:.4g}",
                "train.max_loss_ratio",
                f"lower train.learning_rate, or raise this ratio (null: never stop); {self._what_stays()}",
            )
        if self.validation.due(done):
            line = self.validation.run(done)
            self.trackers.log(line, done, "val")
        if due and not self.runaway.suspected:
            self.checkpoints.write(done)
            self.validation.prune()
            self.saved = time.monotonic()

    def _record(self, metrics: dict[str, float], done: int) -> bool:
        """Write a step's line, on rank 0, and return whether a checkpoint is due by rank 0's clock or the steps."""
        line = {**metrics, **self.left_out}
        curves.append(self.output / curves.METRICS, line)
        self.trackers.log(line, done, "train")
        minutes = self.settings.checkpoint_minutes
        late = minutes is not None and time.monotonic() - self.saved >= 60 * minutes
        return done < self.steps and (late or done % self.settings.checkpoint_every == 0)

    def _step(self, step: int) -> dict[str, float]:
        started = time.perf_counter()
        batch = step_examples(self.examples, self.settings.global_batch, self.order.seed, step)
        rate = learning_rate_at(step, self.steps, self.settings.learning_rate, self.settings.warmup_ratio)
        self._set_rate(rate)
        whole = denominators(batch, self.order)
        micros = micro_batches(batch, self.settings.batch_tokens, self.ranks)
        mine = micros[self.rank :: self.ranks]
        # One tensor for all that ranks exchange: the losses, the failure of each micro-batch, the memory of each rank.
        shared = torch.zeros(3 + len(micros) + self.ranks, device=self.engine.device)
        sums, broken, memory = shared.split([3, len(micros), self.ranks])
        for position, micro in enumerate(mine):
            if position:
                self.engine.step()
            self.engine.set_gradient_accumulation_boundary(position == len(mine) - 1)
            output = self._backward(micro, whole, step)
            sums += torch.stack([part.detach() * micro.scale for part in output])
            broken[micro.index] = ~(torch.isfinite(output.loss) & self.gradients.finite())
        memory[self.rank] = peak_memory(self.engine.device) / 1e9
        if self.ranks > 1:
            torch.distributed.all_reduce(shared)
        if broken.any():
            flagged = [micro for micro, failed in zip(micros, broken.tolist(), strict=True) if failed]
            self._stop(flagged, step)
        self.engine.step()  # only now, so that values that are not finite never reach the weights
        norm = float(self.engine.get_global_grad_norm() or 0.0)
        self.clipping.add(norm)
        loss, normal, causal = sums.tolist()
        seconds = time.perf_counter() - started
        pace = (time.monotonic() - self.started) / (step + 1 - self.first)
        tokens = sum(example.pair.tokens for example in batch)
        return {
            "step": step + 1,
            "steps": self.steps,
            "epoch": round((step + 1) / (self.steps / self.settings.epochs), 4),
            "loss": loss,
            "normal": normal,
            "causal": causal,
            "learning_rate": rate,
            "grad_norm": norm,
            "clipped_share": round(self.clipping.share, 4),
            "tokens": tokens,
            "seconds": round(seconds, 4),
            "tokens_per_second": round(tokens / seconds, 1),
            "memory_gb": round(float(memory.max()), 3),
            "remaining_seconds": round(pace * (self.steps - step - 1), 1),
        }

    def _backward(self, micro: MicroBatch, whole: Denominators, step: int) -> LossOutput:
        try:
            output: LossOutput = self.engine(micro.examples, whole, self._seed(step))
            # DeepSpeed averages gradients over ranks; the step's loss is a sum.
            self.engine.backward(output.loss * (self.ranks * micro.scale))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            # Gradients of other micro-batches are already summed over ranks, so the step cannot be tried again here.
            raise out_of_memory(self.order, micro.examples, f"in step {step + 1}") from None
        return output

    def _seed(self, step: int) -> int:
        # Dropout depends on the step and the examples alone, so a resumed run draws the same masks.
        return self.order.seed * 1_000_003 + step

    def _stop(self, flagged: Sequence[MicroBatch], step: int) -> None:
        """Raise an error that names the examples; each rank computes all of them, as ZeRO-3 requires."""
        found: set[str] = set()

        def examine(example: TrainExample) -> str:
            # The module without the engine, which would exchange gradients.
            output = self.engine.module((example,), denominators((example,), self.order), self._seed(step))
            loss = float(output.loss)
            if not math.isfinite(loss):
                found.add("loss")
                return f"loss {loss}"
            if gradients_finite(output.loss, list(trained(self.engine).values())):
                return ""
            found.add("gradient")
            return f"loss {loss:.4g}, gradient not finite"

        names = non_finite_examples(flagged, examine)
        raise ModelError(
            f"the {' and the '.join(sorted(found, reverse=True)) or 'loss or gradient'} is not finite at step "
            f"{step + 1}: {names}",
            "train",
            f"check these examples, lower train.learning_rate or set model.dtype float32; {self._what_stays()}",
        )

    def _what_stays(self) -> str:
        newest = self.writer.resumes_at
        return f"the checkpoint of step {newest} stays" if newest else "there is no checkpoint yet"

    def _set_rate(self, rate: float) -> None:
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate

    def _step_once(self) -> None:
        """Step at rate 0, so that the optimizer has a state that a checkpoint can overwrite."""
        self._set_rate(0.0)
        self.engine.set_gradient_accumulation_boundary(True)
        shortest = min(self.examples, key=lambda example: example.pair.tokens)
        self.engine.backward(self.engine((shortest,), denominators((shortest,), self.order)).loss * 0.0)
        self.engine.step()
        self.gradients.finite()  # drops what was noted


class GradientWatch:
    """Detects gradients that are not finite in the backward pass, before the optimizer uses them.

    Args:
        parameters: The trained parameters.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._norms: list[Tensor] = []
        for parameter in parameters:
            parameter.register_hook(self._note)

    def finite(self) -> Tensor:
        """Return whether all gradients since the last call were finite, as a tensor, without waiting for the device."""
        norms, self._norms = self._norms, []
        return torch.isfinite(torch.stack(norms)).all() if norms else torch.tensor(True)

    def _note(self, gradient: Tensor) -> None:
        self._norms.append(norm_of(gradient))


def norm_of(gradient: Tensor) -> Tensor:
    """Return the 2-norm in single precision, which clipping needs to be finite."""
    norm: Tensor = torch.linalg.vector_norm(gradient.detach(), dtype=torch.float32)
    return norm


def non_finite_examples(micros: Sequence[MicroBatch], examine: Callable[[TrainExample], str]) -> str:
    """Return the examples that are not finite by themselves, or all examples if there is none; for all ranks.

    Args:
        micros: Micro-batches in which a value was not finite.
        examine: Computes one example by itself and returns what is wrong with it, or "".

    Returns:
        The examples with what was found, for one line of an error message.
    """
    found: list[str] = []
    together: list[str] = []
    for micro in micros:
        for example in micro.examples:
            name = example.pair.example_id
            if len(found) <= NAMED_EXAMPLES and name not in together:  # a filler is in two micro-batches
                together.append(name)
                if fault := examine(example):
                    found.append(f"{name} ({fault})")
    if not found:
        return _some(together) + " (together; each alone is finite)"
    return _some(found)


def _some(names: list[str]) -> str:
    more = len(names) - NAMED_EXAMPLES
    return ", ".join(names[:NAMED_EXAMPLES]) + (" and more" if more > 0 else "")


def gradients_finite(loss: Tensor, parameters: Sequence[nn.Parameter]) -> bool:
    """Return whether a loss has finite gradients; `.grad` does not change."""
    gradients: tuple[Any, ...] = torch.autograd.grad(loss, parameters, allow_unused=True)
    return all(bool(torch.isfinite(norm_of(gradient))) for gradient in gradients if gradient is not None)


class Validation:
    """Measures the val split at regular steps, and keeps the best adapter if the settings ask for it.

    Args:
        order: The order of the run.
        engine: The engine that trains.
        examples: The chosen val examples with their weights; nothing is measured if there are none.
        writer: Writer of the run's folder.
        train_examples: Number of train examples, which decides the length of an epoch.
        progress: Receives the progress of a measurement.
    """

    def __init__(
        self,
        order: TrainOrder,
        engine: Any,
        examples: Sequence[TrainExample],
        writer: Writer,
        train_examples: int,
        progress: Progress = silent,
    ) -> None:
        self._progress = progress
        self.order = order
        self.engine = engine
        self.examples = examples
        self.writer = writer
        settings = order.train
        epoch = steps_per_epoch(train_examples, settings.global_batch)
        self.every = epoch if settings.val_every is None else settings.val_every
        self.steps = settings.epochs * epoch
        self._keep_best = settings.keep == "best"
        self._curve = writer.output / curves.VALIDATION
        self._adapters = writer.output / "scratch" / "best"
        self._best: dict[str, Any] | None = None

    def resume(self, step: int) -> None:
        """Forget what was measured after `step`; all ranks have to call this.

        Adapters that were best after that step are left in place, because the same steps find them again.
        """
        if not self.examples:
            return

        def forget() -> None:
            remove_unfinished(self._adapters)
            curves.cut(self._curve, step)

        self.writer(forget, "the curve")
        for line in curves.read(self._curve):
            self._compare(line)

    def due(self, step: int) -> bool:
        """Return whether to measure after `step` steps; the last step always is measured."""
        return bool(self.examples and self.every) and (step % self.every == 0 or step == self.steps)

    def run(self, step: int) -> dict[str, Any]:
        """Measure, write the line, and keep the adapter if it is the best; all ranks have to call this.

        Returns:
            `loss` L, `normal` L_n and `causal` L_p as in training, and `nll`, the negative log-likelihood in nats per
            token without weights. Where the best adapter is kept, also `first_example`: the negative log-likelihood of
            the first example in nats.
        """
        line = {"step": step, **self.measure(), "examples": len(self.examples)}
        if self._keep_best:
            line["first_example"] = example_loss(self.engine, self.examples[0])
        self.writer(lambda: curves.append(self._curve, line), "the curve")
        if self._compare(line) and self._keep_best:
            save_adapter(self.engine, self._adapters / step_name(step), self.writer)
        return line

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Return the losses over all examples, without dropout; all ranks have to call this."""
        tokens = sum(len(example.pair.target) for example in self.examples)
        module = self.engine.module
        module.eval()
        loss, normal, causal = self._sums(self.examples, denominators(self.examples, self.order), 0.0).tolist()
        plain = [replace(example, weights=[1.0] * len(example.pair.target)) for example in self.examples]
        with module.plain_likelihood():
            nll = self._sums(plain, Denominators(1.0, 1.0), 0.5)[1].item() / tokens
        self.engine.train()
        self._progress(0, 0)
        return {"loss": loss, "normal": normal, "causal": causal, "nll": nll}

    def _sums(self, examples: Sequence[TrainExample], whole: Denominators, before: float) -> Tensor:
        """Return (L, L_n, L_p) summed over all ranks; `before` is the share of the measurement that is done, 0 or ½."""
        rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
        sums = torch.zeros(3, device=self.engine.device)
        mine = micro_batches(examples, self.order.train.batch_tokens, ranks)[rank::ranks]
        for position, micro in enumerate(mine):
            share = before + 0.5 * position / len(mine)
            self._progress(round(share * len(examples)), len(examples), phase="validating")
            output = self.engine(micro.examples, whole)
            sums += torch.stack([part.detach() * micro.scale for part in output])
        if ranks > 1:
            torch.distributed.all_reduce(sums)
        return sums

    def prune(self) -> None:
        """Remove, after a checkpoint, the adapters that were the best before the best one."""
        best = self._best["step"] if self._best else 0

        def drop() -> None:
            for step, folder in step_folders(self._adapters).items():
                if step < best:
                    shutil.rmtree(folder)

        self.writer(drop, "the adapter")

    def publish(self, adapter: Path) -> float | None:
        """Copy the best adapter to its final folder if the best is to be kept; all ranks have to call this.

        Returns:
            The negative log-likelihood in nats that it gives the first val example; None where the last is kept.
        """
        if not self._keep_best or self._best is None:
            return None
        source = self._adapters / step_name(self._best["step"])

        def copy() -> None:
            with whole_folder(adapter) as folder:
                shutil.copytree(source, folder, dirs_exist_ok=True)

        self.writer(copy, "the adapter")
        expected: float = self._best["first_example"]
        return expected

    def _compare(self, line: dict[str, Any]) -> bool:
        better = self._best is None or curves.val_loss(line) < curves.val_loss(self._best)
        if better:
            self._best = line
        return better
