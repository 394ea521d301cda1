"""What all our tasks share: no cache, no stored results, retries, errors without secrets, and how they end."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

from prefect import State, task
from prefect.cache_policies import NO_CACHE
from prefect.exceptions import TerminationSignal
from prefect.states import Cancelled

from storage.masked_output import errors_masked
from tasks.retries import RETRIED

P = ParamSpec("P")
R = TypeVar("R")
INTERRUPTED = "Interrupted"
INTERRUPTED_MESSAGE = "interrupted; start it again with the same settings and it resumes"


def our_task(**options: Any) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a function run as a task, as Prefect's `task` does.

    What comes back is a function and no task: it can be called, and not submitted, because a submitted task outlives
    the signal that ends its flow. A task that such a signal ends becomes `Interrupted`, of the type Cancelled; Prefect
    itself would call it crashed. The flow gets the signal's exception.

    Args:
        options: Arguments of `task`, in addition to those that all tasks share or in place of them.
    """

    def define(body: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(body)
        def ended(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                with errors_masked():
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
        error: What the run's caller gets.
    """
    return Cancelled(name=INTERRUPTED, message=INTERRUPTED_MESSAGE, data=error)
