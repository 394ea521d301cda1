"""A Prefect server that dies or hangs while a flow runs: noticed, and the command ended before it waits for minutes.

Prefect's client asks a server that is away again and again, and so does each layer of the flow above it. Work that
needs no server, such as a training whose ranks run, is left alone: the command ends only while its main thread waits
for the server.
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

from flows.cli.interruption import end_at_once
from flows.server.settings import ServerSettings, answers, server_settings

LOOK_EVERY_S = 5.0
SAY_AFTER_S = 10.0
END_AFTER_S = 45.0
"""Seconds without an answer; a server that is started again comes back within them."""


def watch() -> None:
    """Watch the server that is set, as long as this process lasts; a temporary one is watched by its own thread."""
    settings = server_settings()
    if settings.url:
        threading.Thread(target=_watch, args=(settings,), name="watch-server", daemon=True).start()


def end_if_cause(error: BaseException) -> None:
    """End the process in one line if a flow's error comes from a server that no longer answers."""
    import httpx

    from tasks.retries import chain

    if any(isinstance(one, httpx.TransportError) for one in chain(error)) and away():
        _end(server_settings(), "does not answer any more")


def away() -> bool:
    """Return whether a server is set and does not answer."""
    settings = server_settings()
    return bool(settings.url) and not answers(settings)


def _watch(settings: ServerSettings) -> None:
    answered, said = time.monotonic(), False
    while True:
        time.sleep(LOOK_EVERY_S)
        if answers(settings):
            if said:
                print(f"Prefect: the server at {settings.shown_url} answers again", file=sys.stderr, flush=True)
            answered, said = time.monotonic(), False
            continue
        away_s = time.monotonic() - answered
        if away_s > SAY_AFTER_S and not said:
            said = True
            print(f"Prefect: the server at {settings.shown_url} does not answer", file=sys.stderr, flush=True)
        if away_s > END_AFTER_S and _waits_for_server():
            _end(settings, f"has not answered for {away_s:.0f} s")


def _end(settings: ServerSettings, how: str) -> None:
    end_at_once(f"nextquill: the Prefect server at {settings.shown_url} {how}; the same command resumes", 1)


def _waits_for_server() -> bool:
    """Whether the main thread is within Prefect's client, or waits for one of Prefect's threads that may be."""
    import prefect

    folder = Path(prefect.__file__).parent
    places = (str(folder / "client" / "base.py"), str(folder / "_internal" / "concurrency"))
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        if frame.f_code.co_filename.startswith(places):
            return True
        frame = frame.f_back
    return False
