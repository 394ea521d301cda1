"""What training has changed, gathered from all ranks and given back to any number of them.

DeepSpeed's own checkpoints hold a slice a rank and load under the same number of ranks and ZeRO stage alone. What LoRA
trains is small: three numbers a parameter in single precision, so it is kept whole, in one safetensors file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from nextquill_core.errors import ModelError
from nextquill_core.model.weights import file_faults
from storage.documents import form_expected

STATE = "state.safetensors"
WEIGHT = "weight"
MOMENTS = ("exp_avg", "exp_avg_sq")
SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def trained(engine: Any) -> dict[str, nn.Parameter]:
    """What the engine trains, by name."""
    return {name: value for name, value in engine.module.named_parameters() if value.requires_grad}


def count_trained(engine: Any) -> int:
    """Numbers that are trained, over all ranks."""
    return sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in trained(engine).values())


def gather(engine: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The trained weights in single precision, AdamW's moments and its counters; a call for all ranks.

    Returns:
        Tensors in the host's memory, on rank 0 alone, named `weight/NAME`, `exp_avg/NAME`, ...; and plain values.
    """
    keeps = torch.distributed.get_rank() == 0
    masters = _masters(engine)
    tensors: dict[str, Tensor] = {}
    for name, parameter in trained(engine).items():
        for key in (WEIGHT, *MOMENTS):
            value = _read(engine, masters, parameter, key)
            if keeps:
                tensors[f"{key}/{name}"] = value.detach().to("cpu", torch.float32, copy=True).contiguous()
    steps = {float(state["step"]) for state in _adam(engine).state.values() if "step" in state}
    scaler = _scaler(engine)
    facts = {"adam_steps": max(steps), "scaler": {key: getattr(scaler, key) for key in SCALER if hasattr(scaler, key)}}
    return tensors, facts


def restore(engine: Any, folder: Path) -> None:
    """Give the engine what `write` left in `folder`; a call for all ranks.

    The engine must have stepped once, so that there are moments to overwrite.

    Raises:
        ModelError: The file is damaged or belongs to another model.
    """
    shapes = {name: tuple(getattr(value, "ds_shape", value.shape)) for name, value in trained(engine).items()}
    expected = {f"{key}/{name}": shape for name, shape in shapes.items() for key in (WEIGHT, *MOMENTS)}
    if faults := file_faults(folder / STATE, expected):
        remedy = (
            "run the stage with --force, or delete this folder's checkpoints; training then starts at its first step"
        )
        raise ModelError(f"the checkpoint is damaged: it {faults}", str(folder), remedy)
    masters = _masters(engine)
    with safe_open(folder / STATE, framework="pt") as file:
        with form_expected(str(folder / STATE), "run the stage with --force"):
            facts = json.loads(file.metadata()["facts"])
            adam_steps, scaled = int(facts["adam_steps"]), dict(facts["scaler"])
        for name, parameter in trained(engine).items():
            for key in (WEIGHT, *MOMENTS):
                _overwrite(engine, masters, parameter, key, file.get_tensor(f"{key}/{name}").to(engine.device))
    for state in _adam(engine).state.values():
        if isinstance(state.get("step"), Tensor):
            state["step"].fill_(adam_steps)
        elif "step" in state:
            state["step"] = adam_steps
    scaler = _scaler(engine)
    for key, value in scaled.items():
        if hasattr(scaler, key):
            setattr(scaler, key, value)


def write(folder: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Store what `gather` returned."""
    save_file(dict(tensors), folder / STATE, metadata={"facts": json.dumps(facts, sort_keys=True)})


@contextmanager
def whole_parameters(parameters: list[nn.Parameter], *, changed: bool = False) -> Iterator[None]:
    """Parameters that ZeRO-3 keeps in slices, whole for a while; a call for all ranks.

    Args:
        parameters: Any.
        changed: The block gives them the values that they keep.
    """
    if any(hasattr(parameter, "ds_id") for parameter in parameters):
        import deepspeed

        with deepspeed.zero.GatheredParameters(parameters, modifier_rank=0 if changed else None):
            yield
    else:
        yield


def _sharded(parameter: nn.Parameter) -> bool:
    return hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping")


def _read(engine: Any, masters: Mapping[int, Tensor], parameter: nn.Parameter, key: str) -> Tensor:
    if _sharded(parameter):
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        value: Tensor = (
            safe_get_full_fp32_param(parameter) if key == WEIGHT else safe_get_full_optimizer_state(parameter, key)
        )
        return value
    master = masters.get(id(parameter), parameter)
    own: Tensor = master if key == WEIGHT else _adam(engine).state[master][key]
    return own


@torch.no_grad()
def _overwrite(engine: Any, masters: Mapping[int, Tensor], parameter: nn.Parameter, key: str, value: Tensor) -> None:
    if key == WEIGHT:
        with whole_parameters([parameter], changed=True):
            parameter.data.copy_(value)
    if hasattr(parameter, "ds_id"):
        from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

        kept: Tensor = parameter.ds_tensor  # type: ignore[attr-defined]  # set by DeepSpeed
        own = _slice_of_rank(value, kept.numel())
        if key == WEIGHT:
            safe_set_local_fp32_param(parameter, own)
        else:
            safe_set_local_optimizer_state(parameter, own, key)
        return
    if _sharded(parameter):
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        if key == WEIGHT:
            safe_set_full_fp32_param(parameter, value)
        else:
            safe_set_full_optimizer_state(parameter, value, key)
        return
    master = masters.get(id(parameter), parameter)
    (master if key == WEIGHT else _adam(engine).state[master][key]).copy_(value)


def _slice_of_rank(value: Tensor, size: int) -> Tensor:
    """What ZeRO-3 keeps of a parameter on this rank; DeepSpeed's own setter fails where the last slice is padded."""
    ranks = torch.distributed.get_world_size()
    padded = torch.nn.functional.pad(value.flatten(), (0, size * ranks - value.numel()))
    own: Tensor = padded.split(size)[torch.distributed.get_rank()]
    return own


def _adam(engine: Any) -> torch.optim.Optimizer:
    """The optimizer below DeepSpeed's wrappers."""
    adam: torch.optim.Optimizer = getattr(engine, "basic_optimizer", engine.optimizer)
    return adam


def _masters(engine: Any) -> dict[int, Tensor]:
    """The single-precision copy of each parameter where ZeRO is off and the model in half precision."""
    optimizer = engine.optimizer
    if not isinstance(getattr(optimizer, "fp16_groups", None), list) or not hasattr(optimizer, "fp32_groups"):
        return {}
    low, high = (chain.from_iterable(groups) for groups in (optimizer.fp16_groups, optimizer.fp32_groups))
    return {id(parameter): master for parameter, master in zip(low, high, strict=True)}


def _scaler(engine: Any) -> Any:
    """What holds the scale of the loss under float16."""
    for name in ("loss_scaler", "loss_scale_config"):
        if hasattr(engine.optimizer, name):
            return getattr(engine.optimizer, name)
    return None
