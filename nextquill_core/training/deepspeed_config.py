"""DeepSpeed's configuration: ZeRO and offloading as ordered, over the user's own JSON where there is one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nextquill_core.errors import UserError, first_line
from nextquill_core.training.spec import TrainSpec
from storage.files import read_json

if TYPE_CHECKING:
    from nextquill_core.config import TrainConfig

AUTO = "auto"
"""Written where the trainer is to fill in the value, as transformers does; where ours has none, the default counts."""

HONOURED = frozenset({
    "activation_checkpointing", "aio", "bf16", "checkpoint", "comms_logger", "communication_data_type", "csv_monitor",
    "disable_allgather", "dump_state", "flops_profiler", "fp16", "gradient_predivide_factor", "memory_breakdown",
    "prescale_gradients", "sparse_gradients", "steps_per_print", "tensorboard", "wall_clock_breakdown", "wandb",
    "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "zero_optimization",
})  # fmt: skip
"""Top-level keys that are handed on as they are; `deciding` tells those that count from those that do not."""

SECTIONS = frozenset({"bf16", "fp16", "zero_optimization"})
"""Those of them of which single keys are ours."""

LOSSY = frozenset({
    "zero_quantized_gradients", "zero_quantized_nontrainable_weights", "zero_quantized_weights",
})  # fmt: skip
"""Keys of `zero_optimization` that change the adapter by more than rounding."""

PLACE_AND_SPEED = frozenset({
    "activation_checkpointing", "aio", "checkpoint", "comms_logger", "csv_monitor", "disable_allgather", "dump_state",
    "flops_profiler", "memory_breakdown", "steps_per_print", "tensorboard", "wall_clock_breakdown", "wandb",
    "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer",
    *(f"zero_optimization.{key}" for key in (
        "allgather_bucket_size", "allgather_partitions", "contiguous_gradients", "elastic_checkpoint",
        "enable_sanity_checks", "load_from_fp32_weights", "log_trace_cache_warnings", "max_live_parameters",
        "max_reuse_distance", "memory_efficient_linear", "model_persistence_threshold", "module_granularity_threshold",
        "offload_optimizer", "offload_param", "overlap_comm", "param_persistence_threshold",
        "pipeline_loading_checkpoint", "prefetch_bucket_size", "reduce_bucket_size", "reduce_scatter",
        "round_robin_gradients", "stage", "stage3_allgather_sequential", "stage3_gather_16bit_weights_on_model_save",
        "stage3_max_live_parameters", "stage3_max_reuse_distance", "stage3_model_persistence_threshold",
        "stage3_module_granularity_threshold", "stage3_param_persistence_threshold", "stage3_prefetch_bucket_size",
        "stage3_use_all_reduce_for_fetch_params", "sub_group_size", "use_multi_rank_bucket_allreduce",
        "zero_hpz_partition_size",
    )),
})  # fmt: skip
"""Keys that say where and how fast a training runs, or what it prints. All other honoured keys count."""


def deepspeed_config(spec: TrainSpec) -> dict[str, Any]:
    """The configuration of one run; a step's micro-batches are counted by the trainer, since they vary."""
    own = spec.deepspeed or {}
    zero = {**own.get("zero_optimization", {}), "stage": spec.zero_stage}
    if spec.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", **zero.get("offload_optimizer", {})}
    if spec.offload == "parameters":
        zero["offload_param"] = {"device": "cpu", **zero.get("offload_param", {})}
    return {
        "steps_per_print": 10**9,
        # DeepSpeed's own Adam for the CPU is a kernel that each machine would compile, to step a few MB of LoRA.
        "zero_force_ds_cpu_optimizer": False,
        **own,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": spec.max_grad_norm,
        "bf16": {**own.get("bf16", {}), "enabled": spec.model.dtype == "bfloat16"},
        "fp16": {**own.get("fp16", {}), "enabled": spec.model.dtype == "float16"},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
    }


def configured(train: TrainConfig, dtype: str) -> dict[str, Any] | None:
    """Return what the DeepSpeed JSON of a configuration adds to ours, or None where it names none.

    Args:
        train: The section `train`.
        dtype: Name of the model's dtype.

    Raises:
        UserError: As for `own_settings`.
    """
    if train.deepspeed.config is None:
        return None
    return own_settings(
        Path(train.deepspeed.config),
        zero_stage=train.deepspeed.zero_stage,
        offload=train.deepspeed.offload,
        dtype=dtype,
        max_grad_norm=train.max_grad_norm,
        global_batch=train.global_batch,
    )


def deciding(own: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the part of a user's DeepSpeed settings that can change the adapter by more than rounding.

    Loss scaling skips steps that overflow, communication in half precision loses digits, and a key that is not known
    to be harmless counts. So the file counts by its content and not by its name, and a changed bucket size trains
    nothing again.

    Args:
        own: What `own_settings` returns, or None.
    """
    parts: dict[str, Any] = {}
    for key, value in (own or {}).items():
        if key == "zero_optimization":
            value = {name: inner for name, inner in value.items() if f"{key}.{name}" not in PLACE_AND_SPEED}
        if key not in PLACE_AND_SPEED and value != {}:
            parts[key] = value
    return parts


def own_settings(
    path: Path, *, zero_stage: int, offload: str, dtype: str, max_grad_norm: float, global_batch: int
) -> dict[str, Any]:
    """What a user's DeepSpeed JSON adds to ours.

    A key that says what this run does anyway may stand there, as may `auto`; neither is in what comes back.

    Args:
        path: The file.
        zero_stage: As ordered.
        offload: As ordered.
        dtype: The model's.
        max_grad_norm: As ordered.
        global_batch: Examples an optimizer step.

    Raises:
        UserError: The file cannot be read, or asks for what cannot be honoured; all such keys are named.
    """
    try:
        document = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read it: {first_line(error)}", str(path), "check train.deepspeed.config") from None
    if not isinstance(document, dict):
        raise UserError("it is no JSON object", str(path), "check train.deepspeed.config")
    settled: dict[str, Any] = {
        "train_batch_size": global_batch,
        "gradient_clipping": max_grad_norm,
        "bf16.enabled": dtype == "bfloat16",
        "fp16.enabled": dtype == "float16",
        "zero_optimization.stage": zero_stage,
    }
    refused = list(_refused(document, settled))
    zero = document.get("zero_optimization", {})
    for key, ordered in (("offload_optimizer", offload != "none"), ("offload_param", offload == "parameters")):
        if ordered and isinstance(zero, dict) and isinstance(zero.get(key), dict) and zero[key].get("device") == "none":
            refused.append(f"zero_optimization.{key}.device")
    if refused:
        raise UserError(
            f"cannot honour {', '.join(refused)}",
            str(path),
            "take it out, or write `auto`: model, train and train.deepspeed in the config say it",
        )
    honoured = {key: value for key, value in document.items() if key in HONOURED}
    return {key: value for key, value in _without_auto(honoured).items() if value != {}}


def _refused(document: Mapping[str, Any], settled: Mapping[str, Any]) -> Iterator[str]:
    for key, value in document.items():
        if value == AUTO or (key in settled and value == settled[key]):
            continue
        if key not in HONOURED or (key in SECTIONS and not isinstance(value, dict)):
            yield key
        if key in SECTIONS and isinstance(value, dict):
            for inner, setting in value.items():
                name = f"{key}.{inner}"
                if (name in settled and setting not in (AUTO, settled[name])) or (inner in LOSSY and setting):
                    yield name


def _without_auto(values: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in values.items() if value != AUTO}
    return {key: _without_auto(value) if isinstance(value, dict) else value for key, value in kept.items()}
