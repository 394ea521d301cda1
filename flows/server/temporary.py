"""Temporary Prefect server for the flow runs of one command.

Prefect can start a temporary server itself, but in the terminal's process group: Ctrl-C ends it before the run can
report that it was interrupted, and it outlives a command that is killed. This server has its own session, and the
kernel ends it with the command. The command holds the listening socket, so a server that dies is replaced without a
refused connection: new requests wait, and Prefect's client repeats the one in progress.
"""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

from flows.cli.interruption import end_at_once
from storage.masked_output import mask_output
from tasks.ranks.logs import limit_size
from tasks.ranks.processes import end_group, start
from tasks.waiting import wait_until

LOG = "temporary-server.log"
RESTARTS = 3
"""Number of times that a server which died is replaced in one command."""
POLL_S = 5.0
MAX_UNANSWERED = 8
"""Number of health checks in a row without an answer, after which a running server is replaced."""
ANSWER_S = 2.0
"""Seconds that the server has to answer a health check."""
END_S = 3.0
"""Seconds that the server has to end by itself."""


class ServerFailed(RuntimeError):  # noqa: N818 - says what happened
    """Raised when the temporary server ended or does not answer; the message is one line."""


class TemporaryServer:
    """A Prefect server for the flow runs of this process.

    Attributes:
        port: Port of the loopback address at which it listens.
        log: Log of this server and the ones before it.
        process: The server's process.

    Args:
        home: Prefect's folder, in which the log is.
        startup_s: Seconds that the server has to start.
    """

    def __init__(self, home: Path, startup_s: float) -> None:
        self.log = home / LOG
        self._startup_s = startup_s
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port = int(self._listener.getsockname()[1])
        self._ending = False
        home.mkdir(parents=True, exist_ok=True)
        limit_size(self.log)
        self.process = self._start()

    def wait_until_healthy(self) -> None:
        """Wait until the server answers.

        Raises:
            ServerFailed: The server ended, or did not answer in time.
        """

        def ended() -> bool:
            return self.process.poll() is not None or self._ending

        healthy_or_ended = wait_until(lambda: self.answers() or ended(), self._startup_s, poll_s=0.05)
        if ended():
            raise ServerFailed(self._ended())
        if not healthy_or_ended:
            raise ServerFailed(f"Prefect's temporary server does not answer; its log is {self.log}")

    def answers(self, wait_s: float = ANSWER_S) -> bool:
        """Return whether the server reports that it is healthy.

        Args:
            wait_s: Seconds that the server has to answer.
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
        """Replace the server when it dies or hangs, in a thread that runs until this process ends."""
        threading.Thread(target=self._keep_alive, name="watch-temporary-server", daemon=True).start()

    def end(self) -> None:
        """End the server; call it after everything has been reported to it."""
        self._ending = True
        self._listener.close()
        end_group(self.process, patience_s=END_S)

    def _start(self) -> subprocess.Popen[bytes]:
        from prefect.settings import get_current_settings

        descriptor = self._listener.fileno()
        settings = get_current_settings().to_environment_variables(exclude_unset=True)
        environment = {**os.environ, **settings, "PREFECT_UI_ENABLED": "0"}
        command = [sys.executable, "-m", __name__, str(descriptor)]
        return start(command, self.log, environment, stdin_pipe=True, pass_fds=[descriptor])

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
        """Wait until the server has ended; kill it if it no longer answers."""
        unanswered = 0
        while unanswered < MAX_UNANSWERED:
            try:
                self.process.wait(POLL_S)
                return
            except subprocess.TimeoutExpired:
                unanswered = 0 if self.answers() else unanswered + 1
        self.process.kill()
        self.process.wait()

    def _ended(self) -> str:
        code = self.process.poll()
        return f"Prefect's temporary server ended (exit code {code}); its log is {self.log}"


def main() -> None:
    """Serve Prefect's API on the listening socket whose file descriptor is the first argument."""
    mask_output()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    listener = socket.socket(fileno=int(sys.argv[1]))
    import uvicorn
    from prefect.server.api.server import create_app

    app = create_app(ephemeral=True, final=True)
    config = uvicorn.Config(app, log_level="error", lifespan="on", timeout_graceful_shutdown=1)
    uvicorn.Server(config).run(sockets=[listener])


def _end_with_parent() -> None:
    """End this process when the command closes its standard input; on Linux the kernel does so, too."""
    while os.read(0, 1024):
        pass
    os._exit(0)


if __name__ == "__main__":
    main()
