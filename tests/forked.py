"""Commands of `nextquill` and of Prefect in processes that are forked from one that has imported the libraries.

A command that starts from nothing spends most of its CPU time on importing torch and Prefect. A forked one has its own
process ID, environment, working folder, output and exit code, as any other has. A test about the start of a process, or
about what one imports, starts one from nothing instead.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import signal
import site
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO

REPO = Path(__file__).resolve().parent.parent
LOADED = ["tests.loaded"]


class Forked:
    """A running `python -m MODULE ARGUMENT...`, with the methods of `subprocess.Popen` that tests use.

    Args:
        command: Module and arguments.
        environment: All environment variables of the command.
        cwd: Its working folder.
    """

    def __init__(self, command: tuple[str, ...], environment: Mapping[str, str], cwd: Path = REPO) -> None:
        self._command = command
        self._outputs = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115 - open while it runs
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(LOADED)
        paths = tuple(f"/proc/{os.getpid()}/fd/{output.fileno()}" for output in self._outputs)
        self._process = context.Process(target=_run, args=(command, dict(environment), str(cwd), paths), daemon=True)
        self._process.start()
        assert self._process.pid
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal, or None while the command runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code when the command has ended."""
        self._process.join(timeout)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired(self._command, timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal to the command if it still runs."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """End the command at once."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Ask the command to end."""
        self.send_signal(signal.SIGTERM)

    @property
    def stdout(self) -> str:
        """What the command has written to stdout so far."""
        return _text(self._outputs[0])

    @property
    def stderr(self) -> str:
        """What the command has written to stderr so far."""
        return _text(self._outputs[1])

    def finish(self, timeout: float | None = None) -> subprocess.CompletedProcess[str]:
        """Wait until the command has ended, and return what it printed; a command that takes longer is killed."""
        try:
            code = self.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        return subprocess.CompletedProcess(self._command, code, *map(_text, self._outputs))


def _text(output: IO[bytes]) -> str:
    output.seek(0)
    return output.read().decode().replace("\r\n", "\n")


def _run(command: tuple[str, ...], environment: dict[str, str], cwd: str, outputs: tuple[str, str]) -> None:
    """Make this forked process what a new one with the environment is, and run the command in it."""
    for number, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY), number)
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    os.chdir(cwd)
    if "PYTHONPATH" in environment:
        sys.path[:0] = environment["PYTHONPATH"].split(os.pathsep)
        sys.modules.pop("sitecustomize", None)
        site.execsitecustomize()
    from prefect.context import refresh_global_settings_context
    from prefect.logging.configuration import setup_logging

    from flows.cli.runner import quiet_prefect

    if command[0] != "prefect":
        quiet_prefect()  # as a command of ours does before it imports Prefect
    refresh_global_settings_context()
    setup_logging(incremental=False)
    # A daemon, so that it ends with the tests' process; but multiprocessing refuses daemons to start processes.
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
    module, *arguments = command
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code: object = 0
    except SystemExit as end:
        code = end.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    atexit._run_exitfuncs()
    sys.exit(code)  # type: ignore[arg-type]
