"""Remote file systems, through fsspec: how to open one, what its errors mean, and where local copies are kept."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from storage.errors import UserError
from storage.redaction import redact

CACHE = "NEXTQUILL_CACHE"
HTTP = ("http", "https")
EXTRAS: Mapping[str, str] = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
"""The extra of this package that installs the library of a protocol; `s3` and `gs` name the vendors too."""
INSTALLS: Mapping[str, str] = {
    "s3": "pip install 'nextquill[s3]'",
    "gs": "pip install 'nextquill[gs]'",
    "http": "pip install aiohttp",
    "https": "pip install aiohttp",
}
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 10.0, 60.0
"""Seconds after which a connection that is not established, or silent, counts as lost."""
CLIENT_ATTEMPTS = 2
"""Attempts that the client of S3 makes by itself; the callers here add attempts with longer pauses."""
NO_BUCKET = ("NoSuchBucket", "InvalidBucketName")
REFUSED = {
    "AccessDenied",
    "AccountProblem",
    "AllAccessDisabled",
    "AuthorizationHeaderMalformed",
    "CredentialRetrievalError",
    "DefaultCredentialsError",
    "ExpiredToken",
    "Forbidden",
    "InvalidAccessKeyId",
    "InvalidSecurity",
    "InvalidToken",
    "NoCredentialsError",
    "PartialCredentialsError",
    "ProfileNotFound",
    "RefreshError",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
    "Unauthorized",
    "401",
    "403",
}
"""Error codes by which a server refuses access."""
_NOT_CONNECTED = (
    "gaierror", "ClientConnector", "EndpointConnectionError", "ConnectTimeout", "ConnectError", "ProxyError",
)  # fmt: skip
"""How the names of errors begin that mean that no connection was made."""


def cache_folder() -> Path:
    """Return the folder of local copies: $NEXTQUILL_CACHE, or `~/.cache/nextquill`."""
    return Path(os.environ.get(CACHE) or "~/.cache/nextquill").expanduser().resolve()


def endpoint() -> str:
    """Return the S3 server that the environment names; "" stands for Amazon's."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""


def open_file_system(address: str, shown: str, remedy: str) -> tuple[Any, str]:
    """Return the fsspec file system of an address, and the path in it.

    Listings are never cached, because other processes write to the same place.

    Args:
        address: `PROTOCOL://…`.
        shown: The address without secrets, for messages.
        remedy: What to do if the protocol is unknown.

    Raises:
        UserError: The protocol is unknown, or its library is not installed.
    """
    import fsspec  # late: a store in a folder needs no network library

    protocol = address.partition("://")[0].lower()
    vendor = EXTRAS.get(protocol, protocol)
    options: dict[str, Any] = {"use_listings_cache": False}
    if vendor == "s3":
        options["endpoint_url"] = endpoint() or None
        options["config_kwargs"] = {
            "retries": {"mode": "standard", "max_attempts": CLIENT_ATTEMPTS},
            "connect_timeout": CONNECT_TIMEOUT_S,
            "read_timeout": READ_TIMEOUT_S,
        }
    try:
        if protocol in HTTP:
            import aiohttp

            timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=READ_TIMEOUT_S)
            options["client_kwargs"] = {"timeout": timeout, "trust_env": True}
            options["headers"] = {"Accept-Encoding": "identity"}  # a .gz file must arrive as it is
        fs, path = fsspec.core.url_to_fs(address, **options)
    except ImportError as error:
        install = INSTALLS.get(vendor) or first_line(error)
        raise UserError(f"the library for {protocol}:// is not installed", shown, install) from None
    except ValueError:
        raise UserError(f"the protocol {protocol}:// is unknown", shown, remedy) from None
    return fs, str(path)


def error_chain(error: BaseException) -> list[BaseException]:
    """Return an error and what caused it, the innermost last."""
    found: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in found:
        found.append(current)
        current = current.__cause__ or current.__context__
    return found


def error_code(error: BaseException) -> str:
    """Return the error code in the server's answer, or the name of a client's error that means a refusal; else ""."""
    seen: BaseException | None = error
    while seen is not None:
        response = getattr(seen, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
        if type(seen).__name__ in REFUSED:
            return type(seen).__name__
        if type(seen).__name__ == "HttpError" and getattr(seen, "code", None):  # gcsfs
            return str(seen.code)  # type: ignore[attr-defined]
        if isinstance(seen, OSError) and str(seen).startswith("Forbidden"):  # gcsfs too
            return "Forbidden"
        seen = seen.__cause__
    return ""


def http_status(chain: Sequence[BaseException]) -> int | None:
    """Return the HTTP status of the server's answer, or None if there is none in the chain of errors."""
    for error in chain:
        status = getattr(error, "status", None) or getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
    return None


def connection_error(chain: Sequence[BaseException]) -> BaseException | None:
    """Return the error in a chain that says why no connection was made, or None if one was made."""
    refused = [error for error in chain if isinstance(error, ConnectionRefusedError)]
    found = [error for error in chain if type(error).__name__.startswith(_NOT_CONNECTED)]
    return (refused or found[-1:] or [None])[0]


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, without secrets."""
    return redact((str(error).splitlines() or [""])[0] or type(error).__name__)[:300]
