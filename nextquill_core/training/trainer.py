"""The training loop: LoRA on the preference-weighted losses, under DeepSpeed, resumable at any step."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nextquill_core.errors import ModelError
from nextquill_core.model.forward import answer_hidden_states
from nextquill_core.model.head import head_of
from nextquill_core.training.batches import MicroBatch, TrainExample, micro_batches, step_examples, steps_per_epoch
from nextquill_core.training.losses import LossOutput, nextquill_loss
from nextquill_core.training.spec import TrainSpec

METRICS = "metrics.jsonl"


class PreferenceLoss(nn.Module):
    """A PEFT model and the loss on top of it, as one module: what DeepSpeed wraps.

    Args:
        model: A PEFT model.
        alpha: α.
        normalization: As in `nextquill_loss`.
        packed: As in `answer_hidden_states`; ZeRO-3 needs as many forward calls on each rank, so one.
    """

    def __init__(self, model: Any, alpha: float, normalization: str, packed: bool | None = None) -> None:
        super().__init__()
        self.model = model
        self.alpha = alpha
        self.normalization = normalization
        self.packed = packed

    def forward(self, examples: Sequence[TrainExample], denominator: float) -> LossOutput:
        """The examples' share of the step's loss, both branches in one pass."""
        pairs = [example.pair for example in examples]
        targets = [pair.target for pair in pairs]
        prompts = [pair.factual for pair in pairs]
        rows = sum(len(target) for target in targets)
        if self.alpha:
            prompts += [pair.counterfactual for pair in pairs]
            targets += targets
        hidden = answer_hidden_states(self.model, prompts, targets, packed=self.packed)
        device = hidden.device
        return nextquill_loss(
            hidden[:rows],
            hidden[rows:] if self.alpha else None,
            head_of(self.model),
            torch.tensor([token for pair in pairs for token in pair.target], device=device),
            torch.tensor([weight for example in examples for weight in example.weights], device=device),
            torch.repeat_interleave(torch.tensor([len(pair.target) for pair in pairs], device=device)),
            alpha=self.alpha,
            normalization="weight" if self.normalization == "weight" else "sequence",
            denominator=denominator,
        )


def learning_rate_at(step: int, steps: int, peak: float, warmup_ratio: float) -> float:
    """Linear warm-up over the first `warmup_ratio` of the steps, then linear decay to 0 after the last."""
    warmup = math.ceil(steps * warmup_ratio)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    return peak * (steps - step) / max(1, steps - warmup)


def deepspeed_config(spec: TrainSpec) -> dict[str, Any]:
    """The ZeRO configuration; a step's micro-batches are counted here, not by DeepSpeed, since they vary."""
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": spec.max_grad_norm,
        "bf16": {"enabled": spec.model.dtype == "bfloat16"},
        "fp16": {"enabled": spec.model.dtype == "float16"},
        "zero_optimization": {"stage": spec.zero_stage},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }


