"""What all our flows have in common: how their runs are named and tagged, how long they may take, how they end."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from prefect import Flow, State, flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun

from flows.labels import run_name, tag_at_start
from flows.results import with_plain_end
from flows.timeouts import timeout_s
from storage.masked_output import errors_masked, mask_output
from storage.redaction import redact_values

P = ParamSpec("P")
R = TypeVar("R")

mask_output()  # a Prefect worker starts flows by a command of its own, which imports this module


def mask_parameters(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Mask secrets in the stored parameters of a failed run; Prefect stores parameters before we can refuse them."""
    masked = redact_values(flow_run.parameters)
    if masked != flow_run.parameters:
        with get_client(sync_client=True) as client:
            client.update_flow_run(flow_run.id, parameters=masked)


def our_flow(module: str, name: str = "") -> Callable[[Callable[P, R]], Flow[P, R]]:
    """Make a function the flow of its module, as Prefect's `flow` does.

    Args:
        module: The function's module in `flows`; it names the flow's runs and its time limit.
        name: The flow's name in Prefect, if it is not the module's.
    """

    def define(body: Callable[P, R]) -> Flow[P, R]:
        @functools.wraps(body)
        def tagged(*args: P.args, **kwargs: P.kwargs) -> R:
            with errors_masked():
                tag_at_start(module)
                return body(*args, **kwargs)

        return flow(
            name=name or module,
            persist_result=False,
            flow_run_name=functools.partial(run_name, module),
            timeout_seconds=timeout_s(module),
            on_failure=[mask_parameters],
        )(with_plain_end(tagged))

    return define
