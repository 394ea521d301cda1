"""Errors of the server as one line of JSON, in the form that clients of OpenAI's API read."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from nextquill_core.errors import UserError
from nextquill_core.serving.backend import BackendError
from nextquill_core.writing.requests import fault

logger = logging.getLogger(__name__)
KINDS = {401: "authentication_error", 429: "rate_limit_error"}
LONGEST = 500
BY_STATUS = (400, 404, 405)
"""Statuses of unreadable bodies and of paths and methods that no route has; they come as Starlette's own exception."""


class ErrorBody(BaseModel):
    """What is wrong."""

    message: str
    """one line: what is wrong, where, and how to fix it"""
    type: str
    """invalid_request_error, authentication_error, rate_limit_error or server_error"""
    code: str | None = None
    """a word for programs, such as model_not_found"""


class ErrorReply(BaseModel):
    """The answer to a request that cannot be answered."""

    error: ErrorBody


class ApiError(Exception):
    """A request that cannot be answered.

    Args:
        status: HTTP status.
        message: One line.
        code: A word for programs.
        headers: Further headers of the answer.
    """

    def __init__(
        self, status: int, message: str, code: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.headers = status, code, headers


def error_body(status: int, message: str, code: str | None = None) -> dict[str, Any]:
    """Return the JSON of an error.

    Args:
        status: HTTP status, which decides the type.
        message: One line; a longer one is cut.
        code: A word for programs.
    """
    kind = KINDS.get(status, "server_error" if status >= 500 else "invalid_request_error")
    line = message if len(message) <= LONGEST else f"{message[:LONGEST]}…"
    line = line.encode(errors="backslashreplace").decode()  # it may quote half of a surrogate pair
    return ErrorReply(error=ErrorBody(message=line, type=kind, code=code)).model_dump()


def as_api_error(error: Exception) -> ApiError:
    """Return what a client gets to see of an error; what is no fault of the request is logged."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, BackendError):
        logger.error("the backend failed", extra={"reason": str(error)})
        return ApiError(error.status, str(error))
    if isinstance(error, UserError):
        return ApiError(422, str(error))
    if isinstance(error, FileNotFoundError):  # the store's artifacts were replaced a moment ago
        logger.warning("a file of the store is gone", extra={"reason": str(error)})
        return ApiError(503, "the histories are being replaced; ask again", "unavailable", {"Retry-After": "5"})
    logger.error("internal error", exc_info=error)
    return ApiError(500, "internal error; the server's log has the rest")


def error_response(error: Exception) -> JSONResponse:
    """Return the answer to a request that ended with an error."""
    found = as_api_error(error)
    return JSONResponse(error_body(found.status, str(found), found.code), found.status, found.headers)


def register(app: FastAPI) -> None:
    """Let the app answer requests that cannot be answered with one line; `logs.RequestLog` answers all other errors."""

    def answer(_request: Request, error: Exception) -> JSONResponse:
        return error_response(error)

    def invalid(_request: Request, error: Exception) -> JSONResponse:
        found = error.errors() if isinstance(error, RequestValidationError) else [{"loc": (), "msg": str(error)}]
        not_json = any(one.get("type") == "json_invalid" for one in found)
        placed = [{**one, "loc": tuple(part for part in one["loc"] if part != "body")} for one in found]
        return JSONResponse(error_body(422, "the body is not JSON" if not_json else fault(placed)), 422)

    def refused(_request: Request, error: Exception) -> JSONResponse:
        status, detail = getattr(error, "status_code", 500), getattr(error, "detail", "")
        return JSONResponse(error_body(status, f"{detail}"), status)

    app.add_exception_handler(RequestValidationError, invalid)
    for known in (HTTPException, *BY_STATUS):
        app.add_exception_handler(known, refused)
    for kind in (ApiError, UserError):
        app.add_exception_handler(kind, answer)
