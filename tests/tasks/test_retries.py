"""What is tried again: faults of the network, wherever in the chain they stand, and nothing else."""

from __future__ import annotations

import errno
import importlib
import socket
from itertools import pairwise
from typing import Any

import httpx
import pytest
from filelock import Timeout

from nextquill_core.errors import DataError, UserError
from storage.errors import Busy
from storage.file_systems import error_chain
from tasks.ranks.launch import RanksFailed
from tasks.retries import PASSING, RETRIED, is_passing


def caused(error: Exception, by: BaseException) -> Exception:
    """`error`, raised while `by` was handled."""
    try:
        try:
            raise by
        except BaseException:
            raise error from None
    except Exception as raised:
        return raised


def answer(status: int) -> httpx.HTTPStatusError:
    request = httpx.Request("GET", "http://127.0.0.1/")
    return httpx.HTTPStatusError("no", request=request, response=httpx.Response(status, request=request))


def passes(error: BaseException) -> bool:
    return any(map(is_passing, error_chain(error)))


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError(),
        TimeoutError(),
        socket.gaierror(socket.EAI_AGAIN, "no name server"),
        OSError(errno.ENETUNREACH, "no route"),
        httpx.ReadTimeout("slow"),
        httpx.ConnectError("refused"),
        answer(503),
        caused(UserError("no success in 7 attempts"), OSError(errno.EBUSY, "SlowDown")),
        caused(UserError("no answer after 7 attempts"), httpx.ConnectError("refused")),
    ],
    ids=repr,
)
def test_the_network_s_faults_are(error: BaseException) -> None:
    assert passes(error)


@pytest.mark.parametrize(
    "error",
    [
        UserError("the loss is not a number"),
        DataError("no file matches"),
        RanksFailed("rank 0: CUDA out of memory"),
        MemoryError(),
        KeyError("x"),
        FileNotFoundError(errno.ENOENT, "gone"),
        OSError(errno.ENOSPC, "full"),
        answer(404),
        Timeout("a lock"),
        caused(Busy("another process is making it"), Timeout("a lock")),
        caused(UserError("cannot read the config"), FileNotFoundError(errno.ENOENT, "gone")),
    ],
    ids=repr,
)
def test_everything_else_is_not(error: BaseException) -> None:
    assert not passes(error)


def test_errors_known_by_name_are_there() -> None:
    missing = []
    for name in PASSING:
        module, _, kind = name.rpartition(".")
        try:
            found: Any = importlib.import_module(module)
        except ModuleNotFoundError:
            continue
        if not isinstance(getattr(found, kind, None), type):
            missing.append(name)
    assert missing == []


def test_the_pauses_grow() -> None:
    pauses = RETRIED["retry_delay_seconds"]
    assert len(pauses) == RETRIED["retries"]
    assert all(later >= 3 * sooner for sooner, later in pairwise(pauses))
