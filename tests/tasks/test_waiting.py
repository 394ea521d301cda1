"""Polling of a condition."""

from __future__ import annotations

import time

import pytest

from tasks.waiting import wait_until


def test_it_returns_as_soon_as_the_condition_holds() -> None:
    answers = iter([False, False, True])
    assert wait_until(lambda: next(answers), 60, poll_s=0.001)


def test_it_gives_up_when_the_time_is_up() -> None:
    started = time.monotonic()
    assert not wait_until(lambda: False, 0.05, poll_s=0.01)
    assert 0.03 < time.monotonic() - started < 10


def test_the_condition_is_checked_once_without_any_time_and_its_error_is_passed_on() -> None:
    assert wait_until(lambda: True, 0)
    with pytest.raises(ZeroDivisionError):
        wait_until(lambda: bool(1 / 0), 0)
