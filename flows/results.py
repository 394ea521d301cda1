"""How flow runs end in Prefect: a reference to the artifact, and a state that people can read."""

from __future__ import annotations

import functools
import inspect
import logging
import os
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast, get_type_hints
from uuid import UUID

from prefect import State
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.exceptions import ParameterTypeError, TerminationSignal
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Completed, Failed

from flows import names
from flows.cli import interruption
from flows.server.events import stage_finished
from nextquill_core.errors import UserError
from nextquill_core.pipeline.run import Outcome
from storage.redaction import redact
from tasks.definition import INTERRUPTED_MESSAGE, interrupted
from tasks.numbering import ROW, row_number
from tasks.ui import tag_run

P = ParamSpec("P")
R = TypeVar("R")
REUSED = "Reused"
RUNNER = "PREFECT__FLOW_RUN_ID"
"""Environment variable of a process that a worker started for a flow run; if the worker ends it, it sets the state."""

_running: list[UUID] = []
"""Flow runs that this process executes, the outermost first."""


class Interrupted(Exception):  # noqa: N818 - says what happened
    """A signal ended a flow run. It is an `Exception` because Prefect cannot pass others to the caller of a flow."""


def with_plain_end(body: Callable[P, R]) -> Callable[P, R]:
    """Give a flow run that ends early a state that people can read, and leave no traceback in its log.

    A user's error, however deep it arises, becomes the state `Failed` with the error's one line as its message. An
    interruption becomes the state `Interrupted`, of the type Cancelled. The caller of the flow still gets the user's
    error, or the exception `Interrupted`. Place it below `flow`.
    """

    @functools.wraps(body)
    def ended(*args: P.args, **kwargs: P.kwargs) -> R:
        context = FlowRunContext.get()
        run = context.flow_run.id if context and context.flow_run else None
        if run:
            _running.append(run)
        try:
            return body(*args, **kwargs)
        except UserError as error:
            return cast("R", Failed(message=str(error), data=error))
        except (KeyboardInterrupt, TerminationSignal, Interrupted):
            if RUNNER in os.environ:
                raise
            return cast("R", interrupted(Interrupted(INTERRUPTED_MESSAGE)))
        finally:
            if run:
                _running.remove(run)

    # Prefect resolves annotations that are strings in the module of the function it gets, which is this one.
    ended.__annotations__ = get_type_hints(body, include_extras=True)
    vars(ended)["__signature__"] = inspect.signature(body, eval_str=True)
    return ended


def report_interrupted() -> None:
    """Set the state of this process's flow runs to `Interrupted`, where the main thread cannot do so any more."""
    runs = _running[::-1]
    if not runs or RUNNER in os.environ:
        return
    with get_client(sync_client=True) as client:
        for run in runs:
            client.set_flow_run_state(run, interrupted(), force=True)


interruption.report = report_interrupted


def log_errors_plainly(record: logging.LogRecord) -> bool:
    """Reduce the log record of a user's error to one line; used as a logging filter, it drops no record.

    A parameter that breaks a rule that the form does not know is a user's error too.
    """
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, UserError | ParameterTypeError):
        record.msg, record.args = redact(" ".join(str(error).split())), ()
        record.exc_info = record.exc_text = None
    return True


for _name in ("prefect.flow_runs", "prefect.task_runs", "prefect.engine"):  # Prefect logs the traceback at each level
    logging.getLogger(_name).addFilter(log_errors_plainly)


def finished(name: str, outcome: Outcome, *, whole: bool = True) -> dict[str, Any]:
    """Log what was done and return the final state of the flow run: `Reused`, or `Completed`.

    If a flow returns the state, it becomes that of the flow run, and its data, a reference to the artifact, becomes the
    result for the caller; hence the type. The manifest on disk decides what is reused, never Prefect's cache, which
    does not look at files.

    Args:
        name: Name of the stage, followed by that of the method where there are several.
        outcome: The outcome of the stage's step.
        whole: Whether nothing else of the stage is left to make; the event for what waits for the stage says so.
    """
    reference = {
        "stage": name,
        "fingerprint": outcome.artifact.manifest.fingerprint,
        "path": outcome.artifact.location,
        "reused": outcome.reused,
        "flow_run": flow_run.id,
    }
    message = announce(name, outcome)
    tag_run(names.REUSED if outcome.reused else names.MADE)
    stage_finished(name, outcome, whole=whole)
    return as_result(Completed(name=REUSED if outcome.reused else None, message=message, data=reference))


def nothing_to_make(name: str, why: str) -> dict[str, Any]:
    """Return the final state of a stage that this configuration does not need."""
    stage_finished(name, None)
    return as_result(Completed(message=f"{name}: {why}", data={}))


def announce(name: str, outcome: Outcome) -> str:
    """Log in one line whether an artifact was made or reused, and return the line."""
    location = outcome.artifact.location
    if outcome.reused:
        message = f"{name}: reused, fresh at {location}"
    else:
        seconds = outcome.artifact.manifest.seconds
        message = f"{name}: made in {seconds:,.1f} s ({outcome.why}) at {location}"
    get_run_logger().info(message, extra={ROW: row_number(outcome.artifact.manifest.fingerprint) or None})
    return message


def as_result(state: State[Any]) -> dict[str, Any]:
    """Return a state under the type that the caller of a flow gets."""
    return cast("dict[str, Any]", state)
