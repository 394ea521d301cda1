"""Outage of the Prefect server that is set: a command ends in one line instead of retrying for minutes.

Prefect's client repeats each request to a server that does not answer, and so does each layer of the flow above it.
Work that needs no server, such as a running training, continues: the command ends only while its main thread waits for
the server.
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

from flows.cli.interruption import end_at_once
from flows.server.settings import ServerSettings, answers, server_settings

POLL_S = 5.0
WARN_AFTER_S = 10.0
END_AFTER_S = 45.0
"""Seconds without an answer after which the command ends; a server that is restarted answers earlier."""


def watch() -> None:
    """Watch the server that is set in a thread, until this process ends; a temporary server has its own thread."""
    settings = server_settings()
    if settings.url:
        threading.Thread(target=_watch, args=(settings,), name="watch-server", daemon=True).start()


def end_if_cause(error: BaseException) -> None:
    """End the process with one line if a flow's error comes from a server that no longer answers."""
    import httpx

    from storage.file_systems import error_chain

    if any(isinstance(one, httpx.TransportError) for one in error_chain(error)) and away():
        _end(server_settings(), "no longer answers")


def away() -> bool:
    """Return whether a server is set and does not answer."""
    settings = server_settings()
    return bool(settings.url) and not answers(settings)


def _watch(settings: ServerSettings) -> None:
    answered, warned = time.monotonic(), False
    while True:
        time.sleep(POLL_S)
        if answers(settings):
            if warned:
                print(f"Prefect: the server at {settings.shown_url} answers again", file=sys.stderr, flush=True)
            answered, warned = time.monotonic(), False
            continue
        away_s = time.monotonic() - answered
        if away_s > WARN_AFTER_S and not warned:
            warned = True
            print(f"Prefect: the server at {settings.shown_url} does not answer", file=sys.stderr, flush=True)
        if away_s > END_AFTER_S and _waits_for_server():
            _end(settings, f"has not answered for {away_s:.0f} s")


def _end(settings: ServerSettings, how: str) -> None:
    end_at_once(f"nextquill: the Prefect server at {settings.shown_url} {how}; the same command resumes", 1)


def _waits_for_server() -> bool:
    """Return whether the main thread is in Prefect's client, or waits for one of Prefect's threads that may be."""
    import prefect

    folder = Path(prefect.__file__).parent
    places = (str(folder / "client" / "base.py"), str(folder / "_internal" / "concurrency"))
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        if frame.f_code.co_filename.startswith(places):
            return True
        frame = frame.f_back
    return False
