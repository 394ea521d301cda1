"""Events that stages send to Prefect: a stage has finished, or the quality of an adapter fell.

An event is sent in the background, without any guarantee, and never stops a stage. It holds fingerprints, paths and
numbers, and no data of users. Prefect adds the flow run, its flow, and its deployment; a stage inside a pipeline's run
has no deployment.
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
from nextquill_core.registry.quality_alarm import fall_of
from storage import Artifact
from tasks.slurm.stage import in_job

FINISHED = "nextquill.stage.finished"
QUALITY_FELL = "nextquill.quality.fell"
STAGE, COMPLETE = "nextquill.stage", "nextquill.whole"
"""Labels of a finished stage: its name, and whether all parts of the stage exist now."""
SWEEP = "sweep"
"""Tag of the runs of a sweep's points, some of which are worse on purpose."""


def stage_finished(name: str, outcome: Outcome | None, *, whole: bool = True) -> None:
    """Send the event that a stage has finished.

    Args:
        name: Name of the stage, followed by the method if the stage has several: `train nextquill`.
        outcome: What the stage made or reused; None if there was nothing to make.
        whole: Whether all parts of the stage exist now.
    """
    stage = name.partition(" ")[0]
    labels = {STAGE: stage, COMPLETE: str(whole).lower()}
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
        "seconds": manifest.seconds,  # that it took to make, also if it was reused
        "rows": manifest.rows,
        "bytes": manifest.bytes,
    }
    _emit(FINISHED, _resource(name, outcome.artifact) | labels, payload)


def watch_quality(run: Run, name: str) -> None:
    """Log a warning and send an event if the adapter that was just trained is worse than the accepted one.

    Only adapters of methods are compared, and not those of a sweep's points. A Slurm job leaves the comparison to the
    flow run that follows it.

    Args:
        run: The configuration and its store.
        name: Key of the adapter in `Plan.adapters`.
    """
    if name not in run.plan.train or SWEEP in flow_run.tags or in_job():
        return
    logger = get_run_logger()
    try:
        fall = fall_of(run, name)
    except Exception as error:  # the adapter exists; a failed comparison must not fail the stage
        logger.warning("train %s: could not be compared with the accepted adapter: %s", name, error)
        return
    if fall is None:
        return
    logger.warning(fall.line)
    adapter = run.artifact(run.plan.train[name])
    values = asdict(fall) | {"line": fall.line, "value": fall.value if math.isfinite(fall.value) else None}
    _emit(QUALITY_FELL, _resource(f"train {name}", adapter) | {STAGE: "train"}, values)


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
