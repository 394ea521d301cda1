"""Engines that step the model: DeepSpeed's with its configuration, or plain torch where DeepSpeed is not installed.

DeepSpeed's configuration is the settings of `train` laid over the user's own JSON file where there is one. torch is
imported only where a model is trained, because a plan reads that configuration without it.
"""

from __future__ import annotations

import importlib.util
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nextquill_core.config.train import TrainConfig
from nextquill_core.errors import ModelError, UserError, first_line
from nextquill_core.orders import TrainOrder
from storage.files import read_json

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

LOOPBACK = "loopback"
"""Scheme of the address at which the ranks of one machine meet."""


class PlainEngine:
    """One process of plain torch with the part of DeepSpeed's engine interface that the trainer uses.

    Args:
        module: The model with its loss.
        optimizer: Optimizer of the trained parameters; its state consists of tensors, as AdamW's does.
        max_grad_norm: Norm to which larger gradients are scaled down.
    """

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, max_grad_norm: float) -> None:
        self.module = module
        self.optimizer = optimizer
        self._max_grad_norm = max_grad_norm
        self._trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._at_boundary = True
        self._norm = 0.0
        self.device: torch.device = next(module.parameters()).device

    def __call__(self, *inputs: Any) -> Any:
        """Return the module's output."""
        return self.module(*inputs)

    def train(self) -> None:
        """Turn dropout on."""
        self.module.train()

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a part of the step's loss."""
        import torch

        torch.autograd.backward(loss)

    def set_gradient_accumulation_boundary(self, is_boundary: bool) -> None:
        """Set whether the next call of `step` ends the optimizer step."""
        self._at_boundary = is_boundary

    def step(self) -> None:
        """Clip, step and clear the gradients if this call ends the optimizer step."""
        if not self._at_boundary:
            return
        from torch.nn.utils import clip_grad_norm_

        self._norm = float(clip_grad_norm_(self._trained, self._max_grad_norm))
        self.optimizer.step()
        self.optimizer.zero_grad()

    def get_global_grad_norm(self) -> float:
        """Return the norm of the last step's gradients before clipping."""
        return self._norm


def deepspeed_installed() -> bool:
    """Return whether this machine has DeepSpeed, which is made for Linux."""
    return importlib.util.find_spec("deepspeed") is not None


def connect() -> torch.device:
    """Join the process group of the ranks and return the device of this rank."""
    import torch

    if not deepspeed_installed():
        from torch._C._distributed_c10d import HashStore

        from nextquill_core.model.loading import best_device

        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
        return best_device()
    import deepspeed

    # On a CPU, DeepSpeed would first compile a shared-memory kernel, which takes minutes and saves nothing here.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(
        dist_backend=None if torch.cuda.is_available() else "gloo", verbose=False, init_method=_init_method()
    )
    return torch.device(deepspeed.get_accelerator().current_device_name())


def engine_for(module: nn.Module, order: TrainOrder, read_outside: nn.Parameter) -> Any:
    """Return the engine around a module, with AdamW on the parameters that it trains.

    Args:
        module: The model with its loss.
        order: Settings of the optimizer, of DeepSpeed and of the model's data type.
        read_outside: Parameter that is read outside the layer it belongs to, of which ZeRO-3 has to know.

    Returns:
        A DeepSpeed engine, or a `PlainEngine` without DeepSpeed.

    Raises:
        UserError: DeepSpeed refuses the user's own JSON settings.
        ModelError: The model is in float16 and DeepSpeed, which scales the loss for it, is not installed.
    """
    import torch

    settings = order.train
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    if not deepspeed_installed():
        if order.model.dtype == "float16":
            raise ModelError("float16 needs DeepSpeed, which scales the loss", "model.dtype", "choose bfloat16")
        return PlainEngine(module, optimizer, settings.max_grad_norm)
    import deepspeed
    from deepspeed.runtime.config import DeepSpeedConfig

    config = deepspeed_config(order)
    if order.deepspeed_json:
        try:
            DeepSpeedConfig(config)
        except ValueError as error:  # pydantic's among them
            raise UserError(f"DeepSpeed refuses it: {error}", "train.deepspeed.config") from None
    if settings.deepspeed.zero_stage == 3:
        deepspeed.zero.register_external_parameter(module, read_outside)
    engine, *_ = deepspeed.initialize(model=module, model_parameters=trained, optimizer=optimizer, config=config)
    _keep_norm(engine, trained, settings.max_grad_norm)
    return engine


def _keep_norm(engine: Any, trained: list[nn.Parameter], max_grad_norm: float) -> None:
    """Make `get_global_grad_norm` return the norm under ZeRO 0 in float32 too.

    There, DeepSpeed clips in `clip_fp32_gradients` and drops the norm; in all other cases its optimizer keeps it.
    """

    from torch.nn.utils import clip_grad_norm_

    def clip() -> None:
        engine._global_grad_norm = float(clip_grad_norm_(trained, max_grad_norm))

    engine.clip_fp32_gradients = clip


def _init_method() -> str | None:
    """Return where the ranks meet: on one machine, a store that only this machine can reach.

    The store that torch makes by default listens on all addresses, even where MASTER_ADDR is a loopback address.
    """
    if not os.environ.get("MASTER_ADDR", "").startswith("127."):
        return None
    from torch.distributed.rendezvous import register_rendezvous_handler

    with suppress(RuntimeError):  # it is registered already
        register_rendezvous_handler(LOOPBACK, _meet_on_loopback)
    return f"{LOOPBACK}://"


