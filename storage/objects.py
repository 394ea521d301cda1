"""Objects under a URI, through fsspec: small ones as bytes, files as streams, faults of the network tried again.

A key is a path below the URI, with forward slashes. Only three things are asked of a store: that an object is there
whole or not at all, that what was put can be got by its key, and that an object can be put on the condition that there
is none yet. Listings may lag behind; who lists has to know what else to look at.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from storage.errors import UserError
from storage.redaction import redact

T = TypeVar("T")

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
READ_ONLY = ("http", "https", "data", "github", "git")
MULTIPART = ("s3", "s3a", "gs", "gcs")
PART_BYTES = 16 << 20
MOST_PARTS = 9_000  # S3 takes 10,000
ATTEMPTS = 7
PART_ATTEMPTS = 8  # of one request before a whole file is begun again: ten seconds
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 20.0  # seconds: with seven attempts, a minute of outage is sat out
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 10.0, 60.0  # a connection that stays open and silent for longer counts as lost
FOREIGN = ("botocore", "aiobotocore", "aiohttp", "gcsfs", "google", "requests", "urllib3", "fsspec", "s3fs")
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


class Objects:
    """All objects under one URI.

    Args:
        uri: `SCHEME://BUCKET/PREFIX`.

    Raises:
        UserError: Its library is not installed, nothing can be written there, or credentials stand in it.
    """

    def __init__(self, uri: str) -> None:
        parts = urlsplit(uri)
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise UserError(
                "a store's URI must not carry credentials or options",
                f"{parts.scheme}://…",  # the rest may hold a secret
                "leave them to the environment, such as AWS_ACCESS_KEY_ID or GOOGLE_APPLICATION_CREDENTIALS",
            )
        if parts.scheme in EXTRAS and not parts.netloc:
            raise UserError("names no bucket", uri, f"write it as in {parts.scheme}://bucket/prefix")
        self.uri = uri.rstrip("/")
        self._scheme = parts.scheme
        # One request, where s3fs would ask for the size first, and for a listing where there is no object.
        self._at_once = {"max_concurrency": 1} if EXTRAS.get(parts.scheme) == "s3" else {}
        self._fs, self._root = _file_system(self.uri, parts.scheme)

    def __str__(self) -> str:
        return self.uri

    def get(self, key: str) -> bytes | None:
        """The bytes of a small object; None where there is none."""
        try:
            return bytes(self._tried(self._fs.cat_file, self._path(key), **self._at_once))
        except FileNotFoundError:
            return None

    def put(self, key: str, value: bytes) -> None:
        """Write a small object, over one that may be there."""
        self._sent(self._fs.pipe_file, self._path(key), value)

    def create(self, key: str, value: bytes) -> bool:
        """Write a small object if there is none; the store decides, so that of two writers one alone succeeds.

        Returns:
            Whether the object is ours.
        """
        try:
            self._sent(self._fs.pipe_file, self._path(key), value, mode="create")
        except FileExistsError:
            # An answer may have been lost and the request repeated: then the object that is there is our own.
            return self.get(key) == value
        return True

    def upload(self, file: Path, key: str) -> None:
        """Stream a file to an object, in parts if it is large; the object appears when the last part has arrived."""
        size = file.stat().st_size
        options: dict[str, Any] = {}
        if self._scheme in MULTIPART:
            # GCS takes multiples of 256 KiB alone.
            options["chunksize"] = max(PART_BYTES, -(-size // MOST_PARTS // (1 << 18)) * (1 << 18))
        if EXTRAS.get(self._scheme) == "s3":
            options["max_concurrency"] = 4
        self._sent(self._fs.put_file, str(file), self._path(key), **options)

    def download(self, key: str, file: Path) -> None:
        """Stream an object to a file.

        Raises:
            FileNotFoundError: There is no such object.
        """
        self._tried(self._fs.get_file, self._path(key), str(file))

    def size(self, key: str) -> int | None:
        """Bytes of an object; None where there is none."""
        try:
            return int(self._tried(self._fs.info, self._path(key), refresh=True)["size"])
        except FileNotFoundError:
            return None

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects, those that are not there included."""
        for key in keys:
            try:
                self._tried(self._fs.rm_file, self._path(key))
            except FileNotFoundError:
                continue

    def keys(self, prefix: str) -> list[str]:
        """Return the keys of all objects under a folder, as far as the store lists them yet."""
        return sorted(self.sizes(prefix))

    def sizes(self, prefix: str) -> dict[str, int]:
        """Return the bytes of all objects under a folder by key, as far as the store lists them yet."""
        try:
            found = self._tried(self._fs.find, self._path(prefix), refresh=True, detail=True)
        except FileNotFoundError:
            return {}
        start = len(self._root) + 1
        return {path.lstrip("/")[start:]: int(about["size"]) for path, about in found.items()}

    def children(self, prefix: str = "") -> list[str]:
        """The names directly under a folder, as far as the store lists them yet."""
        try:
            found = self._tried(self._fs.ls, self._path(prefix), detail=False, refresh=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted({path.rstrip("/").rpartition("/")[2] for path in found} - {""})

    def age(self, key: str) -> float:
        """Seconds since an object was written, by the store's clock and ours; 0 where that cannot be told."""
        try:
            return time.time() - float(self._tried(self._fs.modified, self._path(key)).timestamp())
        except (FileNotFoundError, NotImplementedError, KeyError):
            return 0.0

    def drop_parts(self, prefix: str, *, older_than_s: float | None = None) -> None:
        """Have S3 forget parts of uploads under `prefix` that nobody will complete: they cost and are not listed.

        Args:
            prefix: A folder.
            older_than_s: Leave uploads that were begun less long ago, by the store's clock and ours; None for all.
        """
        if EXTRAS.get(self._scheme) != "s3":
            return
        bucket, _, key = self._path(prefix).partition("/")
        try:
            found = self._tried(self._fs.call_s3, "list_multipart_uploads", Bucket=bucket, Prefix=f"{key}/")
            for upload in found.get("Uploads", ()):
                if older_than_s is not None and time.time() - upload["Initiated"].timestamp() <= older_than_s:
                    continue
                self._tried(
                    self._fs.call_s3,
                    "abort_multipart_upload",
                    Bucket=bucket,
                    Key=upload["Key"],
                    UploadId=upload["UploadId"],
                )
        except (FileNotFoundError, UserError):
            return  # a courtesy: not every server speaks this, and not every role may

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}" if key else self._root

    def _sent(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> None:
        try:
            self._tried(call, *arguments, **options)
        except FileNotFoundError:  # nothing else can be missing where something is written
            raise self._no_bucket() from None

    def _no_bucket(self) -> UserError:
        return UserError("there is no such bucket", self.uri, "create it, or correct `store`")

    def _tried(self, call: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """Call the store, again after ever longer pauses while the network or a throttle is at fault."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return call(*arguments, **options)
            except Exception as error:
                code = error_code(error)
                if code in ("NoSuchBucket", "InvalidBucketName"):
                    raise self._no_bucket() from None
                if type(error).__name__ == "ParamValidationError" or (
                    self._scheme in MULTIPART and isinstance(error, ValueError)
                ):
                    raise UserError("not an address that the store takes", self.uri, "correct `store`") from None
                if isinstance(error, FileNotFoundError | FileExistsError | NotImplementedError):
                    raise
                if code == "PreconditionFailed":
                    raise FileExistsError(str(arguments[0])) from None
                if code in REFUSED or isinstance(error, PermissionError):
                    raise UserError(
                        f"access is refused ({code or type(error).__name__})",
                        self.uri,
                        "check the credentials in the environment and what they allow on this bucket",
                    ) from None
                foreign = type(error).__module__.partition(".")[0] in FOREIGN
                if not foreign and not isinstance(error, OSError | TimeoutError):
                    raise
                if attempt == ATTEMPTS:
                    raise UserError(
                        f"no success in {ATTEMPTS} attempts ({shown_error(error)})",
                        self.uri,
                        "check the network and the endpoint; the same command goes on where it stopped",
                    ) from error
            time.sleep(min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (attempt - 1)) * random.uniform(0.5, 1))  # noqa: S311
        raise AssertionError("the loop returns or raises")


def endpoint() -> str:
    """The S3 server that the environment names; "" for Amazon's."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""


def _file_system(uri: str, scheme: str) -> tuple[Any, str]:
    """The fsspec file system of a URI and the path in it. Listings are never remembered."""
    import fsspec

    if scheme in READ_ONLY:
        raise UserError(f"nothing can be written to {scheme}://", uri, "name a folder, s3:// or gs:// in `store`")
    options: dict[str, Any] = {"use_listings_cache": False}
    if EXTRAS.get(scheme) == "s3":
        # Two attempts by the client itself, the rest with longer pauses by us.
        retries = {"mode": "standard", "max_attempts": 2}
        options["endpoint_url"] = endpoint() or None
        options["config_kwargs"] = {
            "retries": retries,
            "connect_timeout": CONNECT_TIMEOUT_S,
            "read_timeout": READ_TIMEOUT_S,
        }
    try:
        fs, path = fsspec.core.url_to_fs(uri, **options)
    except ImportError as error:
        extra = EXTRAS.get(scheme)
        remedy = f"pip install 'nextquill[{extra}]'" if extra else str(error)
        raise UserError(f"the library for {scheme}:// is not installed", uri, remedy) from None
    except ValueError as error:
        raise UserError(f"no store is known by {scheme}://", uri, "name a folder, s3:// or gs:// in `store`") from error
    except Exception as error:  # gcsfs asks for credentials at once
        if error_code(error) in REFUSED:
            raise UserError(
                f"access is refused ({error_code(error)})", uri, "check the credentials in the environment"
            ) from None
        raise
    if EXTRAS.get(scheme) == "s3":
        fs.retries = PART_ATTEMPTS
    return fs, str(path).strip("/")


def error_code(error: BaseException) -> str:
    """What the store's own answer calls the fault, or the name of the client's error."""
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


def shown_error(error: BaseException) -> str:
    """The error's first line without a secret in it."""
    return redact((str(error).splitlines() or [""])[0] or type(error).__name__)[:300]
