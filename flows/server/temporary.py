"""Prefect's temporary server of one command: a process that outlives Ctrl-C for a moment, and never the command.

Prefect would start one itself, in the terminal's process group, where Ctrl-C reaches it before the run can report that
it was interrupted, and it outlives a command that is killed. This one has its own session, and the kernel ends it with
the command. The command keeps the listening socket, so a server that dies is replaced without any refused connection:
requests wait, and Prefect's client repeats the one that was under way.
"""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from flows.cli.interruption import end_at_once
from storage.masked_output import mask_output
from tasks.ranks.logs import bounded
from tasks.ranks.processes import end_group, start

LOG = "temporary-server.log"
RESTARTS = 3
"""Deaths of the server in one command after which a new one is no remedy."""
LOOK_EVERY_S = 5.0
UNANSWERED = 8
"""Questions in a row, each of two seconds, after which a server that runs and does not answer is replaced."""
ASK_S = 2.0
END_S = 3.0
"""Seconds that the server has for ending in its own way."""


class ServerFailed(RuntimeError):  # noqa: N818 - says what happened
    """The temporary server ended or does not answer; the message is one line."""


class TemporaryServer:
    """A Prefect server for the flow runs of this process.

    Attributes:
        port: Where it listens, on the loopback address.
        log: What it has printed, together with those before it.
        process: The server.

    Args:
        home: Prefect's folder; its log is there.
        startup_s: Seconds that it has for starting.
    """

    def __init__(self, home: Path, startup_s: float) -> None:
        self.log = home / LOG
        self._startup_s = startup_s
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port = int(self._listener.getsockname()[1])
        self._ending = False
        home.mkdir(parents=True, exist_ok=True)
        bounded(self.log)
        self.process = self._start()

    def wait_until_healthy(self) -> None:
        """Wait until the server answers.

        Raises:
            ServerFailed: It ended, or did not answer in time.
        """
        deadline = time.monotonic() + self._startup_s
        while not self.answers():
            if self.process.poll() is not None or self._ending:
                raise ServerFailed(self._ended())
            if time.monotonic() > deadline:
                raise ServerFailed(f"Prefect's temporary server does not answer; its log is {self.log}")

    def answers(self, wait_s: float = ASK_S) -> bool:
        """Whether the server says that it is healthy.

        Args:
            wait_s: Seconds that it has for the answer.
        """
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=max(wait_s, 0.05))
        try:
            connection.request("GET", "/api/health")
            return connection.getresponse().read().strip() == b"true"
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def keep_alive(self) -> None:
        """Replace the server when it dies or hangs, in a thread that lasts as long as this process."""
        threading.Thread(target=self._keep_alive, name="watch-temporary-server", daemon=True).start()

    def end(self) -> None:
        """End the server, when everything has been reported to it."""
        self._ending = True
        self._listener.close()
        end_group(self.process, patience_s=END_S)

    def _start(self) -> subprocess.Popen[bytes]:
        from prefect.settings import get_current_settings

        descriptor = self._listener.fileno()
        settings = get_current_settings().to_environment_variables(exclude_unset=True)
        environment = {**os.environ, **settings, "PREFECT_UI_ENABLED": "0"}
        command = [sys.executable, "-m", __name__, str(descriptor)]
        return start(command, self.log, environment, held=True, pass_fds=[descriptor])

    def _keep_alive(self) -> None:
        for _ in range(RESTARTS):
            self._wait_for_end()
            if self._ending:
                return
            print(f"{self._ended()}; a new one starts", file=sys.stderr, flush=True)
            self.process = self._start()
            try:
                self.wait_until_healthy()
            except ServerFailed:
                break
        else:
            self._wait_for_end()
        if not self._ending:
            self._listener.close()
            end_at_once(f"nextquill: {self._ended()}; the same command resumes", 1)

    def _wait_for_end(self) -> None:
        """Wait until the server has ended; one that has not answered for a while is ended here."""
        unanswered = 0
        while unanswered < UNANSWERED:
            try:
                self.process.wait(LOOK_EVERY_S)
                return
            except subprocess.TimeoutExpired:
                unanswered = 0 if self.answers() else unanswered + 1
        self.process.kill()
        self.process.wait()

    def _ended(self) -> str:
        code = self.process.poll()
        return f"Prefect's temporary server ended (exit code {code}); its log is {self.log}"


def main() -> None:
    """Serve Prefect's API on the listening socket whose descriptor is the argument."""
    mask_output()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    listener = socket.socket(fileno=int(sys.argv[1]))
    import uvicorn
    from prefect.server.api.server import create_app

    app = create_app(ephemeral=True, final=True)
    config = uvicorn.Config(app, log_level="error", lifespan="on", timeout_graceful_shutdown=1)
    uvicorn.Server(config).run(sockets=[listener])


def _end_with_parent() -> None:
    """End this process when its standard input does, which the command holds; Linux ends it even without this."""
    while os.read(0, 1024):
        pass
    os._exit(0)


if __name__ == "__main__":
    main()
