"""Checkpoints of a run, which are complete or absent, and the adapter in PEFT's format.

DeepSpeed's own checkpoints hold one slice per rank and load only under the same number of ranks and the same ZeRO
stage. LoRA trains few parameters, with three numbers each in single precision (weight and both moments of AdamW). So
this state is gathered whole from all ranks into one safetensors file, and restored under any number of ranks and any
ZeRO stage.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from nextquill_core.errors import ModelError
from nextquill_core.model.identity import BaseName
from nextquill_core.model.loading import ADAPTER_CONFIG, ADAPTER_FILE, adapter_shapes, file_faults, load_adapter
from nextquill_core.orders import TrainOrder
from nextquill_core.training.data import TrainExample
from nextquill_core.training.losses import Denominators
from nextquill_core.training.ranks import Writer, remove_unfinished, whole_folder
from storage.files import write_text
from storage.stored_json import expect_form

LATEST, STEP = "latest", "step-"
READ_BACK = "read_back"
ROUNDING, ROUNDING_HALF = {torch.float32: 1e-4}, 2e-2
"""Relative difference of two log-likelihoods of the same weights, in single and in half precision."""
REPORT = "run the same command again; if it fails again, report it as a bug"


class Checkpoints:
    """The checkpoints of a run: an adapter in `checkpoints/step-N`, and the state for resuming in `scratch/states`.

    A new checkpoint is on the disk before an older one is deleted, and the file `latest` names it last of all.

    Args:
        engine: The engine that trains.
        writer: Writer of the run's folder.
        keep: Number of checkpoints that stay.
    """

    def __init__(self, engine: Any, writer: Writer, keep: int) -> None:
        self.engine = engine
        self.writer = writer
        self.keep = keep
        self.adapters = writer.output / "checkpoints"
        self.states = writer.output / "scratch" / "states"

    def write(self, step: int) -> None:
        """Write a checkpoint after `step` steps; all ranks have to call this.

        Raises:
            UserError: The disk is full or cannot be written.
        """
        tag = step_name(step)
        size = count_trained(self.engine) * 4 * (1 + len(MOMENTS))
        tensors, facts = gather_state(self.engine)

        def store() -> None:
            with whole_folder(self.states / tag) as folder:
                write_state(folder, tensors, facts)

        self.writer(store, "a checkpoint", size)
        save_adapter(self.engine, self.adapters / tag, self.writer)

        def finish() -> None:
            write_text(self.states / LATEST, tag)
            for folder in (self.states, self.adapters):
                for old in [*step_folders(folder).values()][: -self.keep]:
                    shutil.rmtree(old)

        self.writer(finish, "a checkpoint", size)
        self.writer.resumes_at = step

    def resume(self, step_once: Callable[[], None]) -> int:
        """Restore the newest checkpoint, if there is one; all ranks have to call this.

        Args:
            step_once: Makes the engine step without effect, so that it has a state to overwrite.

        Returns:
            Number of steps that are done, 0 without a checkpoint.

        Raises:
            ModelError: The checkpoint is damaged.
        """
        latest = self.states / LATEST
        tag = latest.read_text(encoding="utf-8").strip() if latest.is_file() else step_name(0)
        with expect_form(str(latest), "run the stage with --force"):
            step = int(tag.removeprefix(STEP))
        if step:
            step_once()
            restore_state(self.engine, self.states / tag)
        self.writer.resumes_at = step
        self.writer(lambda: self._remove_later_than(step), "into it")
        return step

    def _remove_later_than(self, newest: int) -> None:
        """Remove what a killed run wrote after the newest checkpoint; the same steps write it again."""
        for folder in (self.states, self.adapters, self.writer.output):
            remove_unfinished(folder)
            for step, checkpoint in step_folders(folder).items():
                if step > newest:
                    shutil.rmtree(checkpoint)
        self.writer.reserve()


def step_name(step: int) -> str:
    """Return the name of a folder with what is stored after `step` steps."""
    return f"{STEP}{step:06d}"


def step_folders(folder: Path) -> dict[int, Path]:
    """Return the folders named by `step_name` in a folder, in the order of their steps."""
    return dict(sorted((int(path.name.removeprefix(STEP)), path) for path in folder.glob(f"{STEP}*")))


def save_adapter(engine: Any, folder: Path, writer: Writer) -> None:
    """Write the current adapter and compare the file with the weights; all ranks have to call this.

    Args:
        engine: The engine that trains.
        folder: Folder of the adapter.
        writer: Writer of the run's folder.

    Raises:
        UserError: The disk is full or cannot be written.
        ModelError: The file that was written lacks weights.
    """
    parameters = list(trained(engine).values())
    size = count_trained(engine) * parameters[0].element_size()
    with whole_parameters(parameters):
        order: TrainOrder = engine.module.order
        writer(lambda: write_adapter(engine.module.model, folder, order.base), "the adapter", size)
        whole = writer(lambda: holds_weights(engine.module.model, folder), "the adapter")
    if not whole:
        raise ModelError("the adapter that was written lacks weights of the model in training", str(folder), REPORT)


def write_adapter(model: Any, folder: Path, base: BaseName) -> None:
    """Write an adapter in PEFT's format (safetensors), the same bytes for the same weights on any machine.

    Args:
        model: A PEFT model with whole parameters.
        folder: Folder of the adapter, which is complete or absent afterwards.
        base: The base model's name in the adapter's configuration.
    """
    with whole_folder(folder) as unfinished:
        # The size of the vocabulary is unchanged; without this argument PEFT would ask the hub.
        model.save_pretrained(str(unfinished), safe_serialization=True, save_embedding_layers=False)
        (unfinished / "README.md").unlink(missing_ok=True)  # PEFT's empty form
        config_path = unfinished / ADAPTER_CONFIG
        config = json.loads(config_path.read_text(encoding="utf-8"))
        if not isinstance(config["target_modules"], str):  # a string is a regular expression
            config["target_modules"] = sorted(config["target_modules"])  # a set, whose order changes between runs
        config |= {"base_model_name_or_path": base.name, "revision": base.revision}
        config_path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def holds_weights(model: Any, folder: Path) -> bool:
    """Return whether an adapter's file has exactly the tensors of the model's adapter, bit for bit."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file

    if file_faults(folder / ADAPTER_FILE, adapter_shapes(model)):
        return False
    found = load_file(folder / ADAPTER_FILE)
    expected = get_peft_model_state_dict(model, save_embedding_layers=False)
    return all(torch.equal(found[name], tensor.detach().cpu()) for name, tensor in expected.items())


