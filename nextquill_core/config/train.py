"""Settings of the train stage: losses, optimizer, LoRA, DeepSpeed and where the ranks run."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from nextquill_core.config.base import OPERATIONAL, MethodName, Positive, Section, Share
from nextquill_core.config.lora import LoraSettings

Normalization = Literal["sequence", "weight", "sample_weight"]
"""What the losses of a step are divided by; `nextquill_core.training.losses` has the equations."""


class DeepSpeedConfig(Section):
    """Settings of DeepSpeed."""

    zero_stage: Annotated[
        Literal[0, 1, 2, 3],
        Field(
            description="what is sharded over the ranks: 0: nothing; 1: AdamW's state; 2: also gradients; 3: also θ0",
            json_schema_extra=OPERATIONAL,
        ),
    ] = 2
    offload: Annotated[
        Literal["none", "optimizer", "parameters"],
        Field(
            description="what is kept in the host's memory: optimizer: AdamW's state (ZeRO 1 to 3); parameters: also "
            "θ0 (ZeRO 3)",
            json_schema_extra=OPERATIONAL,
        ),
    ] = "none"
    config: Annotated[
        str | None,
        Field(
            description="path of a DeepSpeed JSON file, over which the settings of train are laid; a changed key "
            "that can change the adapter, such as loss scaling, makes it stale"
        ),
    ] = None

    @model_validator(mode="after")
    def _offload_fits_the_stage(self) -> DeepSpeedConfig:
        if self.offload == "optimizer" and self.zero_stage == 0:
            raise ValueError("offload optimizer needs zero_stage 1, 2 or 3")
        if self.offload == "parameters" and self.zero_stage != 3:
            raise ValueError("offload parameters needs zero_stage 3")
        return self


def _auto_or_positive(count: int | str) -> int | str:
    if isinstance(count, int) and count < 1:
        raise ValueError("must be `auto` or at least 1")
    return count


class SlurmConfig(Section):
    """The allocation that srun requests, or the part of the current allocation that is used."""

    nodes: Annotated[Positive, Field(description="number of machines")] = 2
    ranks_per_node: Annotated[
        int | Literal["auto"], Field(description="number of ranks on a machine; auto: one per accelerator, or one")
    ] = "auto"
    partition: Annotated[str | None, Field(description="Slurm partition; null: the cluster's default")] = None
    arguments: Annotated[
        tuple[str, ...], Field(description="further arguments of srun, such as --gpus-per-node=8 or --time=2-0")
    ] = ()

    _at_least_one = field_validator("ranks_per_node")(_auto_or_positive)


class LauncherConfig(Section):
    """Where the ranks run; see docs/explanation/training.md."""

    kind: Annotated[
        Literal["local", "hostfile", "slurm"],
        Field(
            description="where the ranks run: local: on this machine; hostfile: on hosts reached by a remote shell; "
            "slurm: by srun"
        ),
    ] = "local"
    processes: Annotated[
        int | Literal["auto"], Field(description="number of ranks under local; auto: one per accelerator, one on a CPU")
    ] = "auto"
    hostfile: Annotated[
        str | None, Field(description="path of DeepSpeed's hostfile, with lines `host slots=N`, for hostfile")
    ] = None
    remote_shell: Annotated[
        str,
        Field(
            min_length=1,
            description="command for hostfile that gets a host and a command line as its last two arguments",
        ),
    ] = "ssh -o BatchMode=yes -o ServerAliveInterval=15"
    address: Annotated[
        str | None,
        Field(description="address of the first host for the other hosts, under hostfile and slurm; null: its name"),
    ] = None
    port: Annotated[
        int | None,
        Field(
            ge=1,
            le=65535,
            description="port at which ranks meet, under hostfile and slurm; null: one that is free here",
        ),
    ] = None
    slurm: SlurmConfig = SlurmConfig()

    _at_least_one = field_validator("processes")(_auto_or_positive)

    @model_validator(mode="after")
    def _hosts_are_named(self) -> LauncherConfig:
        if self.kind == "hostfile" and self.hostfile is None:
            raise ValueError("kind hostfile needs the path of a hostfile in train.launcher.hostfile")
        return self


class NormalLossConfig(Section):
    """Variants of the preference-weighted loss L_n; the defaults are the paper's."""

    weighted: Annotated[
        bool,
        Field(
            description="weights in L_n of methods that have L_p too: true: preference weights (Eq. 5); false: 1 for "
            "each token, as the method mce-dce always has them"
        ),
    ] = True


class CausalLossConfig(Section):
    """Variants of the causal preference loss L_p; the defaults are the paper's."""

    counterfactual_grad: Annotated[
        Literal["through", "stop"],
        Field(description="whether gradients of L_p flow through the branch without history"),
    ] = "through"
    weighted: Annotated[
        bool,
        Field(
            description="weights in L_p: true: preference weights (Eq. 6); false: 1 for each token, as in the "
            "official code"
        ),
    ] = True
    target: Annotated[
        Literal["label", "effect"],
        Field(
            description="loss behind L_p: label: cross-entropy of the difference of logits with the token (Eq. 6); "
            "effect: squared distance of the model's effect on the token's probability from the stored "
            "effect"
        ),
    ] = "label"


