"""Flows that end early, each by what the command line names; prints which exception reached the caller."""

from __future__ import annotations

import os
import signal
import sys

from prefect import flow

from flows.results import with_plain_end
from nextquill_core.errors import DataError
from tasks.definition import our_task


@our_task()
def work(how: str) -> None:
    if how == "wrong":
        raise DataError("no such file", "reviews.jsonl", "name another")
    os.kill(os.getpid(), getattr(signal, how))
    signal.pause()


@flow
@with_plain_end
def stage(how: str) -> None:
    work(how)


@flow
@with_plain_end
def whole(how: str) -> None:
    stage(how)


if __name__ == "__main__":
    for how in sys.argv[1:]:
        try:
            whole(how)
        except BaseException as error:
            print(how, type(error).__name__)
