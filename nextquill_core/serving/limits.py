"""What a request must keep to before it is read: the size of its body, the server's name, and the key."""

from __future__ import annotations

import hmac
from typing import Any

from fastapi import HTTPException
from fastapi.responses import JSONResponse

from nextquill_core.serving.errors import error_body
from nextquill_core.serving.settings import LOOPBACK, ServeSettings

OPEN = ("/", "/healthz", "/readyz", "/metrics")
"""Paths that need no key: they show nothing of anybody, and the page asks for the key."""


class Limits:
    """Middleware that refuses requests before they are read.

    Args:
        app: The app below.
        settings: The limits.
    """

    def __init__(self, app: Any, settings: ServeSettings) -> None:
        self._app, self._settings = app, settings

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, or refuse it; the arguments are those of any ASGI app."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if refusal := self._refusal(scope["path"], headers):
            status, message = refusal
            extra = {"WWW-Authenticate": "Bearer"} if status == 401 else None
            await JSONResponse(error_body(status, message), status, extra)(scope, receive, send)
            return
        size = 0

        async def receiving() -> Any:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self._settings.most_bytes:
                raise HTTPException(413, self._too_large)
            return message

        await self._app(scope, receiving, send)

    @property
    def _too_large(self) -> str:
        return f"the body is larger than {self._settings.most_bytes:,} bytes; send fewer or shorter past reviews"

    def _refusal(self, path: str, headers: dict[str, str]) -> tuple[int, str] | None:
        # A page of another site that gives its name this address would otherwise read people's reviews.
        name = headers.get("host", "").lower().rpartition("@")[2]
        name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
        if self._settings.on_loopback and name not in LOOPBACK:
            return 400, f"the server does not answer for the host {name[:80]!r}; use {self._settings.host}"
        size = headers.get("content-length", "0")
        if not size.isdecimal() or int(size) > self._settings.most_bytes:
            return 413, self._too_large
        if self._settings.key is None or path in OPEN:
            return None
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.encode(), self._settings.key.encode()):
            return 401, "a key is missing, or it is another one; send it as `Authorization: Bearer KEY`"
        return None