def check_loads(engine: Any, folder: Path, example: TrainExample, expected: float) -> None:
    """Load an adapter by PEFT beside the one in training and compare the likelihood of an example; for all ranks.

    The base model is not loaded again, so this costs two forward passes of one example at any model size. Afterwards
    the engine cannot train further.

    Args:
        engine: The engine that has trained.
        folder: Folder of the adapter as it stays in the artifact.
        example: Any example.
        expected: Its negative log-likelihood in nats under the weights that were written, from `example_loss`.

    Raises:
        ModelError: PEFT cannot load the adapter, or the likelihood differs.
    """
    model = engine.module.model
    load_adapter(model, folder, name=READ_BACK, autocast_dtype=False, remedy=REPORT)
    model.set_adapter(READ_BACK)
    dtype = next(parameter for name, parameter in model.named_parameters() if f".{READ_BACK}." in name).dtype
    got = example_loss(engine, example)
    tolerance = ROUNDING.get(dtype, ROUNDING_HALF)
    if not abs(got - expected) <= tolerance * max(1.0, abs(expected)):
        raise ModelError(
            f"as PEFT loads it, {example.pair.example_id} has log-likelihood {-got:.6g}; in training {-expected:.6g}",
            str(folder),
            REPORT,
        )


@torch.no_grad()
def example_loss(engine: Any, example: TrainExample) -> float:
    """Return the negative log-likelihood of an example's answer in nats, without dropout; for all ranks."""
    plain = replace(example, weights=[1.0] * len(example.pair.target))
    engine.module.eval()
    with engine.module.plain_likelihood():
        loss = float(engine.module((plain,), Denominators(1.0, 1.0)).normal)
    engine.train()
    return loss


