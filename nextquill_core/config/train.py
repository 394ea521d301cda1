"""Settings of the train stage: losses, optimizer, LoRA, DeepSpeed and where the ranks run."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from nextquill_core.config.base import OPERATIONAL, AutoCount, MethodName, Positive, Section, Share
from nextquill_core.config.lora import LoraSettings

Normalization = Literal["sequence", "weight", "sample_weight", "sample_tokens"]
"""What the losses of a step are divided by; `nextquill_core.training.losses` has the equations."""


class DeepSpeedConfig(Section):
    """Settings of DeepSpeed."""

    zero_stage: Annotated[Literal[0, 1, 2, 3], OPERATIONAL] = 2
    """what is sharded over the ranks: 0: nothing; 1: AdamW's state; 2: also gradients; 3: also θ0"""
    offload: Annotated[Literal["none", "optimizer", "parameters"], OPERATIONAL] = "none"
    """what is kept in the host's memory: optimizer: AdamW's state (ZeRO 1 to 3); parameters: also θ0 (ZeRO 3)"""
    config: str | None = None
    """path of a DeepSpeed JSON file, over which the settings of train are laid; a changed key that can change the
    adapter, such as loss scaling, makes it stale"""

    @model_validator(mode="after")
    def _offload_fits_the_stage(self) -> DeepSpeedConfig:
        if self.offload == "optimizer" and self.zero_stage == 0:
            raise ValueError("offload optimizer needs zero_stage 1, 2 or 3")
        if self.offload == "parameters" and self.zero_stage != 3:
            raise ValueError("offload parameters needs zero_stage 3")
        return self


class SlurmConfig(Section):
    """The allocation that srun requests, or the part of the current allocation that is used."""

    nodes: Positive = 2
    """number of machines"""
    ranks_per_node: AutoCount = "auto"
    """number of ranks on a machine; auto: one per accelerator, or one"""
    partition: str | None = None
    """Slurm partition; null: the cluster's default"""
    arguments: tuple[str, ...] = ()
    """further arguments of srun, such as --gpus-per-node=8 or --time=2-0"""


class LauncherConfig(Section):
    """Where the ranks run; see docs/explanation/training.md."""

    kind: Literal["local", "hostfile", "slurm"] = "local"
    """where the ranks run: local: on this machine; hostfile: on hosts reached by a remote shell; slurm: by srun"""
    processes: AutoCount = "auto"
    """number of ranks under local; auto: one per accelerator, one on a CPU"""
    hostfile: str | None = None
    """path of DeepSpeed's hostfile, with lines `host slots=N`, for hostfile"""
    remote_shell: Annotated[str, Field(min_length=1)] = "ssh -o BatchMode=yes -o ServerAliveInterval=15"
    """command for hostfile that gets a host and a command line as its last two arguments"""
    address: str | None = None
    """address of the first host for the other hosts, under hostfile and slurm; null: its name"""
    port: Annotated[int | None, Field(ge=1, le=65535)] = None
    """port at which ranks meet, under hostfile and slurm; null: one that is free here"""
    slurm: SlurmConfig = SlurmConfig()

    @model_validator(mode="after")
    def _hosts_are_named(self) -> LauncherConfig:
        if self.kind == "hostfile" and self.hostfile is None:
            raise ValueError("kind hostfile needs the path of a hostfile in train.launcher.hostfile")
        return self


class NormalLossConfig(Section):
    """Variants of the preference-weighted loss L_n; the defaults are the paper's."""

    weighted: bool = True
    """weights in L_n of methods that have L_p too: true: preference weights (Eq. 5); false: 1 for each token, as the
    method mce-dce always has them"""


class CausalLossConfig(Section):
    """Variants of the causal preference loss L_p; the defaults are the paper's."""

    counterfactual_grad: Literal["through", "stop"] = "through"
    """whether gradients of L_p flow through the branch without history"""
    weighted: bool = True
    """weights in L_p: true: preference weights (Eq. 6); false: 1 for each token, as in the official code"""
    target: Literal["label", "effect"] = "label"
    """loss behind L_p: label: cross-entropy of the difference of logits with the token (Eq. 6); effect: squared
    distance of the model's effect on the token's probability from the stored effect"""


