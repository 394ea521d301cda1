"""Announce what a command will do, and check its input, before anything is loaded that takes seconds."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

from nextquill_core import hub
from nextquill_core.config import Config, StageName
from nextquill_core.model.identity import REMEDY
from nextquill_core.model.packaged import hub_remedy
from nextquill_core.pipeline import Freshness
from nextquill_core.pipeline.run import Run

STAGES = get_args(StageName)
WITH_MODEL = ("score", "train", "evaluate")
SLOW_AFTER_S = 2.5
READING = "nextquill: reads the raw files and the store; what is not on this machine yet is written or downloaded now"
OUTLOOK = {
    "missing": "will be made",
    "failed": "will be resumed; it had failed",
    "interrupted": "will be resumed; it had been interrupted",
    "running": "another process is making it",
}


@contextmanager
def notice_if_slow() -> Iterator[None]:
    """Print a line if the block takes long, as it does for raw files on a slow disk."""
    timer = threading.Timer(SLOW_AFTER_S, lambda: print(READING, file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def require_sources(run: Run, stages: Sequence[StageName], *, force: bool) -> None:
    """Make sure that the inputs of stages exist: artifacts of other stages, and a model of the hub.

    Args:
        run: The configuration and its store.
        stages: Stages that the command runs.
        force: Whether it makes again what is up to date.

    Raises:
        UserError: An input is missing, or the hub cannot be reached and the model is not on this machine.
    """
    steps = [step for stage in stages for step in run.plan.made_by(stage)]
    if force or any(run.freshness(step).state != "fresh" for step in steps):
        run.require_inputs(steps)
        here = [stage for stage in stages if stage in WITH_MODEL and run.config.slurm.job(stage) is None]
        # If ingest runs first, its errors about the data come first, too.
        if here and run.freshness(run.plan.ingest).state == "fresh":
            base = run.plan.base
            hub.require_model(base.name_or_path, base.revision, hub_remedy(run.config.model.name_or_path, REMEDY))


def unwritten_lines(command: str, settings: Config) -> Iterator[str]:
    """Yield lines for a run whose synthetic data are written first: no plan can be made for as long as that takes.

    Args:
        command: Name of the command.
        settings: The configuration.
    """
    asked = [raw.synthetic for raw in settings.ingest.inputs if raw.synthetic]
    for one in asked:
        if not (Path(one.folder).expanduser() / "reviews.jsonl").is_file():
            users = f"{one.users:,} users of a synthetic world"
            yield f"nextquill {command}: first writes reviews of {users} to {one.folder},"
            yield f"  then runs {', '.join(STAGES[:-1])} and {STAGES[-1]}; the plan follows in seconds"


def plan_lines(
    command: str, where: str, run: Run, stages: Sequence[StageName], *, force: bool = False
) -> Iterator[str]:
    """Yield lines that say which stages a command reuses, which it makes, and why.

    Args:
        command: Name of the command.
        where: File of the configuration.
        run: The configuration and its store.
        stages: Stages that the command runs.
        force: Whether it makes again what is up to date.
    """
    yield f"nextquill {command}: {where}, store {run.store.name}"
    if not {"model", *WITH_MODEL}.isdisjoint(stages):
        yield f"  {run.template}"
    steps = [step for stage in stages for step in run.plan.made_by(stage)]
    width = max((len(step.name) for step in steps), default=0)
    places = [f"[{place}/{len(steps)}] " if command == "run" else "" for place in range(1, len(steps) + 1)]
    remade: set[str] = set()
    for place, step in zip(places, steps, strict=True):
        standing = run.freshness(step)
        changing = [origin.name for origin in run.plan.needed_by([step]) if origin.fingerprint in remade]
        text = _todo(standing, force=force, inputs=changing)
        if force or standing.state != "fresh":
            remade.add(step.fingerprint)
        yield f"  {place}{step.name:<{width}}  {text}"


def _todo(standing: Freshness, *, force: bool, inputs: Sequence[str]) -> str:
    if force:
        return "will be made again (--force)"
    if standing.state == "fresh":
        changed = ", ".join(inputs)
        return f"up to date, unless {changed} comes out differently" if changed else "up to date, is reused"
    if standing.state == "stale":
        return f"will be made again: {standing.why}"
    return OUTLOOK[standing.state] + (f": {standing.why}" if standing.state == "failed" else "")
