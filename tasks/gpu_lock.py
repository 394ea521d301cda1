"""The place for training that the machines of a work pool have: one training at a time, whichever flow asks for it.

It is a global concurrency limit of the Prefect server, and not a limit on deployments, work queues or tags, because
what has to be kept apart is trainings and not flow runs: the pipeline, `train`, `score` (its folds), `sweep` and
`reproduce` all train, from deployments of their own or from a terminal, and may well do the rest side by side.

Nobody waits for good. The place is asked for before the artifact's lock, and who waits for it holds nothing, so there
is no circle; who waits for an artifact that another is training finds it made. A sweep whose points run as processes
holds the place once for all of them, because it shares the accelerators out among them; they do not ask again. The
place is held by a lease that this process renews, so the server takes it back from one that was killed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

from prefect.client.orchestration import get_client
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectNotFound
from prefect.logging import get_run_logger

LIMIT = "NEXTQUILL_TRAINING_LIMIT"
"""Environment variable with the limit's name; deployments set it for their work pool (prefect.yaml)."""
DEFAULT_LIMIT = "training-gpu"
HELD = "NEXTQUILL_TRAINING_HELD"
"""Environment variable that tells a process that its parent holds the place; its value is the limit's name."""
LEASE_S = 60.0
ASK_EVERY_S = 5.0
TAKEN = 423
"""HTTP status with which the server says that all places are taken."""


@contextmanager
def training_place(what: str, *, needed: bool = True) -> Iterator[Mapping[str, str]]:
    """Wait for the place and hold it; where no limit has been set up this costs a question to the server.

    A server that is away for longer than the lease lasts does not end a training; another may then begin beside it.

    Args:
        what: Is to be trained, for the log.
        needed: False where there is nothing to train, or another queue than this one keeps trainings apart.

    Yields:
        What child processes need in their environment, so that they do not wait for their parent.
    """
    name = os.environ.get(LIMIT) or DEFAULT_LIMIT
    # Within a Slurm job, Slurm has given this run machines of its own.
    waits = needed and HELD not in os.environ and "SLURM_JOB_ID" not in os.environ
    if not waits or not _limited(name):
        yield {}
        return
    with ExitStack() as held:
        said = False
        # Not within Prefect, which would wait on a thread of its own that outlives a signal for as long as it waits.
        while not _acquired(name, held):
            if not said:
                get_run_logger().info("%s: waits, another training is running (limit %s)", what, name)
                said = True
            time.sleep(ASK_EVERY_S)
        yield {HELD: name}


def _limited(name: str) -> bool:
    """Return whether there is such a limit, and it is switched on."""
    with get_client(sync_client=True) as client:
        try:
            return bool(client.read_global_concurrency_limit_by_name(name).active)
        except ObjectNotFound:
            return False


def _acquired(name: str, held: ExitStack) -> bool:
    """Ask for the place once.

    Args:
        name: Name of the limit.
        held: Gives the place back when it is closed.

    Returns:
        Whether there was one.
    """
    asked = concurrency(name, max_retries=0, lease_duration=LEASE_S, raise_on_lease_renewal_failure=False)
    try:
        held.enter_context(asked)
    except ConcurrencySlotAcquisitionError as error:
        answer = getattr(error.__cause__, "response", None)
        if getattr(answer, "status_code", 0) != TAKEN:
            raise
        return False
    return True
