"""Waiting for what other processes do."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def wait_for(what: str, holds: Callable[[], Any], seconds: float = 180.0) -> Any:
    """Wait until a condition holds, and return its value; an error that it raises ends the test.

    Args:
        what: What is waited for, for the message.
        holds: The condition.
        seconds: Seconds after which the test fails; unless a test is about time, they say nothing about speed.
    """
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < deadline, f"{what} took more than {seconds:g} s"
        time.sleep(0.1)
    return found
