"""Interruption of a command: Ctrl-C, SIGTERM and SIGHUP end it within seconds and leave no process behind.

The first signal raises an exception in the main thread, which unwinds: child processes are ended, and flow runs get
their final state. A watchdog thread ends the command if that takes too long, for example in a long call into a library,
and at once on a second signal. It reads the signals from the interpreter's wake-up descriptor, so it sees them whatever
the main thread does and whichever handlers Prefect has installed.
"""

from __future__ import annotations

import atexit
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

INTERRUPTED = 130
"""Exit code of a command that a signal ended."""
MESSAGE = "nextquill: interrupted; the same command resumes"
PATIENCE_S = 6.0
"""Seconds that the main thread has to end the command after the first signal."""
REPORT_S = 1.2
"""Seconds to report to the Prefect server before the watchdog ends the command."""
NOTICE_S = 0.2
"""Seconds that the watchdog has to notice a signal which a library has turned into another error."""
SAME_S = 0.25
"""Seconds within which further signals count as the first one: some parent processes forward a signal that the terminal
has already sent to the whole process group."""
FRESH_LINE = "\r\x1b[2K\x1b[?25h"
"""Control sequence that clears the line of a progress bar or ^C, and shows the cursor again."""

signals = [number for name in ("SIGINT", "SIGTERM", "SIGHUP") if (number := getattr(signal, name, None)) is not None]
report: Callable[[], None] | None = None
"""Reports to the Prefect server that this process's flow runs are interrupted; set by the module that runs flows."""


class _Ending:
    """How this process ends, as far as it is known."""

    def __init__(self) -> None:
        self.signalled = threading.Event()
        self.printed = False
        self.code: int | None = None
        self.lock = threading.Lock()


_ending = _Ending()
_patience_s = PATIENCE_S
_watched: int | None = None
"""File descriptor to which the interpreter writes the numbers of signals; the watchdog reads the other end."""


def run(command: Callable[[], int]) -> NoReturn:
    """Run a command to its end and exit with its code, or with 130 if a signal asked for that.

    Args:
        command: Returns the exit code. Its exceptions are passed on, unless a signal caused them.
    """
    watch()
    try:
        code = command()
    except BaseException as error:
        if not isinstance(error, KeyboardInterrupt) and not _ending.signalled.wait(NOTICE_S):
            raise
        code = INTERRUPTED
    if interrupted() and code:  # a library may have turned the signal into another error
        code = INTERRUPTED
    set_exit_code(code)
    if code == INTERRUPTED:
        _print(MESSAGE)
    sys.exit(code)


def exit_quickly() -> None:
    """Let this process end without the interpreter's clean-up, which takes seconds after many libraries were loaded.

    Call it before any other function is registered with `atexit`, so that all others are called first.
    """
    atexit.register(_exit_quickly)


def _exit_quickly() -> None:
    if _ending.code is None:
        return
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(_ending.code)


def watch() -> None:
    """Install the signal handlers and start the watchdog; call it in the main thread."""
    global _ending, _patience_s, _watched
    _ending, _patience_s = _Ending(), PATIENCE_S
    for number in signals:
        # A signal that is ignored, as under nohup, stays ignored; SIGINT raises KeyboardInterrupt already.
        if number != signal.SIGINT and signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _interrupt)
    if _watched is None:
        reader, _watched = os.pipe()
        os.set_blocking(_watched, False)
        threading.Thread(target=_await_signals, args=(reader,), name="watch-signals", daemon=True).start()
    signal.set_wakeup_fd(_watched, warn_on_full_buffer=False)


def interrupted() -> bool:
    """Return whether a signal has asked this process to end."""
    return _ending.signalled.is_set()


def set_patience(seconds: float) -> None:
    """Give the main thread another time than `PATIENCE_S` to end the command; a server lets its requests end."""
    global _patience_s
    _patience_s = seconds


def set_exit_code(code: int) -> None:
    """Set the exit code; from now on a signal raises no exception any more, but still limits the time to the end.

    Args:
        code: Exit code of the command, even if the watchdog has to end it.
    """
    _ending.code = code
    for number in signals:
        if callable(signal.getsignal(number)):
            signal.signal(number, lambda *_: None)


def end_at_once(message: str, code: int) -> NoReturn:
    """End this process and all that it has started, without any clean-up.

    Args:
        message: One line that says why; it is not printed if the command is done and only its threads still run.
        code: Exit code, unless the command has set its own.
    """
    from tasks.ranks.processes import end_descendants

    end_descendants()
    if _ending.code is None:
        _print(message)
    os._exit(code if _ending.code is None else _ending.code)


def _interrupt(signum: int, frame: Any) -> NoReturn:
    raise KeyboardInterrupt


def _await_signals(reader: int) -> None:
    first = 0.0
    while True:
        left = max(0.0, first + _patience_s - time.monotonic()) if first else None
        ready, _, _ = select.select([reader], [], [], left)
        if not ready:
            _end_interrupted(REPORT_S)
        for number in os.read(reader, 64) if ready else b"":
            if number not in signals:
                continue
            if not first:
                first = time.monotonic()
                _ending.signalled.set()
            elif time.monotonic() - first > SAME_S:
                _end_interrupted(REPORT_S / 3)


def _end_interrupted(report_s: float) -> NoReturn:
    if report is not None and _ending.code is None:
        reporting = threading.Thread(target=report, daemon=True)
        reporting.start()
        reporting.join(report_s)
    end_at_once(MESSAGE, INTERRUPTED)


def _print(message: str) -> None:
    """Print a line, once per process; not with `sys.stderr`, whose lock the main thread may hold forever."""
    with _ending.lock:
        if _ending.printed:
            return
        _ending.printed = True
    line = f"{FRESH_LINE if os.isatty(2) else ''}{message}\n"
    with suppress(OSError):  # the terminal may be gone
        os.write(2, line.encode())
