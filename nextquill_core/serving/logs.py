"""The server's log: one JSON object a line, without texts and user ids unless they are asked for."""

from __future__ import annotations

import logging
import sys
import time
import uuid
from typing import Any

from pythonjsonlogger.json import JsonFormatter

from nextquill_core.serving.errors import error_response
from nextquill_core.serving.metrics import Metrics

FIELDS = "%(asctime)s %(levelname)s %(name)s %(message)s"
RENAMED = {"asctime": "at", "levelname": "level", "name": "logger"}
UNMATCHED = "other"
logger = logging.getLogger(__name__)


def log_as_json() -> None:
    """Write the log of this process to the standard error as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    formatter = JsonFormatter(FIELDS, rename_fields=RENAMED, datefmt="%Y-%m-%dT%H:%M:%SZ")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    for name, level in (("nextquill_core", logging.INFO), ("uvicorn", logging.WARNING)):
        found = logging.getLogger(name)
        found.handlers, found.propagate = [handler], False
        found.setLevel(level)


class RequestLog:
    """Middleware that counts, times and logs every request, gives it an id, and answers errors that no route expects.

    It is the outermost middleware, so that such an answer has the id and is counted too.

    Args:
        app: The app below.
        metrics: Receives count and duration.
    """

    def __init__(self, app: Any, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on; the arguments are those of any ASGI app."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status, request_id = time.perf_counter(), 0, uuid.uuid4().hex[:16]
        about: dict[str, Any] = {}
        scope.setdefault("state", {})["log"] = about

        async def sending(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except Exception as error:
            if status:
                raise
            await error_response(error)(scope, receive, sending)
        finally:
            seconds = time.perf_counter() - began
            route = getattr(scope.get("route"), "path", UNMATCHED)
            self._metrics.requests.labels(route, str(status or 499)).inc()
            self._metrics.seconds.labels(route).observe(seconds)
            if not route.startswith(("/healthz", "/readyz", "/metrics")):
                facts = {"id": request_id, "method": scope["method"], "route": route, "status": status or 499}
                logger.info("request", extra={**facts, "seconds": round(seconds, 4), **about})
