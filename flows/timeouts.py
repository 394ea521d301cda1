"""How long a flow run may take, from the environment: deployments set it (prefect.yaml), a terminal has no limit.

Prefect ends a flow's own Python code, by an error in its main thread; a subflow's limit reaches it between two
instructions. Whatever waits for other processes, for Slurm or for a server is ended so, and takes its ranks and workers
with it on the way out. A single call into a library, the scan of a whole file for instance, comes to its end first.
"""

from __future__ import annotations

import os

from nextquill_core.errors import UserError

HOUR_S = 3600.0


def variable(flow: str) -> str:
    """The environment variable with a flow's limit."""
    return f"NEXTQUILL_{flow.upper()}_TIMEOUT_HOURS"


def timeout_s(flow: str) -> float | None:
    """Seconds after which a flow run is ended; None where nobody says so.

    Args:
        flow: The flow's module in `flows`.

    Raises:
        UserError: What stands there is no number above 0.
    """
    text = os.environ.get(variable(flow), "").strip()
    if not text:
        return None
    try:
        hours = float(text)
    except ValueError:
        hours = 0.0
    if not 0 < hours < float("inf"):
        raise UserError(f"{text!r} is no number of hours", variable(flow), "write a number above 0, or leave it away")
    return hours * HOUR_S