class TrainConfig(Section):
    """A LoRA adapter on L = L_n + α·L_p (Eqs. 5 to 7)."""

    method: MethodName = "nextquill"
    """method that is always trained, and that `export` and `promote` use"""
    alpha: Annotated[float, Field(ge=0)] = 0.05
    """factor α of the causal preference loss (Eq. 7)"""
    normalization: Normalization = "sequence"
    """what the losses of a step are divided by: sequence: the number of samples (paper, Eq. 5); weight: the step's Σω,
    the sum of all weights (MIRROR's code); sample_weight: each sample by its own Σω, then the number of samples (the
    official code); sample_tokens: each sample by its number of tokens, then the number of samples (PerCE); see
    docs/explanation/training.md"""
    weights_from: Literal["stored", "live"] = "stored"
    """where preference weights come from: stored: the score stage, once, before training (the paper); live: the model
    in training, in each step, by the same weight policy (the official code, PerCE)"""
    normal_loss: NormalLossConfig = NormalLossConfig()
    causal_loss: CausalLossConfig = CausalLossConfig()
    epochs: Positive = 5
    """number of passes over the train split"""
    learning_rate: Annotated[float, Field(gt=0)] = 5e-6
    """highest learning rate of AdamW, after the warm-up"""
    weight_decay: Annotated[float, Field(ge=0)] = 0.025
    """weight decay of AdamW"""
    warmup_ratio: Share = 0.01
    """share of the steps in which the learning rate rises"""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """norm to which larger gradients are scaled down; under normalization sequence, losses are sums over tokens and 1.0
    clips nearly every step; see docs/explanation/training.md"""
    global_batch: Positive = 16
    """number of examples in an optimizer step, over all ranks"""
    batch_tokens: Annotated[Positive, OPERATIONAL] = 8192
    """maximum number of tokens in one micro-batch, both branches counted; training takes fewer where memory requires
    it"""
    gradient_checkpointing: Annotated[bool | Literal["auto"], OPERATIONAL] = "auto"
    """whether activations are computed a second time instead of kept, which saves memory; auto: only if the longest
    example does not fit otherwise"""
    checkpoint_every: Annotated[Positive, OPERATIONAL] = 100
    """number of optimizer steps between checkpoints"""
    checkpoint_minutes: Annotated[float | None, Field(gt=0), OPERATIONAL] = 30.0
    """maximum minutes between checkpoints; null: no limit"""
    keep_checkpoints: Annotated[Positive, OPERATIONAL] = 2
    """number of checkpoints that stay, the newest ones"""
    max_loss_ratio: Annotated[float | None, Field(gt=1), OPERATIONAL] = 3.0
    """ratio of the averaged loss to its best value above which a run stops; null: never stop"""
    val_every: Annotated[int | None, Field(ge=0)] = None
    """number of optimizer steps between validations; null: one epoch; 0: no validation"""
    val_examples: Positive = 200
    """maximum number of val examples, chosen by a seeded hash"""
    keep: Literal["last", "best"] = "last"
    """which adapter stays: the last, or the best on the val split"""
    report_to: Annotated[tuple[Literal["tensorboard", "wandb", "mlflow"], ...], OPERATIONAL] = ()
    """trackers that also get the curves"""
    lora: LoraSettings = LoraSettings()
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()
    launcher: Annotated[LauncherConfig, OPERATIONAL] = LauncherConfig()

    @property
    def checkpoints_activations(self) -> bool:
        """Whether gradient checkpointing is on; `auto` is off until `training.budget` has decided."""
        return self.gradient_checkpointing is True

    @model_validator(mode="after")
    def _the_best_is_measured(self) -> TrainConfig:
        if self.keep == "best" and self.val_every == 0:
            raise ValueError("keep best needs validation: set val_every to null or a number of steps")
        return self

    @model_validator(mode="after")
    def _the_sum_of_weights_is_known(self) -> TrainConfig:
        if self.weights_from == "live" and self.normalization == "weight":
            raise ValueError(
                "normalization weight divides by the step's sum of weights, which live weights only give after the "
                "step: set normalization to sample_weight, sample_tokens or sequence, or weights_from to stored"
            )
        return self

    def fingerprint_fields(self) -> dict[str, Any]:
        """Return the settings that decide the adapter; those of validation count only if the best adapter is kept."""
        values = super().fingerprint_fields()
        del values["deepspeed"]  # the plan adds what decides in the user's file (training.engines.deciding)
        if self.keep == "last":
            del values["val_every"], values["val_examples"]
        return values