STATE = "state.safetensors"
WEIGHT = "weight"
MOMENTS = ("exp_avg", "exp_avg_sq")
SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def trained(engine: Any) -> dict[str, nn.Parameter]:
    """Return the trained parameters by name."""
    return {name: value for name, value in engine.module.named_parameters() if value.requires_grad}


def count_trained(engine: Any) -> int:
    """Return how many numbers are trained, over all ranks."""
    return sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in trained(engine).values())


def gather_state(engine: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the trained weights in single precision with AdamW's state; all ranks have to call this.

    Returns:
        Tensors in the host's memory, on rank 0 alone, named `weight/NAME`, `exp_avg/NAME`, `exp_avg_sq/NAME`; and the
        counters of AdamW and of the loss scaler.
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


def restore_state(engine: Any, folder: Path) -> None:
    """Restore the engine's state from what `write_state` stored; all ranks have to call this.

    Args:
        engine: An engine that has stepped once, so that there are moments to overwrite.
        folder: Folder of the state.

    Raises:
        ModelError: The file is damaged or belongs to another model.
    """
    shapes = {name: tuple(getattr(value, "ds_shape", value.shape)) for name, value in trained(engine).items()}
    expected = {f"{key}/{name}": shape for name, shape in shapes.items() for key in (WEIGHT, *MOMENTS)}
    if faults := file_faults(folder / STATE, expected):
        remedy = "run the stage with --force, which starts training at its first step"
        raise ModelError(f"the checkpoint is damaged: it {faults}", str(folder), remedy)
    masters = _masters(engine)
    with safe_open(folder / STATE, framework="pt") as file:
        with expect_form(str(folder / STATE), "run the stage with --force"):
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


def write_state(folder: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Store what `gather_state` returned.

    Args:
        folder: Folder for the state.
        tensors: Tensors by name.
        facts: Counters, as JSON values.
    """
    save_file(dict(tensors), folder / STATE, metadata={"facts": json.dumps(facts, sort_keys=True)})


@contextmanager
def whole_parameters(parameters: list[nn.Parameter], *, changed: bool = False) -> Iterator[None]:
    """Gather parameters that ZeRO-3 holds in slices for the length of the block; all ranks have to call this.

    Args:
        parameters: Parameters of any kind.
        changed: Whether the block changes their values.
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
    """Return this rank's slice of a parameter under ZeRO-3; DeepSpeed's setter fails if the last slice is padded."""
    ranks = torch.distributed.get_world_size()
    padded = torch.nn.functional.pad(value.flatten(), (0, size * ranks - value.numel()))
    own: Tensor = padded.split(size)[torch.distributed.get_rank()]
    return own


def _adam(engine: Any) -> torch.optim.Optimizer:
    """Return the optimizer below DeepSpeed's wrappers."""
    adam: torch.optim.Optimizer = getattr(engine, "basic_optimizer", engine.optimizer)
    return adam


def _masters(engine: Any) -> dict[int, Tensor]:
    """Return the single-precision copy of each parameter, by its id; empty unless ZeRO is off in half precision."""
    optimizer = engine.optimizer
    if not isinstance(getattr(optimizer, "fp16_groups", None), list) or not hasattr(optimizer, "fp32_groups"):
        return {}
    low, high = (chain.from_iterable(groups) for groups in (optimizer.fp16_groups, optimizer.fp32_groups))
    return {id(parameter): master for parameter, master in zip(low, high, strict=True)}


def _scaler(engine: Any) -> Any:
    """Return the object that holds the scale of the loss under float16, or None."""
    for name in ("loss_scaler", "loss_scale_config"):
        if hasattr(engine.optimizer, name):
            return getattr(engine.optimizer, name)
    return None
