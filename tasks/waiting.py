"""Waiting for a condition that no event announces."""

from __future__ import annotations

from collections.abc import Callable
from operator import not_

from tenacity import Retrying, retry_if_result, stop_after_delay, wait_fixed


def wait_until(holds: Callable[[], bool], timeout_s: float, poll_s: float = 0.2) -> bool:
    """Poll a condition until it holds or the time is up.

    Args:
        holds: The condition. It is checked at least once, and an error that it raises is passed on.
        timeout_s: Seconds to wait at most.
        poll_s: Seconds between two checks.

    Returns:
        Whether the condition holds.
    """
    checks = Retrying(
        retry=retry_if_result(not_),
        stop=stop_after_delay(timeout_s),
        wait=wait_fixed(poll_s),
        retry_error_callback=lambda last: False,
    )
    return bool(checks(holds))
