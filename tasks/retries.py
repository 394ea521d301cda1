"""Retries of tasks: only where the network, a store or a server was at fault, because such faults may pass.

Wrong input, a loss that is not a number and a failed rank would come out the same again, and are reported at once. The
code that talks to stores, the hub and model servers retries for a minute or so by itself; these retries are for longer
outages.
"""

from __future__ import annotations

import errno
import socket
from typing import Any

from prefect import State, Task
from prefect.client.schemas.objects import TaskRun
from prefect.logging import get_run_logger
from prefect.runtime import task_run as current

from nextquill_core.errors import HubUnreachableError
from storage.file_systems import error_chain

PAUSES_S = [60.0, 300.0, 900.0]

PASSING_CODES = {
    errno.EBUSY,  # s3fs: the bucket asks for fewer requests
    errno.ECONNABORTED,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.EIO,  # s3fs: an error within the store; a network file system: its server is away
    errno.ENETDOWN,
    errno.ENETRESET,
    errno.ENETUNREACH,
    errno.ESTALE,
    errno.ETIMEDOUT,
}
PASSING = {
    "aiohttp.client_exceptions.ClientConnectionError",
    "aiohttp.client_exceptions.ClientPayloadError",
    "botocore.exceptions.ConnectionError",
    "botocore.exceptions.HTTPClientError",
    "httpx.NetworkError",
    "httpx.RemoteProtocolError",
    "httpx.TimeoutException",
    "nextquill_core.generation.openai_engine.TransientServerError",
    "requests.exceptions.ChunkedEncodingError",
    "requests.exceptions.ConnectionError",
    "requests.exceptions.Timeout",
}
"""Errors of libraries that may not be installed, and are therefore recognised by name."""


def worth_another_try(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Return whether a failed task is worth a retry; Prefect calls it as `retry_condition_fn`.

    A task that makes an artifact by force is not retried, because it would discard what it has made so far.

    Args:
        task: The task.
        task_run: The task run that failed.
        state: Its state, which holds the error.
    """
    error = state.data
    if not isinstance(error, BaseException) or current.parameters.get("force"):
        return False
    fault = passing_fault(error)
    if fault is not None:
        get_run_logger().warning("%s: will be retried: %s", task_run.name, error)
    return fault is not None


def passing_fault(error: BaseException) -> BaseException | None:
    """Return the error in a chain that may pass, or None; a hub that could not be reached at all is not retried."""
    faults = error_chain(error)
    if any(isinstance(fault, HubUnreachableError) for fault in faults):
        return None
    return next(filter(is_passing, faults), None)


def is_passing(error: BaseException) -> bool:
    """Return whether an error comes from the network or from a server, and may pass."""
    if type(error) is TimeoutError or isinstance(error, ConnectionError | socket.gaierror):
        return True  # subclasses of TimeoutError are held locks and our own time limits
    if isinstance(error, OSError) and error.errno in PASSING_CODES:
        return True
    if any(f"{kind.__module__}.{kind.__qualname__}" in PASSING for kind in type(error).__mro__):
        return True
    return getattr(getattr(error, "response", None), "status_code", 0) >= 500


RETRIED: dict[str, Any] = {
    "retries": len(PAUSES_S),
    "retry_delay_seconds": PAUSES_S,
    "retry_jitter_factor": 0.3,
    "retry_condition_fn": worth_another_try,
}
"""Arguments of `task`."""
