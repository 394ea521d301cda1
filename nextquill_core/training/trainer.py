"""The training loop: LoRA on the preference-weighted losses, under DeepSpeed, resumable at any step."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from nextquill_core.errors import ModelError
from nextquill_core.training import curves
from nextquill_core.training import sharded_state as state
from nextquill_core.training.batches import MicroBatch, TrainExample, micro_batches, step_examples, steps_per_epoch
from nextquill_core.training.checkpoints import Checkpoints, check_loads, example_loss, save_adapter
from nextquill_core.training.disk import Writer
from nextquill_core.training.objective import denominators
from nextquill_core.training.spec import TrainSpec
from nextquill_core.training.stability import Clipping, GradientWatch, RunawayLoss, gradients_finite, offenders
from nextquill_core.training.trackers import Watchers
from nextquill_core.training.validation import Phase, Validation, no_phase


def learning_rate_at(step: int, steps: int, peak: float, warmup_ratio: float) -> float:
    """Linear warm-up over the first `warmup_ratio` of the steps, then linear decay to 0 after the last."""
    warmup = math.ceil(steps * warmup_ratio)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    return peak * (steps - step) / max(1, steps - warmup)


class Trainer:
    """Runs the steps of one `TrainSpec` on this rank.

    Args:
        spec: The order.
        engine: A DeepSpeed engine around `PreferenceLoss`.
        examples: All training examples, the same on every rank.
        left_out: How many users and examples a fold leaves out; stands in every line of the metrics.
        val_examples: The val examples to measure, the same on every rank; may be none.
        phase: Called with what is done besides steps.
    """

    def __init__(
        self,
        spec: TrainSpec,
        engine: Any,
        examples: Sequence[TrainExample],
        left_out: Mapping[str, int],
        val_examples: Sequence[TrainExample] = (),
        phase: Phase = no_phase,
    ) -> None:
        self.phase = phase
        self.spec = spec
        self.left_out = left_out
        self.engine = engine
        self.examples = examples
        self.rank: int = torch.distributed.get_rank()
        self.ranks: int = torch.distributed.get_world_size()
        self.output = Path(spec.output)
        self.steps = spec.epochs * steps_per_epoch(len(examples), spec.global_batch)
        self.writer = Writer(self.output, engine.device)
        self.checkpoints = Checkpoints(engine, self.writer, spec.keep_checkpoints)
        self.validation = Validation(spec, engine, val_examples, self.writer, len(examples), phase)
        # Under float16 a gradient may overflow: DeepSpeed leaves the step out and scales the loss down.
        watched = state.trained(engine).values() if spec.model.dtype != "float16" else ()
        self.gradients = GradientWatch(watched)

    def run(self) -> None:
        """Train to the end, from the newest checkpoint if there is one, and leave the adapter.

        Raises:
            ModelError: The loss or a gradient is not finite, or the loss has run away.
            ModelError: As above, or the adapter cannot be loaded back.
        UserError: The disk is full.
        """
        first = self.checkpoints.resume(self._step_once)
        self.writer(lambda: curves.cut(self.output / curves.METRICS, first), "the curve")
        self.validation.resume(first)
        lines = curves.read(self.output / curves.METRICS)
        self.runaway = RunawayLoss(self.spec.max_loss_ratio, (line["loss"] for line in lines))
        self.clipping = Clipping(self.spec.max_grad_norm, (line["grad_norm"] for line in lines))
        report_to = self.spec.report_to if self.rank == 0 else ()
        self.watchers = Watchers(report_to, self.output, asdict(self.spec), first)
        self.first, self.started = first, time.monotonic()
        self.saved = self.started
        self.engine.train()
        self.phase("")
        for step in range(first, self.steps):
            self._after(self._step(step), step + 1)
        self.phase("saving the adapter")
        adapter, example = self.output / "adapter", self.examples[0]
        expected = self.validation.publish(adapter)
        if expected is None:
            save_adapter(self.engine, adapter, self.writer)
            expected = example_loss(self.engine, example)
        else:
            example = self.validation.examples[0]
        self.phase("loading the adapter back")
        check_loads(self.engine, adapter, example, expected)
        self.watchers.close()

    def _after(self, metrics: dict[str, float], done: int) -> None:
        """What a step is followed by: its line, a look at the loss, perhaps validation and a checkpoint."""
        self.runaway.add(metrics["loss"])
        due = self.writer(lambda: self._record(metrics, done), "the curve")
        if self.runaway.found:
            raise ModelError(
                f"the loss ran away by step {done}: it is {self.runaway.average:.4g} on average and was "
                f"{self.runaway.best:.4g}",
                "train.max_loss_ratio",
                f"lower train.learning_rate, or allow it (null: always); {self._what_stays()}",
            )
        if self.validation.due(done):
            line = self.validation.run(done)
            self.watchers.log(line, done, "val")
        if due and not self.runaway.suspected:
            self.checkpoints.write(done)
            self.validation.prune()
            self.saved = time.monotonic()

    def _record(self, metrics: dict[str, float], done: int) -> bool:
        """Write a step's line, on rank 0, and return whether a checkpoint is due by rank 0's clock or the steps."""
        line = {**metrics, **self.left_out}
        curves.append(self.output / curves.METRICS, line)
        self.watchers.log(line, done, "train")
        minutes = self.spec.checkpoint_minutes
        late = minutes is not None and time.monotonic() - self.saved >= 60 * minutes
        return done < self.steps and (late or done % self.spec.checkpoint_every == 0)

    def _step(self, step: int) -> dict[str, float]:
        started = time.perf_counter()
        batch = step_examples(self.examples, self.spec.global_batch, self.spec.seed, step)
        rate = learning_rate_at(step, self.steps, self.spec.learning_rate, self.spec.warmup_ratio)
        self._set_rate(rate)
        whole = denominators(batch, self.spec)
        micros = micro_batches(batch, self.spec.batch_tokens, self.ranks)
        mine = micros[self.rank :: self.ranks]
        # One tensor for all that ranks tell each other: the losses, each micro-batch's failure, each rank's memory.
        told = torch.zeros(3 + len(micros) + self.ranks, device=self.engine.device)
        sums, broken, memory = told.split([3, len(micros), self.ranks])
        for position, micro in enumerate(mine):
            if position:
                self.engine.step()
            self.engine.set_gradient_accumulation_boundary(position == len(mine) - 1)
            self._seed(step, micro.index)
            output = self.engine(micro.examples, whole)
            # DeepSpeed averages gradients over ranks; the step's loss is a sum.
            self.engine.backward(output.loss * (self.ranks * micro.scale))
            sums += torch.stack([part.detach() * micro.scale for part in output])
            broken[micro.index] = ~(torch.isfinite(output.loss) & self.gradients.finite())
        memory[self.rank] = _peak_memory_gb()
        if self.ranks > 1:
            torch.distributed.all_reduce(told)
        if broken.any():
            flagged = [micro for micro, failed in zip(micros, broken.tolist(), strict=True) if failed]
            self._stop(flagged, step)
        self.engine.step()  # only now: what is not finite never reaches the weights
        norm = float(self.engine.get_global_grad_norm() or 0.0)
        self.clipping.add(norm)
        loss, normal, causal = sums.tolist()
        seconds = time.perf_counter() - started
        pace = (time.monotonic() - self.started) / (step + 1 - self.first)
        tokens = sum(example.pair.tokens for example in batch)
        return {
            "step": step + 1,
            "steps": self.steps,
            "epoch": round((step + 1) / (self.steps / self.spec.epochs), 4),
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

    def _seed(self, step: int, index: int) -> None:
        # Dropout depends on the step and the micro-batch, not on what this process did before: a resumed run draws the
        # masks of an uninterrupted one.
        torch.manual_seed((self.spec.seed * 1_000_003 + step) * 1_000_003 + index)

    def _stop(self, flagged: Sequence[MicroBatch], step: int) -> None:
        """Say which examples it was. All ranks look at all of them, since ZeRO-3 needs every rank at every layer."""
        found: set[str] = set()

        def finding(micro: MicroBatch, example: TrainExample) -> str:
            self._seed(step, micro.index)
            # The module alone, because the engine would exchange gradients.
            output = self.engine.module((example,), denominators((example,), self.spec))
            loss = float(output.loss)
            if not math.isfinite(loss):
                found.add("loss")
                return f"loss {loss}"
            if gradients_finite(output.loss, list(state.trained(self.engine).values())):
                return ""
            found.add("gradient")
            return f"loss {loss:.4g}, gradient not finite"

        names = offenders(flagged, finding)
        raise ModelError(
            f"the {' and the '.join(sorted(found, reverse=True)) or 'loss or gradient'} is not finite at step "
            f"{step + 1}: {names}",
            "train",
            f"look at these examples, lower train.learning_rate or set model.dtype float32; {self._what_stays()}",
        )

    def _what_stays(self) -> str:
        newest = self.writer.resumes_at
        return f"the checkpoint of step {newest} stays" if newest else "there is no checkpoint yet"

    def _set_rate(self, rate: float) -> None:
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate

    def _step_once(self) -> None:
        """A step at rate 0, after which the optimizer has a state that a checkpoint can be written over."""
        self._set_rate(0.0)
        self.engine.set_gradient_accumulation_boundary(True)
        shortest = min(self.examples, key=lambda example: example.pair.tokens)
        self.engine.backward(self.engine((shortest,), denominators((shortest,), self.spec)).loss * 0.0)
        self.engine.step()
        self.gradients.finite()  # of no interest


def _peak_memory_gb() -> float:
    """The most memory this rank has held: the accelerator's, or the process's own on a CPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
