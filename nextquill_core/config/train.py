"""Training."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from nextquill_core.config.base import OPERATIONAL, MethodName, Positive, Section, Share
from nextquill_core.training.lora_targets import checked_targets, peft_targets
from nextquill_core.training.spec import Normalization


class LoraSettings(Section):
    """LoRA; rank and targets are nowhere stated in the paper, these are the field's habit."""

    r: Annotated[Positive, Field(description="rank")] = 16
    alpha: Annotated[Positive, Field(description="the update is scaled by alpha / r")] = 32
    dropout: Annotated[float, Field(ge=0, lt=1, description="on the adapter's input, in training")] = 0.05
    targets: Annotated[
        str | tuple[str, ...],
        Field(
            description="linear layers that get an adapter, as in PEFT's target_modules: all-linear; a list of names "
            "such as [q_proj, v_proj]; or a regular expression that matches whole module paths, such as "
            r".*self_attn\.[qv]_proj"
        ),
    ] = "all-linear"

    _as_peft_takes_them = field_validator("targets")(checked_targets)

    def semantic(self) -> dict[str, Any]:
        """As for any section; however a list of names is written, it is the same list."""
        return super().semantic() | {"targets": peft_targets(self.targets)}


class DeepSpeedConfig(Section):
    """DeepSpeed's settings."""

    zero_stage: Annotated[
        Literal[0, 1, 2, 3],
        Field(
            description="what ranks share out: 0: nothing; 1: AdamW's state; 2: gradients too; 3: θ0 as well",
            json_schema_extra=OPERATIONAL,
        ),
    ] = 2
    offload: Annotated[
        Literal["none", "optimizer", "parameters"],
        Field(
            description="into the host's memory: optimizer: AdamW's state, ZeRO 1 up; parameters: θ0 too, ZeRO 3",
            json_schema_extra=OPERATIONAL,
        ),
    ] = "none"
    config: Annotated[
        str | None,
        Field(
            description="path of a DeepSpeed JSON file, laid under the keys above; those of its keys that can change "
            "the adapter, such as loss scaling, make it stale when they change"
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
        raise ValueError("must be `auto`, or 1 at least")
    return count


class SlurmConfig(Section):
    """The allocation that srun asks for, or, inside one, the part of it that is used."""

    nodes: Annotated[Positive, Field(description="machines")] = 2
    ranks_per_node: Annotated[int | Literal["auto"], Field(description="auto: one an accelerator, or one")] = "auto"
    partition: Annotated[str | None, Field(description="null: the cluster's own choice")] = None
    arguments: Annotated[
        tuple[str, ...], Field(description="further arguments of srun, such as --gpus-per-node=8 or --time=2-0")
    ] = ()

    _at_least_one = field_validator("ranks_per_node")(_auto_or_positive)


class LauncherConfig(Section):
    """Where the ranks run; see docs/explanation/training.md."""

    kind: Annotated[
        Literal["local", "hostfile", "slurm"],
        Field(description="local: this machine; hostfile: hosts reached by a remote shell; slurm: srun"),
    ] = "local"
    processes: Annotated[
        int | Literal["auto"], Field(description="local: ranks; auto: one an accelerator, one on a CPU")
    ] = "auto"
    hostfile: Annotated[str | None, Field(description="hostfile: DeepSpeed's, lines of `host slots=N`")] = None
    remote_shell: Annotated[
        str, Field(min_length=1, description="hostfile: gets a host and a command line as its last two arguments")
    ] = "ssh -o BatchMode=yes -o ServerAliveInterval=15"
    address: Annotated[
        str | None, Field(description="hostfile, slurm: the first host as the others reach it; null: by its name")
    ] = None
    port: Annotated[
        int | None, Field(ge=1, le=65535, description="hostfile, slurm: where ranks meet; null: one that is free here")
    ] = None
    slurm: SlurmConfig = SlurmConfig()

    _at_least_one = field_validator("processes")(_auto_or_positive)

    @model_validator(mode="after")
    def _hosts_are_named(self) -> LauncherConfig:
        if self.kind == "hostfile" and self.hostfile is None:
            raise ValueError("kind hostfile needs the path of a hostfile in train.launcher.hostfile")
        return self


class CausalLossConfig(Section):
    """Variants of the causal preference loss L_p; the defaults are the paper's."""

    counterfactual_grad: Annotated[
        Literal["through", "stop"], Field(description="whether the branch without history learns from L_p as well")
    ] = "through"
    weighted: Annotated[
        bool,
        Field(
            description="true: tokens count in L_p by their preference weights (Eq. 6); false: each counts 1, as in "
            "the official code"
        ),
    ] = True
    target: Annotated[
        Literal["label", "effect"],
        Field(
            description="label: cross-entropy of the difference of logits with the token (Eq. 6); effect: squared "
            "distance of the model's effect on the token's probability from the stored effect"
        ),
    ] = "label"


class TrainConfig(Section):
    """A LoRA adapter on L = L_n + α·L_p (Eqs. 5 to 7)."""

    method: Annotated[MethodName, Field(description="trained in any case; what `export` and `promote` mean")] = (
        "nextquill"
    )
    alpha: Annotated[float, Field(ge=0, description="α, the share of the causal preference loss (Eq. 7)")] = 0.05
    normalization: Annotated[
        Normalization,
        Field(
            description="what the losses of a step are divided by: sequence: the number of samples (paper, Eq. 5); "
            "weight: the step's Σω, the sum of all weights (MIRROR's code); sample_weight: each sample by its own Σω, "
            "then the number of samples (the official code); see docs/explanation/training.md"
        ),
    ] = "sequence"
    weights_from: Annotated[
        Literal["stored", "live"],
        Field(
            description="where preference weights come from: stored: the score stage, once, before training (the "
            "paper); live: the model in training, in each step, by the same weight policy (the official code, PerCE)"
        ),
    ] = "stored"
    causal_loss: CausalLossConfig = CausalLossConfig()
    epochs: Annotated[Positive, Field(description="passes over the train split")] = 5
    learning_rate: Annotated[float, Field(gt=0, description="AdamW's highest, after the warm-up")] = 5e-6
    weight_decay: Annotated[float, Field(ge=0, description="AdamW's")] = 0.025
    warmup_ratio: Annotated[Share, Field(description="share of the steps in which the learning rate rises")] = 0.01
    max_grad_norm: Annotated[
        float,
        Field(
            gt=0,
            description="gradients with a greater norm are scaled down to this norm; under normalization sequence, "
            "losses are sums over tokens and 1.0 clips nearly every step; see docs/explanation/training.md",
        ),
    ] = 1.0
    global_batch: Annotated[int, Field(ge=1, description="examples an optimizer step, over all ranks")] = 16
    batch_tokens: Annotated[
        int, Field(ge=1, description="token budget of one micro-batch, both branches", json_schema_extra=OPERATIONAL)
    ] = 8192
    gradient_checkpointing: Annotated[
        bool,
        Field(description="compute activations twice and keep none: less memory", json_schema_extra=OPERATIONAL),
    ] = False
    checkpoint_every: Annotated[
        int, Field(ge=1, description="optimizer steps between checkpoints", json_schema_extra=OPERATIONAL)
    ] = 100
    checkpoint_minutes: Annotated[
        float | None,
        Field(
            gt=0,
            description="a checkpoint after so long at the latest; null: by steps alone",
            json_schema_extra=OPERATIONAL,
        ),
    ] = 30.0
    keep_checkpoints: Annotated[
        int, Field(ge=1, description="newest checkpoints that stay", json_schema_extra=OPERATIONAL)
    ] = 2
    max_loss_ratio: Annotated[
        float | None,
        Field(
            gt=1,
            description="stop when the averaged loss stays above this times its best; null: never",
            json_schema_extra=OPERATIONAL,
        ),
    ] = 3.0
    val_every: Annotated[
        int | None, Field(ge=0, description="optimizer steps between validations; null: once an epoch; 0: never")
    ] = None
    val_examples: Annotated[int, Field(ge=1, description="val examples at most, chosen by a seeded hash")] = 200
    keep: Annotated[
        Literal["last", "best"], Field(description="the adapter that stays: the last, or the best on the val split")
    ] = "last"
    report_to: Annotated[
        tuple[Literal["tensorboard", "wandb", "mlflow"], ...],
        Field(description="where else to show the curves", json_schema_extra=OPERATIONAL),
    ] = ()
    lora: LoraSettings = LoraSettings()
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()
    launcher: Annotated[LauncherConfig, Field(json_schema_extra=OPERATIONAL)] = LauncherConfig()

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

    def semantic(self) -> dict[str, Any]:
        """As for any section; how often and on how much is validated decides nothing unless the best is kept."""
        values = super().semantic()
        del values["deepspeed"]  # the plan reads the file and counts what in it decides (training.zero.deciding)
        if self.keep == "last":
            del values["val_every"], values["val_examples"]
        return values
