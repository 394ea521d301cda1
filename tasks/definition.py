"""The task decorator of all stages: no cache, no stored results, retries, masked errors, and a plain final state."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

from prefect import State, task
from prefect.cache_policies import NO_CACHE
from prefect.exceptions import TerminationSignal
from prefect.states import Cancelled

from storage.masked_output import mask_errors
from tasks.retries import RETRIED

P = ParamSpec("P")
R = TypeVar("R")
INTERRUPTED = "Interrupted"
INTERRUPTED_MESSAGE = "interrupted; start it again with the same settings and it resumes"


def our_task(**options: Any) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator that makes a function a Prefect task.

    The result is a function, not a task: it can be called but not submitted, because a submitted task outlives the
    signal that ends its flow. A task that a signal ends gets the state `Interrupted` of the type Cancelled (Prefect
    would call it crashed), and the flow gets the signal's exception.

    Args:
        options: Arguments of Prefect's `task`; they take precedence over those that all tasks share.
    """

    def define(body: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(body)
        def ended(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                with mask_errors():
                    return body(*args, **kwargs)
            except (KeyboardInterrupt, TerminationSignal) as signal:
                return cast("R", interrupted(signal))

        defined = task(**{"cache_policy": NO_CACHE, "persist_result": False, **RETRIED, **options})(ended)

        @functools.wraps(body)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            result = defined(*args, **kwargs)
            if isinstance(result, State):
                raise cast("BaseException", result.result(raise_on_failure=False))
            return result

        return run

    return define


def interrupted(error: BaseException | None = None) -> State[Any]:
    """Return the state of a run that a signal has ended.

    Args:
        error: Exception that the run's caller gets.
    """
    return Cancelled(name=INTERRUPTED, message=INTERRUPTED_MESSAGE, data=error)
