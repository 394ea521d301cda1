"""Commands in a pseudo-terminal, in whose foreground group they run, so that Ctrl-C reaches them as from a user."""

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

from tasks.ranks.processes import is_running
from tasks.waiting import wait_until
from tests.conftest import REPO

CTRL_C = b"\x03"
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[^\r\n]*\r(?!\n)")
"""Control sequences, and text that a progress bar has overwritten."""


class Terminal:
    """A running command, the text that it shows, and all processes that it has started so far.

    Args:
        arguments: Arguments of the Python interpreter.
        environment: All environment variables of the command.
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
        """The text that the command has shown, as a user sees it."""
        return CONTROL.sub("", self._shown.decode(errors="replace").replace("\r\n", "\n"))

    def wait_for(self, what: str | Callable[[], bool], seconds: float = 180.0) -> None:
        """Wait until a text is shown or a condition holds; fail if the command ends earlier."""
        deadline = time.monotonic() + seconds
        while not (what in self.text if isinstance(what, str) else what()):
            assert time.monotonic() < deadline, f"{what} did not come:\n{self.text[-2000:]}"
            assert is_running(self.process), f"ended before {what}:\n{self.text[-2000:]}"
            time.sleep(0.02)

    def press_ctrl_c(self) -> None:
        os.write(self._terminal, CTRL_C)

    def end(self, seconds: float) -> tuple[int, float]:
        """Wait until the command ends.

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
        """Return the running processes that the command has started and whose command line contains a text."""
        found = []
        for process in self.left():
            with suppress(psutil.Error):
                if text in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def left(self) -> list[psutil.Process]:
        """Return the running processes that the command has started."""
        return [process for process in set(self._seen) if is_running(process)]

    def none_left(self, seconds: float = 3.0) -> bool:
        """Return whether all processes that the command has started end within a time."""
        return wait_until(lambda: not self.left(), seconds, poll_s=0.05)

    def close(self) -> None:
        """Kill the command and all that it has started."""
        for process in [self.process, *self.left()]:
            with suppress(psutil.Error):
                process.kill()
        with suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        os.close(self._terminal)

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
    """Run a command in a terminal for the duration of a block.

    Args:
        arguments: Arguments of `nextquill`, or Python code.
        environment: All environment variables of the command.
        as_code: Whether the argument is Python code.
    """
    terminal = Terminal(["-c" if as_code else "-m", *([] if as_code else ["flows"]), *map(str, arguments)], environment)
    try:
        yield terminal
    finally:
        terminal.close()


def kill(process: psutil.Process) -> None:
    """Kill a process with SIGKILL."""
    os.kill(process.pid, signal.SIGKILL)
