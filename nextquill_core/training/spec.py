"""The order that the training worker receives: one JSON file, plain values only."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from nextquill_core.model.identity import ModelSpec
from storage.files import write_json


@dataclass(frozen=True)
class LoraSpec:
    """LoRA's shape."""

    r: int
    alpha: int
    dropout: float
    targets: str


@dataclass(frozen=True)
class PromptSpec:
    """What the model reads; the same fields as the config's `prompt`."""

    max_history: int
    max_prompt_tokens: int
    max_target_tokens: int
    template: str


@dataclass(frozen=True)
class TrainSpec:
    """Everything a training run depends on.

    Attributes:
        output: Staging folder; gets `adapter/`, `metrics.jsonl`, `checkpoints/`.
        sequences: Folder of the ingest artifact.
        effects: Folder of the score artifact (`effects/`, `weights/`), or None to weight every token 1.
        alpha: α; 0 leaves the causal loss out.
        global_batch: Examples an optimizer step, over all ranks.
        batch_tokens: Token positions of a micro-batch, both branches counted.
        leave_out: (fold, folds): train without the users of this fold (`nextquill_core.folds`); None trains on all.
    """

    output: str
    sequences: str
    effects: str | None
    model: ModelSpec
    prompt: PromptSpec
    lora: LoraSpec
    alpha: float
    normalization: str
    epochs: int
    learning_rate: float
    weight_decay: float
    warmup_ratio: float
    max_grad_norm: float
    global_batch: int
    batch_tokens: int
    gradient_checkpointing: bool
    checkpoint_every: int
    keep_checkpoints: int
    zero_stage: int
    seed: int
    leave_out: tuple[int, int] | None = None

    def save(self, path: Path) -> None:
        """Write the order."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> TrainSpec:
        """Read an order."""
        values = json.loads(path.read_text(encoding="utf-8"))
        values["model"] = ModelSpec(**values["model"])
        values["prompt"] = PromptSpec(**values["prompt"])
        values["lora"] = LoraSpec(**values["lora"])
        if values["leave_out"] is not None:
            values["leave_out"] = tuple(values["leave_out"])
        return cls(**values)