class TrainConfig(Section):
    """A LoRA adapter on L = L_n + α·L_p (Eqs. 5 to 7)."""

    method: Annotated[
        MethodName, Field(description="method that is always trained, and that `export` and `promote` use")
    ] = "nextquill"
    alpha: Annotated[float, Field(ge=0, description="factor α of the causal preference loss (Eq. 7)")] = 0.05
    normalization: Annotated[
        Normalization,
        Field(
            description="what the losses of a step are divided by: sequence: the number of samples (paper, Eq. 5); "
            "weight: the step's Σω, the sum of all weights (MIRROR's code); sample_weight: each sample "
            "by its own Σω, then the number of samples (the official code); see "
            "docs/explanation/training.md"
        ),
    ] = "sequence"
    weights_from: Annotated[
        Literal["stored", "live"],
        Field(
            description="where preference weights come from: stored: the score stage, once, before training (the "
            "paper); live: the model in training, in each step, by the same weight policy (the official "
            "code, PerCE)"
        ),
    ] = "stored"
    normal_loss: NormalLossConfig = NormalLossConfig()
    causal_loss: CausalLossConfig = CausalLossConfig()
    epochs: Annotated[Positive, Field(description="number of passes over the train split")] = 5
    learning_rate: Annotated[float, Field(gt=0, description="highest learning rate of AdamW, after the warm-up")] = 5e-6
    weight_decay: Annotated[float, Field(ge=0, description="weight decay of AdamW")] = 0.025
    warmup_ratio: Annotated[Share, Field(description="share of the steps in which the learning rate rises")] = 0.01
    max_grad_norm: Annotated[
        float,
        Field(
            gt=0,
            description="norm to which larger gradients are scaled down; under normalization sequence, losses are "
            "sums over tokens and 1.0 clips nearly every step; see docs/explanation/training.md",
        ),
    ] = 1.0
    global_batch: Annotated[int, Field(ge=1, description="number of examples in an optimizer step, over all ranks")] = (
        16
    )
    batch_tokens: Annotated[
        int,
        Field(
            ge=1,
            description="maximum number of tokens in one micro-batch, both branches counted; training takes fewer "
            "where memory requires it",
            json_schema_extra=OPERATIONAL,
        ),
    ] = 8192
    gradient_checkpointing: Annotated[
        bool | Literal["auto"],
        Field(
            description="whether activations are computed a second time instead of kept, which saves memory; auto: "
            "only if the longest example does not fit otherwise",
            json_schema_extra=OPERATIONAL,
        ),
    ] = "auto"
    checkpoint_every: Annotated[
        int, Field(ge=1, description="number of optimizer steps between checkpoints", json_schema_extra=OPERATIONAL)
    ] = 100
    checkpoint_minutes: Annotated[
        float | None,
        Field(
            gt=0,
            description="maximum minutes between checkpoints; null: no limit",
            json_schema_extra=OPERATIONAL,
        ),
    ] = 30.0
    keep_checkpoints: Annotated[
        int, Field(ge=1, description="number of checkpoints that stay, the newest ones", json_schema_extra=OPERATIONAL)
    ] = 2
    max_loss_ratio: Annotated[
        float | None,
        Field(
            gt=1,
            description="ratio of the averaged loss to its best value above which a run stops; null: never stop",
            json_schema_extra=OPERATIONAL,
        ),
    ] = 3.0
    val_every: Annotated[
        int | None,
        Field(ge=0, description="number of optimizer steps between validations; null: one epoch; 0: no validation"),
    ] = None
    val_examples: Annotated[int, Field(ge=1, description="maximum number of val examples, chosen by a seeded hash")] = (
        200
    )
    keep: Annotated[
        Literal["last", "best"], Field(description="which adapter stays: the last, or the best on the val split")
    ] = "last"
    report_to: Annotated[
        tuple[Literal["tensorboard", "wandb", "mlflow"], ...],
        Field(description="trackers that also get the curves", json_schema_extra=OPERATIONAL),
    ] = ()
    lora: LoraSettings = LoraSettings()
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()
    launcher: Annotated[LauncherConfig, Field(json_schema_extra=OPERATIONAL)] = LauncherConfig()

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
                "step: set normalization to sample_weight or sequence, or weights_from to stored"
            )
        return self

    def fingerprint_fields(self) -> dict[str, Any]:
        """Return the settings that decide the adapter; those of validation count only if the best adapter is kept."""
        values = super().fingerprint_fields()
        del values["deepspeed"]  # the plan adds what decides in the user's file (training.engines.deciding)
        if self.keep == "last":
            del values["val_every"], values["val_examples"]
        return values
