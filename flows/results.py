"""What a stage's flow run leaves in Prefect: a reference to its artifact, and a state that says if it was reused."""

from __future__ import annotations

from typing import Any, cast

from prefect import State
from prefect.logging import get_run_logger
from prefect.states import Completed

from nextquill_core.stages.run import Outcome

REUSED = "Reused"


def finished(name: str, outcome: Outcome) -> dict[str, Any]:
    """Say what was done and give the flow run its final state: `Reused`, or `Completed` with the artifact's reference.

    Returned from a flow, the state becomes the flow run's, and its data, the reference, the caller's result; hence the
    type.

    The manifest on disk decides what is reused, never Prefect's cache, which does not look at files.
    """
    manifest = outcome.artifact.manifest
    reference = {
        "stage": name,
        "fingerprint": manifest.fingerprint,
        "path": str(outcome.artifact.folder),
        "reused": outcome.reused,
    }
    if outcome.reused:
        message = f"{name}: reused, fresh at {outcome.artifact.folder}"
    else:
        seconds = manifest.provenance["seconds"]
        message = f"{name}: made in {seconds:,.1f} s ({outcome.why}) at {outcome.artifact.folder}"
    get_run_logger().info(message)
    return as_result(Completed(name=REUSED if outcome.reused else None, message=message, data=reference))


def as_result(state: State[Any]) -> dict[str, Any]:
    """A state to return from a flow, under the type that the flow's caller gets."""
    return cast("dict[str, Any]", state)
