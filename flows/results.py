"""What a stage's flow run leaves in Prefect: a reference to its artifact, and a state that says if it was reused."""

from __future__ import annotations

from typing import Any, cast

from prefect import State
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Completed

from flows.events import stage_finished
from nextquill_core.config import Config, RawInput
from nextquill_core.stages.run import Outcome

REUSED = "Reused"


def run_name() -> str:
    """The name of a flow run: its categories, so that runs of different data are told apart at a glance."""
    config = flow_run.parameters["config"]
    raw = config.ingest.inputs if isinstance(config, Config) else config["ingest"]["inputs"]
    return " ".join(part.category if isinstance(part, RawInput) else part["category"] for part in raw)


def finished(name: str, outcome: Outcome, *, whole: bool = True) -> dict[str, Any]:
    """Say what was done and give the flow run its final state: `Reused`, or `Completed` with the artifact's reference.

    Returned from a flow, the state becomes the flow run's, and its data, the reference, the caller's result; hence the
    type.

    The manifest on disk decides what is reused, never Prefect's cache, which does not look at files.

    Args:
        name: Of the stage, and of the method where there are several.
        outcome: What was made or reused.
        whole: Whether nothing else of the stage is left to make; what waits for the stage is told so.
    """
    reference = {
        "stage": name,
        "fingerprint": outcome.artifact.manifest.fingerprint,
        "path": outcome.artifact.location,
        "reused": outcome.reused,
    }
    message = announce(name, outcome)
    stage_finished(name, outcome, whole=whole)
    return as_result(Completed(name=REUSED if outcome.reused else None, message=message, data=reference))


def nothing_to_make(name: str, why: str) -> dict[str, Any]:
    """The final state of a stage that this configuration has no need of."""
    stage_finished(name, None)
    return as_result(Completed(message=f"{name}: {why}", data={}))


def announce(name: str, outcome: Outcome) -> str:
    """Log in one line what became of an artifact, and return the line."""
    location = outcome.artifact.location
    if outcome.reused:
        message = f"{name}: reused, fresh at {location}"
    else:
        seconds = outcome.artifact.manifest.provenance["seconds"]
        message = f"{name}: made in {seconds:,.1f} s ({outcome.why}) at {location}"
    get_run_logger().info(message)
    return message


def as_result(state: State[Any]) -> dict[str, Any]:
    """A state to return from a flow, under the type that the flow's caller gets."""
    return cast("dict[str, Any]", state)