def _meet_on_loopback(url: str, timeout: timedelta, **_: Any) -> Iterator[tuple[Any, int, int]]:
    from torch._C._distributed_c10d import TCPStore

    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    listener = socket.create_server((host, port)).detach() if rank == 0 else None
    yield TCPStore(host, port, ranks, rank == 0, timeout, master_listen_fd=listener), rank, ranks
    raise RuntimeError("ranks cannot meet a second time in the same process")


AUTO = "auto"
"""Value that stands for what the trainer sets, as in transformers; other keys with it keep DeepSpeed's default."""

SECTIONS = frozenset({"bf16", "fp16", "zero_optimization"})
"""Honoured keys in which some keys are set by NextQuill."""

LOSSY = frozenset({
    "zero_quantized_gradients", "zero_quantized_nontrainable_weights", "zero_quantized_weights",
})  # fmt: skip
"""Keys of `zero_optimization` that change the adapter by more than rounding."""

TOP_LEVEL = frozenset({
    "activation_checkpointing", "aio", "checkpoint", "comms_logger", "csv_monitor", "disable_allgather", "dump_state",
    "flops_profiler", "memory_breakdown", "steps_per_print", "tensorboard", "wall_clock_breakdown", "wandb",
    "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer",
})  # fmt: skip
"""Top-level keys that decide where a training runs, or what it prints."""

HONOURED = TOP_LEVEL | SECTIONS | {
    "communication_data_type", "gradient_predivide_factor", "prescale_gradients", "sparse_gradients",
}  # fmt: skip
"""Top-level keys that are passed to DeepSpeed unchanged; `deciding` selects those that can change the adapter."""

PLACE_AND_SPEED = TOP_LEVEL | {
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
}  # fmt: skip
"""Keys that decide where and how fast a training runs, or what it prints; all other honoured keys count."""


def deepspeed_config(order: TrainOrder) -> dict[str, Any]:
    """Return DeepSpeed's configuration of one run; the trainer accumulates gradients itself, since steps vary."""
    own = order.deepspeed_json or {}
    settings = order.train.deepspeed
    zero = {**own.get("zero_optimization", {}), "stage": settings.zero_stage}
    if settings.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", **zero.get("offload_optimizer", {})}
    if settings.offload == "parameters":
        zero["offload_param"] = {"device": "cpu", **zero.get("offload_param", {})}
    return {
        "steps_per_print": 10**9,
        # DeepSpeed's Adam for the CPU is a kernel that each machine would have to compile, to step a few MB of LoRA.
        "zero_force_ds_cpu_optimizer": False,
        **own,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": order.train.max_grad_norm,
        "bf16": {**own.get("bf16", {}), "enabled": order.model.dtype == "bfloat16"},
        "fp16": {**own.get("fp16", {}), "enabled": order.model.dtype == "float16"},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
    }


def configured(train: TrainConfig, dtype: str) -> dict[str, Any] | None:
    """Return what the user's DeepSpeed JSON adds to the settings of `train`, or None if the settings name no file.

    A key that repeats what this run does anyway is accepted, as is `auto`; neither is returned.

    Args:
        train: The section `train`.
        dtype: Data type of the model.

    Raises:
        UserError: The file cannot be read, or has keys that cannot be honoured; all of them are named.
    """
    if train.deepspeed.config is None:
        return None
    path, offload = Path(train.deepspeed.config), train.deepspeed.offload
    try:
        document = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read it: {first_line(error)}", str(path), "check train.deepspeed.config") from None
    if not isinstance(document, dict):
        raise UserError("it is not a JSON object", str(path), "check train.deepspeed.config")
    settled: dict[str, Any] = {
        "train_batch_size": train.global_batch,
        "gradient_clipping": train.max_grad_norm,
        "bf16.enabled": dtype == "bfloat16",
        "fp16.enabled": dtype == "float16",
        "zero_optimization.stage": train.deepspeed.zero_stage,
    }
    refused = list(_refused(document, settled))
    zero = document.get("zero_optimization", {})
    for key, ordered in (("offload_optimizer", offload != "none"), ("offload_param", offload == "parameters")):
        own = zero.get(key, AUTO) if ordered and isinstance(zero, dict) else AUTO
        if isinstance(own, dict):
            refused += [f"zero_optimization.{key}.device"] if own.get("device") == "none" else []
        elif own != AUTO:
            refused.append(f"zero_optimization.{key}")
    if refused:
        raise UserError(
            f"cannot honour {', '.join(refused)}",
            str(path),
            "remove it or write `auto`: set it by model, train and train.deepspeed in the config",
        )
    honoured = {key: value for key, value in document.items() if key in HONOURED}
    return {key: value for key, value in _without_auto(honoured).items() if value != {}}


def deciding(own: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the part of a user's DeepSpeed settings that can change the adapter by more than rounding.

    Loss scaling skips steps that overflow, communication in half precision loses digits, and any key that is not known
    to be harmless counts. So the fingerprint depends on the content of the file and not on its name, and a changed
    bucket size makes nothing stale.

    Args:
        own: What `configured` returns.
    """
    parts: dict[str, Any] = {}
    for key, value in (own or {}).items():
        if key == "zero_optimization":
            value = {name: inner for name, inner in value.items() if f"{key}.{name}" not in PLACE_AND_SPEED}
        if key not in PLACE_AND_SPEED and value != {}:
            parts[key] = value
    return parts


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
