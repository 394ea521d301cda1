"""A command in a real terminal: a pseudo-terminal whose foreground group it is, so that Ctrl-C is what a user sends."""

from __future__ import annotations

import os
import pty
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

import psutil

from tests.conftest import REPO

CTRL_C = b"\x03"
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[^\r\n]*\r(?!\n)")
"""What moves the cursor, and what a progress bar has written over."""


class Terminal:
    """A running `nextquill` command, what it shows, and everything that it has started so far.

    Args:
        arguments: Of the interpreter.
        environment: Its environment.
    """

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        self._shown = bytearray()
        self._seen: set[psutil.Process] = set()
        self.pid, self._terminal = pty.fork()
        if self.pid == 0:
            os.chdir(REPO)
            os.execve(sys.executable, [sys.executable, *arguments], dict(environment))  # noqa: S606
        self.process = psutil.Process(self.pid)
        threading.Thread(target=self._read, daemon=True).start()
        threading.Thread(target=self._look, daemon=True).start()

    @property
    def text(self) -> str:
        """All that it has shown."""
        return CONTROL.sub("", self._shown.decode(errors="replace").replace("\r\n", "\n"))

    def wait_for(self, what: str | Callable[[], bool], seconds: float = 180.0) -> None:
        """Wait until a text is shown, or a condition holds."""
        deadline = time.monotonic() + seconds
        while not (what in self.text if isinstance(what, str) else what()):
            assert time.monotonic() < deadline, f"{what} did not come:\n{self.text[-2000:]}"
            assert self._runs(self.process), f"ended before {what}:\n{self.text[-2000:]}"
            time.sleep(0.02)

    def press_ctrl_c(self) -> None:
        os.write(self._terminal, CTRL_C)

    def end(self, seconds: float) -> tuple[int, float]:
        """Wait for its end.

        Returns:
            Its exit code, negative for a signal, and the seconds that it took.
        """
        started = time.monotonic()
        while time.monotonic() < started + seconds:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status), time.monotonic() - started
            time.sleep(0.02)
        raise AssertionError(f"still there after {seconds:g} s:\n{self.text[-2000:]}\n{self.left()}")

    def named(self, text: str) -> list[psutil.Process]:
        """Running processes among those that it has started whose command line has a text."""
        found = []
        for process in self.left():
            with suppress(psutil.Error):
                if text in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def left(self) -> list[psutil.Process]:
        """What it has started and still runs."""
        return [process for process in set(self._seen) if self._runs(process)]

    def none_left(self, seconds: float = 3.0) -> bool:
        """Whether everything that it has started ends within a time."""
        deadline = time.monotonic() + seconds
        while self.left() and time.monotonic() < deadline:
            time.sleep(0.05)
        return not self.left()

    def close(self) -> None:
        """End it, with all that it has started."""
        for process in [self.process, *self.left()]:
            with suppress(psutil.Error):
                process.kill()
        with suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        os.close(self._terminal)

    @staticmethod
    def _runs(process: psutil.Process) -> bool:
        with suppress(psutil.Error):
            return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
        return False

    def _read(self) -> None:
        with suppress(OSError):
            while block := os.read(self._terminal, 4096):
                self._shown += block

    def _look(self) -> None:
        with suppress(psutil.Error):
            while True:
                self._seen |= set(self.process.children(recursive=True))
                time.sleep(0.05)


@contextmanager
def in_terminal(*arguments: object, environment: Mapping[str, str], as_code: bool = False) -> Iterator[Terminal]:
    """Run `nextquill` with arguments, or with `as_code` Python code, in a terminal for the length of a block."""
    terminal = Terminal(["-c" if as_code else "-m", *([] if as_code else ["flows"]), *map(str, arguments)], environment)
    try:
        yield terminal
    finally:
        terminal.close()


def kill(process: psutil.Process) -> None:
    """`kill -9`."""
    os.kill(process.pid, signal.SIGKILL)
