"""GPU lock: at most one training at a time per work pool, whichever flow asks for it.

It is a global concurrency limit of the Prefect server. Limits on deployments, work queues or tags do not fit, because
trainings have to take turns and flow runs need not: `pipeline`, `train`, `score` (its folds), `sweep` and `reproduce`
all train, from deployments or from a terminal, and may do the rest side by side.

The lock is acquired before the artifact lock, so the two cannot deadlock; a process that waited for the training of an
artifact then finds it made. A sweep whose points run as processes holds the lock once for all of them, because it
shares the accelerators among them. The lock is held by a lease that this process renews, so the server takes it back
from a process that was killed.
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
"""Environment variable with the name of the limit; deployments set it for their work pool (prefect.yaml)."""
DEFAULT_LIMIT = "training-gpu"
HELD = "NEXTQUILL_TRAINING_HELD"
"""Environment variable of a process whose parent holds the lock; its value is the name of the limit."""
LEASE_S = 60.0
ASK_EVERY_S = 5.0
TAKEN = 423
"""HTTP status of the server where the limit is reached."""


@contextmanager
def gpu_lock(what: str, *, needed: bool = True) -> Iterator[Mapping[str, str]]:
    """Wait for the GPU lock and hold it within the block; without such a limit on the server nothing is held.

    A server that is away for longer than the lease lasts does not end a training; another may then begin beside it.

    Args:
        what: Name of the training, for the log.
        needed: Whether the lock is needed: there is something to train, and no other queue makes trainings take turns.

    Yields:
        Environment variables for child processes, so that they do not wait for their parent.
    """
    name = os.environ.get(LIMIT) or DEFAULT_LIMIT
    # Within a Slurm job, Slurm has reserved machines for this run.
    waits = needed and HELD not in os.environ and "SLURM_JOB_ID" not in os.environ
    if not waits or not _limited(name):
        yield {}
        return
    with ExitStack() as held:
        logged = False
        # Not within Prefect, which would wait in a thread that outlives a signal for as long as it waits.
        while not _acquired(name, held):
            if not logged:
                get_run_logger().info("%s: waits, another training is running (limit %s)", what, name)
                logged = True
            time.sleep(ASK_EVERY_S)
        yield {HELD: name}


def _limited(name: str) -> bool:
    """Return whether the server has such a limit, and it is switched on."""
    with get_client(sync_client=True) as client:
        try:
            return bool(client.read_global_concurrency_limit_by_name(name).active)
        except ObjectNotFound:
            return False


def _acquired(name: str, held: ExitStack) -> bool:
    """Try once to acquire the lock, and return whether that succeeded.

    Args:
        name: Name of the limit.
        held: Releases the lock when it is closed.
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
