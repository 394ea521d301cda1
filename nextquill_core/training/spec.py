"""The order that the training worker receives: one JSON file, plain values only."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from nextquill_core.model.identity import BaseName, ModelSpec
from storage.documents import read_document
from storage.files import write_json

Normalization = Literal["sequence", "weight", "sample_weight"]
"""What a step's losses are divided by; `losses` has the equations."""


UNNAMED = BaseName("base")
STARTED_BY = "NEXTQUILL_STARTED_BY"
"""Environment variable of the ranks: the id of the process on their machine that has started the launcher."""
PHASE = "scratch/phase.json"
"""Where rank 0 says what it does besides steps (`progress.PhaseFile`), in the run's folder."""


@dataclass(frozen=True)
class LoraSpec:
    """LoRA's shape."""

    r: int
    alpha: int
    dropout: float
    targets: str | tuple[str, ...]


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
        output: Staging folder; gets `adapter/`, `metrics.jsonl`, `val.jsonl`, `checkpoints/`.
        sequences: Folder of the ingest artifact.
        effects: Folder of the score artifact (`effects/`, `weights/`), or None where nothing of it is read.
        weighted: Whether tokens count as preference weights say; each counts 1 otherwise.
        alpha: α; 0 leaves the causal loss out.
        counterfactual_grad: As in `CausalLossConfig`; `through` or `stop`.
        causal_target: As in `CausalLossConfig`; `label` or `effect`.
        causal_weighted: Whether the preference weights count in L_p too; each token counts 1 there otherwise.
        live_weights: The weight policy and its settings (`weight_settings`) where weights come from the model in
            training; None for the stored ones.
        global_batch: Examples an optimizer step, over all ranks.
        batch_tokens: Token positions of a micro-batch, both branches counted.
        leave_out: (fold, folds): train without the users of this fold (`nextquill_core.folds`); None trains on all.
        offload: What ZeRO keeps in the host's memory: `none`, `optimizer` or `parameters` (and the optimizer).
        deepspeed: What the user's own DeepSpeed JSON adds (`zero.own_settings`), or None.
        checkpoint_minutes: A checkpoint after so long at the latest; None for steps alone.
        max_loss_ratio: As in `stability.RunawayLoss`.
        val_every: Optimizer steps between validations; None for once an epoch, 0 for never.
        val_examples: Val examples at most.
        keep: Which adapter stays, the `last` or the `best` on the val split.
        report_to: Names of `watch.PACKAGES`.
        base: What the adapter calls its base model, on any machine.
    """

    output: str
    sequences: str
    effects: str | None
    weighted: bool
    model: ModelSpec
    prompt: PromptSpec
    lora: LoraSpec
    alpha: float
    normalization: Normalization
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
    counterfactual_grad: str = "through"
    causal_target: str = "label"
    causal_weighted: bool = True
    live_weights: dict[str, Any] | None = None
    leave_out: tuple[int, int] | None = None
    offload: str = "none"
    deepspeed: dict[str, Any] | None = None
    checkpoint_minutes: float | None = None
    max_loss_ratio: float | None = None
    val_every: int | None = 0
    val_examples: int = 200
    keep: str = "last"
    report_to: tuple[str, ...] = ()
    base: BaseName = UNNAMED

    def save(self, path: Path) -> None:
        """Write the order."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> TrainSpec:
        """Read an order."""
        values = read_document(path, "run the same command again")
        values["model"] = ModelSpec(**values["model"])
        values["base"] = BaseName(**values["base"])
        values["prompt"] = PromptSpec(**values["prompt"])
        targets = values["lora"]["targets"]
        values["lora"]["targets"] = targets if isinstance(targets, str) else tuple(targets)
        values["lora"] = LoraSpec(**values["lora"])
        if values["leave_out"] is not None:
            values["leave_out"] = tuple(values["leave_out"])
        values["report_to"] = tuple(values["report_to"])
        return cls(**values)
