"""What all our flows have in common: how their runs are named and tagged, how long they may take, how they end."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from prefect import Flow, flow

from flows.labels import run_name, tag_at_start
from flows.results import with_plain_end
from flows.timeouts import timeout_s

P = ParamSpec("P")
R = TypeVar("R")


def our_flow(module: str, name: str = "") -> Callable[[Callable[P, R]], Flow[P, R]]:
    """Make a function the flow of its module, as Prefect's `flow` does.

    Args:
        module: The function's module in `flows`; it names the flow's runs and its time limit.
        name: The flow's name in Prefect, if it is not the module's.
    """

    def define(body: Callable[P, R]) -> Flow[P, R]:
        @functools.wraps(body)
        def tagged(*args: P.args, **kwargs: P.kwargs) -> R:
            tag_at_start(module)
            return body(*args, **kwargs)

        return flow(
            name=name or module,
            persist_result=False,
            flow_run_name=functools.partial(run_name, module),
            timeout_seconds=timeout_s(module),
        )(with_plain_end(tagged))

    return define
