"""Checkpoints that are whole or not there at all, and the adapter as PEFT reads it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from nextquill_core.errors import ModelError
from nextquill_core.model.identity import BaseName
from nextquill_core.model.loading import ADAPTER_CONFIG, ADAPTER_FILE, adapter_shapes, load_adapter
from nextquill_core.model.weights import file_faults
from nextquill_core.training import sharded_state as state
from nextquill_core.training.batches import TrainExample
from nextquill_core.training.disk import Writer, sweep, whole_folder
from nextquill_core.training.objective import Denominators
from nextquill_core.training.spec import TrainSpec
from storage.files import write_text

LATEST = "latest"
READ_BACK = "read_back"
ROUNDING, ROUNDING_HALF = {torch.float32: 1e-4}, 2e-2
"""Relative difference of two log-likelihoods of the same weights: in single precision, and in half."""
REPORT = "run the same command again; if this remains, it is a fault of this program"


class Checkpoints:
    """The checkpoints of a run: `checkpoints/step-N`, an adapter each, and beside them what resuming needs.

    A new one is on the disk before an older one goes, and `latest` names it last of all.

    Args:
        engine: What trains.
        writer: Of the run's folder.
        keep: How many stay.
    """

    def __init__(self, engine: Any, writer: Writer, keep: int) -> None:
        self.engine = engine
        self.writer = writer
        self.keep = keep
        self.adapters = writer.output / "checkpoints"
        self.states = writer.output / "scratch" / "states"

    def write(self, step: int) -> None:
        """Leave a checkpoint; a call for all ranks.

        Raises:
            UserError: The disk would not take it.
        """
        tag = f"step-{step:06d}"
        size = state.count_trained(self.engine) * 4 * (1 + len(state.MOMENTS))
        tensors, facts = state.gather(self.engine)

        def store() -> None:
            with whole_folder(self.states / tag) as folder:
                state.write(folder, tensors, facts)

        self.writer(store, "a checkpoint", size)
        save_adapter(self.engine, self.adapters / tag, self.writer)

        def finish() -> None:
            write_text(self.states / LATEST, tag)
            for folder in (self.states, self.adapters):
                for old in sorted(folder.glob("step-*"))[: -self.keep]:
                    shutil.rmtree(old)

        self.writer(finish, "a checkpoint", size)
        self.writer.resumes_at = step

    def resume(self, step_once: Callable[[], None]) -> int:
        """Bring the engine to the newest checkpoint; a call for all ranks.

        Args:
            step_once: Makes the engine step without effect, so that there is a state to overwrite.

        Returns:
            The steps that are done: 0 without a checkpoint.
        """
        latest = self.states / LATEST
        tag = latest.read_text(encoding="utf-8").strip() if latest.is_file() else ""
        step = int(tag.removeprefix("step-") or 0)
        if step:
            step_once()
            state.restore(self.engine, self.states / tag)
        self.writer.resumes_at = step
        self.writer(lambda: self._sweep(tag), "into it")
        return step

    def _sweep(self, latest: str) -> None:
        """Remove what a killed run left behind the newest checkpoint; it will be made again."""
        for folder in (self.states, self.adapters, self.writer.output):
            sweep(folder)
            for checkpoint in folder.glob("step-*"):
                if checkpoint.name > latest:
                    shutil.rmtree(checkpoint)
        self.writer.reserve()


def save_adapter(engine: Any, folder: Path, writer: Writer) -> None:
    """Write the adapter as it is now and read its weights back; a call for all ranks.

    Raises:
        UserError: The disk would not take it.
        ModelError: What was written lacks weights.
    """
    parameters = list(state.trained(engine).values())
    size = state.count_trained(engine) * parameters[0].element_size()
    with state.whole_parameters(parameters):
        spec: TrainSpec = engine.module.spec
        writer(lambda: write_adapter(engine.module.model, folder, spec.base), "the adapter", size)
        whole = writer(lambda: holds_weights(engine.module.model, folder), "the adapter")
    if not whole:
        raise ModelError("the adapter that was written lacks weights of the model in training", str(folder), REPORT)


def write_adapter(model: Any, folder: Path, base: BaseName) -> None:
    """Write a PEFT folder (safetensors), the same bytes for the same weights on any machine.

    Args:
        model: A PEFT model with its parameters whole.
        folder: Is there as a whole or not at all.
        base: What the adapter's configuration calls the base model.
    """
    with whole_folder(folder) as unfinished:
        # The vocabulary has its size of before; PEFT would ask the hub whether it has.
        model.save_pretrained(str(unfinished), safe_serialization=True, save_embedding_layers=False)
        (unfinished / "README.md").unlink(missing_ok=True)  # PEFT's unfilled form
        config_path = unfinished / ADAPTER_CONFIG
        config = json.loads(config_path.read_text(encoding="utf-8"))
        if not isinstance(config["target_modules"], str):  # a regular expression stays one
            config["target_modules"] = sorted(config["target_modules"])  # a set: its order changes from run to run
        config |= {"base_model_name_or_path": base.name, "revision": base.revision}
        config_path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def holds_weights(model: Any, folder: Path) -> bool:
    """Whether an adapter's file has every tensor of the model's adapter, whole and bit for bit, and no other."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file

    if file_faults(folder / ADAPTER_FILE, adapter_shapes(model)):
        return False
    found = load_file(folder / ADAPTER_FILE)
    expected = get_peft_model_state_dict(model, save_embedding_layers=False)
    return all(torch.equal(found[name], tensor.detach().cpu()) for name, tensor in expected.items())


def check_loads(engine: Any, folder: Path, example: TrainExample, expected: float) -> None:
    """Load an adapter by PEFT beside the one in training, and compare what both say of an example; for all ranks.

    The base model stays where it is, so this costs two forward passes of one example, whatever its size. Afterwards the
    engine is not fit for further steps.

    Args:
        engine: What has trained.
        folder: The adapter as it stays in the artifact.
        example: Any example.
        expected: Its negative log-likelihood in nats under the weights that were written, by `example_loss`.

    Raises:
        ModelError: PEFT cannot load the adapter, or the loaded one gives another likelihood.
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
    """The negative log-likelihood of an example's answer in nats, without dropout; a call for all ranks."""
    plain = replace(example, weights=[1.0] * len(example.pair.target))
    engine.module.eval()
    with engine.module.plain_likelihood():
        loss = float(engine.module((plain,), Denominators(1.0, 1.0)).normal)
    engine.train()
    return loss
