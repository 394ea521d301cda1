"""Training."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from nextquill_core.config.base import OPERATIONAL, MethodName, Positive, Section, Share


class LoraSettings(Section):
    """LoRA; rank and targets are nowhere stated in the paper, these are the field's habit."""

    r: Positive = 16
    alpha: Positive = 32
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    targets: str = "all-linear"


class DeepSpeedConfig(Section):
    """What DeepSpeed is asked for."""

    zero_stage: Literal[0, 1, 2, 3] = 2


class LauncherConfig(Section):
    """Where the ranks run."""

    kind: Literal["local"] = "local"
    processes: Annotated[int | Literal["auto"], Field(description="ranks; auto: one an accelerator, one on a CPU")] = (
        "auto"
    )


class TrainConfig(Section):
    """A LoRA adapter on L = L_n + α·L_p (Eqs. 5 to 7)."""

    method: MethodName = "nextquill"
    alpha: Annotated[float, Field(ge=0, description="α, the share of the causal preference loss (Eq. 7)")] = 0.05
    normalization: Annotated[
        Literal["sequence", "weight"], Field(description="sequence: Eq. 5; weight: by Σω, as the official code")
    ] = "sequence"
    epochs: Positive = 5
    learning_rate: Annotated[float, Field(gt=0)] = 5e-6
    weight_decay: Annotated[float, Field(ge=0)] = 0.025
    warmup_ratio: Share = 0.01
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    global_batch: Annotated[int, Field(ge=1, description="examples an optimizer step, over all ranks")] = 16
    batch_tokens: Annotated[
        int, Field(ge=1, description="token budget of one micro-batch, both branches", json_schema_extra=OPERATIONAL)
    ] = 8192
    gradient_checkpointing: Annotated[bool, Field(json_schema_extra=OPERATIONAL)] = False
    checkpoint_every: Annotated[
        int, Field(ge=1, description="optimizer steps between checkpoints", json_schema_extra=OPERATIONAL)
    ] = 100
    keep_checkpoints: Annotated[int, Field(ge=1, json_schema_extra=OPERATIONAL)] = 2
    lora: LoraSettings = LoraSettings()
    deepspeed: Annotated[DeepSpeedConfig, Field(json_schema_extra=OPERATIONAL)] = DeepSpeedConfig()
    launcher: Annotated[LauncherConfig, Field(json_schema_extra=OPERATIONAL)] = LauncherConfig()
