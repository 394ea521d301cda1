"""Working ahead: the next things are read, and worked on, while the last one is being used."""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

MOST_THREADS = 8  # more would wait for the writers, and each holds a block and what it becomes
Thing = TypeVar("Thing")
Made = TypeVar("Made")


def in_order(work: Callable[[Thing], Made], things: Iterable[Thing]) -> Iterator[Made]:
    """`map` on as many threads as there are cores, but no more than eight; each thing stays whole on one of them.

    Results come in order. For work that holds no lock, like parsing; as many things as threads are in memory.
    """
    threads = min(os.cpu_count() or 1, MOST_THREADS)
    waiting: deque[Future[Made]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="ingest-parser") as pool:
        try:
            for thing in things:
                if len(waiting) == threads:
                    yield waiting.popleft().result()
                waiting.append(pool.submit(work, thing))
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def ahead(things: Iterator[Thing]) -> Iterator[Thing]:
    """Get the next thing in a thread while the last one is being worked on: reading and inflating hold no lock."""
    ready: queue.Queue[Thing | BaseException | None] = queue.Queue(maxsize=1)
    stop = threading.Event()

    def hand_over(thing: Thing | BaseException | None) -> None:
        while not stop.is_set():
            try:
                return ready.put(thing, timeout=0.1)
            except queue.Full:
                continue
        return None

    def read() -> None:
        try:
            for thing in things:
                hand_over(thing)
                if stop.is_set():
                    return
            hand_over(None)
        except BaseException as error:  # raised again where the blocks are used
            hand_over(error)

    reader = threading.Thread(target=read, name="ingest-reader", daemon=True)
    reader.start()
    try:
        while (thing := ready.get()) is not None:
            if isinstance(thing, BaseException):
                raise thing
            yield thing
    finally:
        stop.set()
        reader.join()