class Trainer:
    """Runs the steps of one `TrainSpec` on this rank.

    Args:
        spec: The order.
        engine: A DeepSpeed engine around `PreferenceLoss`.
        examples: All training examples, the same on every rank.
        left_out: How many users and examples a fold leaves out; stands in every line of the metrics.
    """

    def __init__(
        self, spec: TrainSpec, engine: Any, examples: Sequence[TrainExample], left_out: Mapping[str, int]
    ) -> None:
        self.spec = spec
        self.left_out = left_out
        self.engine = engine
        self.examples = examples
        self.rank: int = torch.distributed.get_rank()
        self.ranks: int = torch.distributed.get_world_size()
        self.output = Path(spec.output)
        self.steps = spec.epochs * steps_per_epoch(len(examples), spec.global_batch)

    def run(self) -> None:
        """Train to the end, from the newest checkpoint if there is one, and leave the adapter."""
        first = self._resume()
        self.engine.train()
        for step in range(first, self.steps):
            self._record(self._step(step))
            if (step + 1) % self.spec.checkpoint_every == 0 and step + 1 < self.steps:
                self._checkpoint(step + 1)
        save_adapter(self.engine.module.model, self.output / "adapter", self.rank)

    def _step(self, step: int) -> dict[str, float]:
        started = time.perf_counter()
        batch = step_examples(self.examples, self.spec.global_batch, self.spec.seed, step)
        rate = learning_rate_at(step, self.steps, self.spec.learning_rate, self.spec.warmup_ratio)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        denominator = (
            float(sum(sum(example.weights) for example in batch))
            if self.spec.normalization == "weight"
            else float(len(batch))
        )
        mine = micro_batches(batch, self.spec.batch_tokens, self.ranks)[self.rank :: self.ranks]
        sums = torch.zeros(3, device=self.engine.device)
        for position, micro in enumerate(mine):
            self.engine.set_gradient_accumulation_boundary(position == len(mine) - 1)
            sums += self._backward(micro, denominator, step)
            self.engine.step()
        torch.distributed.all_reduce(sums)
        loss, normal, causal = sums.tolist()
        if not math.isfinite(loss):
            names = ", ".join(example.pair.example_id for example in batch)
            raise ModelError(
                f"the loss is {loss} at step {step + 1}", "train", f"lower the learning rate; batch: {names}"
            )
        seconds = time.perf_counter() - started
        tokens = sum(example.pair.tokens for example in batch)
        return {
            "step": step + 1,
            "steps": self.steps,
            "epoch": round((step + 1) / (self.steps / self.spec.epochs), 4),
            "loss": loss,
            "normal": normal,
            "causal": causal,
            "learning_rate": rate,
            "grad_norm": float(self.engine.get_global_grad_norm() or 0.0),
            "tokens": tokens,
            "seconds": round(seconds, 4),
            "tokens_per_second": round(tokens / seconds, 1),
        }

    def _backward(self, micro: MicroBatch, denominator: float, step: int) -> Tensor:
        # Dropout depends on the step and the micro-batch, not on what this process did before: a resumed run draws the
        # masks of an uninterrupted one.
        torch.manual_seed((self.spec.seed * 1_000_003 + step) * 1_000_003 + micro.index)
        output = self.engine(micro.examples, denominator)
        # DeepSpeed averages gradients over ranks; the step's loss is a sum.
        self.engine.backward(output.loss * (self.ranks * micro.scale))
        return torch.stack([part.detach() * micro.scale for part in output])

    def _record(self, metrics: dict[str, float]) -> None:
        if self.rank == 0:
            with (self.output / METRICS).open("a", encoding="utf-8") as file:
                file.write(json.dumps({**metrics, **self.left_out}) + "\n")

    @property
    def _states(self) -> Path:
        return self.output / "scratch" / "states"

    def _checkpoint(self, step: int) -> None:
        """Leave the adapter as it is now, and beside it, outside the artifact, what resuming needs."""
        tag = f"step-{step:06d}"
        self.engine.save_checkpoint(str(self._states), tag=tag, exclude_frozen_parameters=True)
        save_adapter(self.engine.module.model, self.output / "checkpoints" / tag, self.rank)
        if self.rank == 0:
            for folder in (self._states, self.output / "checkpoints"):
                for old in sorted(folder.glob("step-*"))[: -self.spec.keep_checkpoints]:
                    shutil.rmtree(old)
        torch.distributed.barrier()

    def _resume(self) -> int:
        """The step to go on with: behind the newest complete checkpoint, or 0."""
        latest = self._states / "latest"  # DeepSpeed writes it last
        step = 0
        if latest.is_file():
            tag = latest.read_text().strip()
            self.engine.load_checkpoint(str(self._states), tag=tag, load_module_strict=False)
            step = int(tag.removeprefix("step-"))
        if self.rank == 0:
            keep_steps(self.output / METRICS, step)
        torch.distributed.barrier()
        return step


def keep_steps(path: Path, last: int) -> None:
    """Cut a metrics file back to the steps up to `last`; a line that a killed run left half written goes too."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    path.write_text("".join(line for line in lines[:last] if line.endswith("\n")), encoding="utf-8")


def save_adapter(model: Any, folder: Path, rank: int) -> None:
    """Write a PEFT folder (safetensors), the same bytes for the same weights."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    sharded = any(hasattr(parameter, "ds_id") for parameter in trainable)
    if sharded:  # ZeRO-3 keeps a slice on each rank
        import deepspeed

        with deepspeed.zero.GatheredParameters(trainable):
            _write_adapter(model, folder, rank)
    else:
        _write_adapter(model, folder, rank)


def _write_adapter(model: Any, folder: Path, rank: int) -> None:
    if rank != 0:
        return
    unfinished = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(str(unfinished), safe_serialization=True)
    (unfinished / "README.md").unlink(missing_ok=True)  # PEFT's unfilled form
    config_path = unfinished / "adapter_config.json"
    config = json.loads(config_path.read_text(encoding="utf-8"))
    config["target_modules"] = sorted(config["target_modules"])  # a set: its order changes from run to run
    config_path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished.rename(folder)
