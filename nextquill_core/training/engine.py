"""What steps the model: DeepSpeed's engine, or, where DeepSpeed is not installed, one process of plain torch."""

from __future__ import annotations

import importlib.util
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch
from torch import nn
from torch.distributed.rendezvous import register_rendezvous_handler

from nextquill_core.errors import ModelError, UserError
from nextquill_core.training.deepspeed_config import deepspeed_config
from nextquill_core.training.plain_engine import PlainEngine
from nextquill_core.training.spec import TrainSpec

LOOPBACK = "loopback"
"""Scheme of the address at which ranks of one machine meet."""


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
    deepspeed.init_distributed(
        dist_backend=None if torch.cuda.is_available() else "gloo", verbose=False, init_method=_meeting()
    )
    return torch.device(deepspeed.get_accelerator().current_device_name())


def _meeting() -> str | None:
    """How the ranks find each other: on one machine through a store that only this machine reaches.

    The store that torch makes by itself listens on all addresses, even where MASTER_ADDR is a loopback address.
    """
    if not os.environ.get("MASTER_ADDR", "").startswith("127."):
        return None
    with suppress(RuntimeError):  # it is registered already
        register_rendezvous_handler(LOOPBACK, _meet_on_loopback)
    return f"{LOOPBACK}://"


def _meet_on_loopback(url: str, timeout: timedelta, **_: Any) -> Iterator[tuple[Any, int, int]]:
    from torch._C._distributed_c10d import TCPStore

    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    listener = socket.create_server((host, port)).detach() if rank == 0 else None
    yield TCPStore(host, port, ranks, rank == 0, timeout, master_listen_fd=listener), rank, ranks
    raise RuntimeError("ranks cannot meet again in the same process")


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
    _keep_norm(engine, trainable, spec.max_grad_norm)
    return engine


def _keep_norm(engine: Any, trained: list[nn.Parameter], max_grad_norm: float) -> None:
    """Let `get_global_grad_norm` return the norm under ZeRO 0 in float32 too.

    There, DeepSpeed clips in `clip_fp32_gradients` and forgets the norm; everywhere else its optimizer keeps it.
    """

    def clip() -> None:
        engine._global_grad_norm = float(nn.utils.clip_grad_norm_(trained, max_grad_norm))

    engine.clip_fp32_gradients = clip
