"""Checkpoints that are whole or not there at all, and the adapter as PEFT reads it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nextquill_core.training import state
from nextquill_core.training.disk import Writer, sweep, whole_folder
from storage.files import write_text

LATEST = "latest"


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
    """Write the adapter as it is now; a call for all ranks.

    Raises:
        UserError: The disk would not take it.
    """
    parameters = list(state.trained(engine).values())
    size = state.count_trained(engine) * parameters[0].element_size()
    with state.whole_parameters(parameters):
        writer(lambda: write_adapter(engine.module.model, folder), "the adapter", size)


def write_adapter(model: Any, folder: Path) -> None:
    """Write a PEFT folder (safetensors), the same bytes for the same weights."""
    with whole_folder(folder) as unfinished:
        model.save_pretrained(str(unfinished), safe_serialization=True)
        (unfinished / "README.md").unlink(missing_ok=True)  # PEFT's unfilled form
        config_path = unfinished / "adapter_config.json"
        config = json.loads(config_path.read_text(encoding="utf-8"))
        config["target_modules"] = sorted(config["target_modules"])  # a set: its order changes from run to run
        config_path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
