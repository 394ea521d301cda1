"""What steps the model: DeepSpeed's engine, or, where DeepSpeed is not installed, one process of plain torch."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import nn

from nextquill_core.errors import ModelError, UserError
from nextquill_core.training.plain_engine import PlainEngine
from nextquill_core.training.spec import TrainSpec
from nextquill_core.training.zero import deepspeed_config


def deepspeed_installed() -> bool:
    """Whether this machine has DeepSpeed; it is made for Linux."""
    return importlib.util.find_spec("deepspeed") is not None


def connect() -> torch.device:
    """Join the other ranks, or be the only one; returns the device of this rank."""
    if not deepspeed_installed():
        from torch._C._distributed_c10d import HashStore

        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
        return torch.accelerator.current_accelerator() or torch.device("cpu")
    import deepspeed

    # On a CPU, DeepSpeed would first compile a shared-memory kernel: minutes, and a compiler, to save nothing.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend=None if torch.cuda.is_available() else "gloo", verbose=False)
    return torch.device(deepspeed.get_accelerator().current_device_name())


def engine_for(module: nn.Module, spec: TrainSpec, read_outside: nn.Parameter) -> Any:
    """The engine around a module, with AdamW on what it trains.

    Args:
        module: The model with its loss.
        spec: The order.
        read_outside: A parameter that is read outside the layer it belongs to; ZeRO-3 has to know.

    Returns:
        A DeepSpeed engine, or a `PlainEngine` without DeepSpeed.

    Raises:
        UserError: DeepSpeed refuses the user's own settings.
        ModelError: Half precision without DeepSpeed, which alone scales the loss.
    """
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=spec.learning_rate, weight_decay=spec.weight_decay)
    if not deepspeed_installed():
        if spec.model.dtype == "float16":
            raise ModelError("float16 needs DeepSpeed, which scales the loss", "model.dtype", "choose bfloat16")
        return PlainEngine(module, optimizer, spec.max_grad_norm)
    import deepspeed
    from deepspeed.runtime.config import DeepSpeedConfig

    config = deepspeed_config(spec)
    if spec.deepspeed:
        try:
            DeepSpeedConfig(config)
        except ValueError as error:  # pydantic's among them
            raise UserError(f"DeepSpeed refuses it: {error}", "train.deepspeed.config") from None
    if spec.zero_stage == 3:
        deepspeed.zero.register_external_parameter(module, read_outside)
    engine, *_ = deepspeed.initialize(model=module, model_parameters=trainable, optimizer=optimizer, config=config)
    return engine
