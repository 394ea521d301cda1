"""What stages tell Prefect beside their states: that one has finished, and that quality fell.

An event goes out in the background and at best. Whatever becomes of it, the stage goes on, and nothing waits. It says
fingerprints, places and numbers, and nothing of a user. Prefect adds what it belongs to: the flow run, its flow, and
its deployment if it is a deployment's own run; a stage inside a pipeline's run has none.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from prefect.events import emit_event
from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from nextquill_core.pipeline.run import Outcome, Run
from nextquill_core.registry.quality_alarm import Fall, fall_of
from storage import Artifact
from tasks.slurm.stage import in_job

FINISHED = "nextquill.stage.finished"
FELL = "nextquill.quality.fell"
STAGE, WHOLE = "nextquill.stage", "nextquill.whole"
"""Labels of a finished stage: its name, and whether everything of it is there now."""
EXPLORING = "sweep"
"""Tag of the runs of a sweep's points, which are meant to be worse at times."""


def stage_finished(name: str, outcome: Outcome | None, *, whole: bool = True) -> None:
    """Tell that a stage has finished.

    Args:
        name: Of the stage, and of the method after it where the stage has one: `train nextquill`.
        outcome: What it made or reused; None where there was nothing to make.
        whole: Whether nothing else of the stage is left to make.
    """
    stage = name.partition(" ")[0]
    labels = {STAGE: stage, WHOLE: str(whole).lower()}
    if outcome is None:
        _emit(FINISHED, {"prefect.resource.id": f"nextquill.stage.{stage}", "prefect.resource.name": name} | labels)
        return
    manifest = outcome.artifact.manifest
    labels |= {"nextquill.fingerprint": manifest.fingerprint, "nextquill.reused": str(outcome.reused).lower()}
    payload = {
        "stage": name,
        "fingerprint": manifest.fingerprint,
        "location": outcome.artifact.location,
        "reused": outcome.reused,
        "seconds": manifest.seconds,  # of its making, also where it was reused
        "rows": manifest.rows,
        "bytes": manifest.bytes,
    }
    _emit(FINISHED, _resource(name, outcome.artifact) | labels, payload)


def watch_quality(run: Run, name: str) -> None:
    """Warn in the log, and tell, if the adapter that was just trained fell below what was accepted.

    Args:
        run: The configuration.
        name: A key of `Plan.adapters`; what is no method's own adapter is left alone, and so are a sweep's points;
            in a Slurm job it is left to the flow run that follows the job.
    """
    if name not in run.plan.train or EXPLORING in flow_run.tags or in_job():
        return
    logger = get_run_logger()
    try:
        fall = fall_of(run, name)
    except Exception as error:  # the adapter is made; that it could not be compared must not undo that
        logger.warning("train %s: not compared with what was accepted: %s", name, error)
        return
    if fall is not None:
        logger.warning(fall.line)
        quality_fell(name, run.artifact(run.plan.train[name]), fall)


def quality_fell(name: str, adapter: Artifact, fall: Fall) -> None:
    """Tell that an adapter does worse than the accepted one, with both numbers."""
    values = asdict(fall) | {"line": fall.line, "value": fall.value if math.isfinite(fall.value) else None}
    _emit(FELL, _resource(f"train {name}", adapter) | {STAGE: "train"}, values)


def _resource(name: str, artifact: Artifact) -> dict[str, str]:
    manifest = artifact.manifest
    return {
        "prefect.resource.id": f"nextquill.artifact.{manifest.kind}.{manifest.fingerprint}",
        "prefect.resource.name": name,
        "nextquill.location": artifact.location,
    }


def _emit(event: str, resource: dict[str, str], payload: Mapping[str, Any] | None = None) -> None:
    try:
        emit_event(event=event, resource=resource, payload=dict(payload or {}))
    except Exception as error:
        logging.getLogger(__name__).warning("event %s was not sent: %s", event, error)
