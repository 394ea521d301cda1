"""What flows have in common: how their runs are named, limited in time and ended, and how a stage makes its artifacts.

Time limits come from the environment, where deployments set them (prefect.yaml); a terminal has none. Prefect ends a
flow's Python code by an error in its main thread, and a subflow's limit reaches it between two instructions. Code that
waits for other processes, for Slurm or for a server is ended so, and ends its processes on the way out. A single call
into a library, such as the scan of a whole file, finishes first.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, Protocol, TypeVar

from prefect import Flow, State, flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun

from flows.names import flow_run_name, tag_at_start
from flows.results import announce, with_plain_end
from flows.runs import shared_runs
from flows.slurm import made_by_job
from nextquill_core.config import MethodName, StageName
from nextquill_core.errors import UserError
from nextquill_core.pipeline import Step
from nextquill_core.pipeline.run import Outcome, Run
from storage.masked_output import mask_errors, mask_output
from storage.redaction import redact_values
from tasks.numbering import begin_row
from tasks.reasons import publish_reasons
from tasks.steps import make_step

P = ParamSpec("P")
R = TypeVar("R")
HOUR_S = 3600.0


class Narrator(Protocol):
    """Says more about a run than its log does; a command that shows a run in a terminal adds one to `narrators`."""

    def before(self, run: Run, step: Step) -> None:
        """Say something before a step is made or reused."""

    def after(self, run: Run, step: Step, outcome: Outcome) -> None:
        """Say something after it.

        Args:
            run: The run.
            step: The step.
            outcome: Whether it was made, and its artifact.
        """


narrators: list[Narrator] = []

mask_output()  # a Prefect worker starts flows by its own command, which imports this module


def mask_parameters(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Mask secrets in the stored parameters of a failed run; Prefect stores parameters before we can refuse them.

    Args:
        flow: The flow.
        flow_run: Its run.
        state: The state of the run.
    """
    masked = redact_values(flow_run.parameters)
    if masked != flow_run.parameters:
        with get_client(sync_client=True) as client:
            client.update_flow_run(flow_run.id, parameters=masked)


def nextquill_flow(module: str, name: str = "") -> Callable[[Callable[P, R]], Flow[P, R]]:
    """Make a function the flow of its module, as Prefect's `flow` does.

    Its runs are named and tagged by what they are about, open each configuration once, and end in a state that people
    can read.

    Args:
        module: The function's module in `flows`; it names the flow's runs and its time limit.
        name: The flow's name in Prefect, if it is not the module's.
    """

    def define(body: Callable[P, R]) -> Flow[P, R]:
        @functools.wraps(body)
        def tagged(*args: P.args, **kwargs: P.kwargs) -> R:
            with mask_errors(), shared_runs():
                tag_at_start(module)
                return body(*args, **kwargs)

        return flow(
            name=name or module,
            persist_result=False,
            flow_run_name=functools.partial(flow_run_name, module),
            timeout_seconds=timeout_s(module),
            on_failure=[mask_parameters],
        )(with_plain_end(tagged))

    return define


def make_stage(
    run: Run,
    stage: StageName,
    steps: Sequence[Step],
    *,
    force: bool,
    results: Sequence[Step] = (),
    method: MethodName | None = None,
    prepare: Callable[[Run], object] | None = None,
) -> list[Outcome]:
    """Make the steps of a stage, here or as the Slurm job that `slurm.STAGE` asks for, and publish why.

    Args:
        run: The run.
        stage: The stage.
        steps: Its steps, each after its inputs.
        force: Whether to make them even if they are up to date.
        results: The steps that the flow passes to `finished`, which announces them; by default the last one. The others
            are announced here if they are made.
        method: The method of a training of one method alone.
        prepare: Runs before the first step, where the steps are made.

    Returns:
        The outcome of each step.

    Raises:
        UserError: An input of the stage is missing or wrong.
    """
    publish_reasons(run, stage, [steps[-1], *steps[:-1]], force)
    outcomes = made_by_job(run, stage, steps, force=force, method=method)
    if outcomes is not None:
        return outcomes
    if prepare:
        prepare(run)
    outcomes = []
    announced_later = {step.address for step in results or steps[-1:]}
    for place, step in enumerate(steps):
        begin_row(steps[place:])
        for narrator in narrators:
            narrator.before(run, step)
        outcome = make_step(run, step, force)
        for narrator in narrators:
            narrator.after(run, step, outcome)
        if not outcome.reused and step.address not in announced_later:
            announce(run.plan.title(step), outcome)
        outcomes.append(outcome)
    return outcomes


def timeout_variable(flow: str) -> str:
    """Return the environment variable that limits the time of a flow's runs."""
    return f"NEXTQUILL_{flow.upper()}_TIMEOUT_HOURS"


def timeout_s(flow: str) -> float | None:
    """Return the seconds after which a flow run is ended, or None where no limit is set.

    Args:
        flow: The flow's module in `flows`.

    Raises:
        UserError: The variable's value is not a number above 0.
    """
    variable = timeout_variable(flow)
    text = os.environ.get(variable, "").strip()
    if not text:
        return None
    try:
        hours = float(text)
    except ValueError:
        hours = 0.0
    if not 0 < hours < float("inf"):
        raise UserError(f"{text!r} is no number of hours", variable, "write a number above 0, or remove it")
    return hours * HOUR_S
