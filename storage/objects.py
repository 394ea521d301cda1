"""Objects under a URI: small ones as bytes, files as streams; calls are repeated while the network is at fault.

A key is a path below the URI, with forward slashes. Only three things are required of a store: an object is there
whole or not at all; what was put is found by its key; and an object can be put on the condition that there is none
yet. Listings may lag behind, so a caller that lists must know what else to look at.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from storage.errors import UserError
from storage.file_systems import EXTRAS, NO_BUCKET, REFUSED, error_code, first_line, open_file_system

T = TypeVar("T")

READ_ONLY = ("http", "https", "data", "github", "git")
MULTIPART = ("s3", "s3a", "gs", "gcs")
PART_BYTES = 16 << 20
MOST_PARTS = 9_000
"""Parts of one upload; S3 accepts 10,000."""
ATTEMPTS = 7
PART_ATTEMPTS = 8
"""Attempts of s3fs for one part, about ten seconds, before the whole file is sent again."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 20.0
"""Seconds between attempts; the pause doubles each time, so seven attempts outlast about a minute without the store."""
FOREIGN = ("botocore", "aiobotocore", "aiohttp", "gcsfs", "google", "requests", "urllib3", "fsspec", "s3fs")
"""Libraries whose errors mean that a call failed on its way, unless they are recognised as permanent."""
_OTHER_STORE = "name a folder, s3:// or gs:// in `store`"


class Objects:
    """All objects under one URI.

    Args:
        uri: `PROTOCOL://BUCKET/PREFIX`.

    Raises:
        UserError: The library of the protocol is not installed, the protocol is read-only, or the URI holds
            credentials.
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
            raise UserError("the URI names no bucket", uri, f"write it as in {parts.scheme}://bucket/prefix")
        if parts.scheme in READ_ONLY:
            raise UserError(f"nothing can be written to {parts.scheme}://", uri, _OTHER_STORE)
        self.uri = uri.rstrip("/")
        self._protocol = parts.scheme
        self._is_s3 = EXTRAS.get(parts.scheme) == "s3"
        # s3fs then sends one request, instead of asking for the size first and for a listing where there is no object.
        self._one_request = {"max_concurrency": 1} if self._is_s3 else {}
        try:
            self._fs, path = open_file_system(self.uri, self.uri, _OTHER_STORE)
        except Exception as error:
            if isinstance(error, UserError) or (code := error_code(error)) not in REFUSED:
                raise
            raise self._refused(code) from None  # gcsfs asks for credentials when it is opened
        if self._is_s3:
            self._fs.retries = PART_ATTEMPTS
        self._root = path.strip("/")

    def __str__(self) -> str:
        return self.uri

    def get(self, key: str) -> bytes | None:
        """Return the bytes of a small object, or None if there is none."""
        try:
            return bytes(self._call(self._fs.cat_file, self._path(key), **self._one_request))
        except FileNotFoundError:
            return None

    def put(self, key: str, value: bytes) -> None:
        """Write a small object, in place of one that may be there."""
        self._send(self._fs.pipe_file, self._path(key), value)

    def create(self, key: str, value: bytes) -> bool:
        """Write a small object if there is none; the store decides, so only one of two writers succeeds.

        Returns:
            Whether the object is ours.
        """
        try:
            self._send(self._fs.pipe_file, self._path(key), value, mode="create")
        except FileExistsError:
            # An answer may have been lost and the request repeated: then the object that is there is our own.
            return self.get(key) == value
        return True

    def upload(self, file: Path, key: str) -> None:
        """Stream a file to an object, in parts if it is large; the object appears when the last part has arrived."""
        size = file.stat().st_size
        options: dict[str, Any] = {}
        if self._protocol in MULTIPART:
            # GCS takes only multiples of 256 KiB.
            options["chunksize"] = max(PART_BYTES, -(-size // MOST_PARTS // (1 << 18)) * (1 << 18))
        if self._is_s3:
            options["max_concurrency"] = 4
        self._send(self._fs.put_file, str(file), self._path(key), **options)

    def download(self, key: str, file: Path) -> None:
        """Stream an object to a file.

        Raises:
            FileNotFoundError: There is no such object.
        """
        self._call(self._fs.get_file, self._path(key), str(file))

    def size(self, key: str) -> int | None:
        """Return the bytes of an object, or None if there is none."""
        try:
            return int(self._call(self._fs.info, self._path(key), refresh=True)["size"])
        except FileNotFoundError:
            return None

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects; keys without an object are skipped."""
        for key in keys:
            with suppress(FileNotFoundError):
                self._call(self._fs.rm_file, self._path(key))

    def keys(self, prefix: str) -> list[str]:
        """Return the keys of all objects under a folder, as far as the store lists them yet."""
        return sorted(self.sizes(prefix))

    def sizes(self, prefix: str) -> dict[str, int]:
        """Return the bytes of all objects under a folder by key, as far as the store lists them yet."""
        try:
            found = self._call(self._fs.find, self._path(prefix), refresh=True, detail=True)
        except FileNotFoundError:
            return {}
        start = len(self._root) + 1
        return {path.lstrip("/")[start:]: int(about["size"]) for path, about in found.items()}

    def children(self, prefix: str = "") -> list[str]:
        """Return the names directly under a folder, as far as the store lists them yet."""
        try:
            found = self._call(self._fs.ls, self._path(prefix), detail=False, refresh=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted({path.rstrip("/").rpartition("/")[2] for path in found} - {""})

    def age(self, key: str) -> float:
        """Return the seconds since an object was written, by the store's clock and ours; 0 if they are unknown."""
        try:
            return time.time() - float(self._call(self._fs.modified, self._path(key)).timestamp())
        except (FileNotFoundError, NotImplementedError, KeyError):
            return 0.0

    def drop_parts(self, prefix: str, *, older_than_s: float | None = None) -> None:
        """Make S3 drop the parts of interrupted uploads, which cost money and are not listed.

        Args:
            prefix: A folder.
            older_than_s: Leave uploads that began less long ago, by the store's clock and ours; None drops all.
        """
        if not self._is_s3:
            return
        bucket, _, key = self._path(prefix).partition("/")
        try:
            found = self._call(self._fs.call_s3, "list_multipart_uploads", Bucket=bucket, Prefix=f"{key}/")
            for upload in found.get("Uploads", ()):
                if older_than_s is None or time.time() - upload["Initiated"].timestamp() > older_than_s:
                    named = {"Bucket": bucket, "Key": upload["Key"], "UploadId": upload["UploadId"]}
                    self._call(self._fs.call_s3, "abort_multipart_upload", **named)
        except (FileNotFoundError, UserError):
            return  # not every server supports this, and not every role may do it; a lifecycle rule does the same

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}" if key else self._root

    def _send(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> None:
        """Make a call that writes; only the bucket can be missing then."""
        try:
            self._call(call, *arguments, **options)
        except FileNotFoundError:
            raise self._no_bucket() from None

    def _call(self, call: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """Call the store, and repeat the call after growing pauses while the network or a throttle is at fault.

        Raises:
            FileNotFoundError: There is no such object.
            FileExistsError: There is one already.
            UserError: The store refuses the call or does not answer.
        """
        import tenacity  # late: commands on a store in a folder start faster without it

        attempts = tenacity.Retrying(
            retry=tenacity.retry_if_exception(lambda error: self._permanent(error) is None),
            stop=tenacity.stop_after_attempt(ATTEMPTS),
            wait=tenacity.wait_exponential_jitter(initial=FIRST_PAUSE, max=LONGEST_PAUSE, jitter=FIRST_PAUSE),
            reraise=True,
        )
        try:
            return attempts(call, *arguments, **options)
        except Exception as error:
            permanent = self._permanent(error)
            if permanent is error:
                raise
            if permanent is not None:
                raise permanent from None
            raise UserError(
                f"no success in {ATTEMPTS} attempts ({first_line(error)})",
                self.uri,
                "check the network and the endpoint, then run the same command again; it resumes",
            ) from error

    def _permanent(self, error: BaseException) -> BaseException | None:
        """Return the error to raise if repeating the call cannot help, and None if it can."""
        code = error_code(error)
        if code in NO_BUCKET:
            return self._no_bucket()
        invalid = self._protocol in MULTIPART and isinstance(error, ValueError)
        if invalid or type(error).__name__ == "ParamValidationError":
            return UserError("the store does not accept this address", self.uri, "correct `store`")
        if isinstance(error, FileNotFoundError | FileExistsError | NotImplementedError):
            return error
        if code == "PreconditionFailed":
            return FileExistsError(code)
        if code in REFUSED or isinstance(error, PermissionError):
            return self._refused(code or type(error).__name__)
        foreign = type(error).__module__.partition(".")[0] in FOREIGN
        return None if foreign or isinstance(error, OSError) else error

    def _no_bucket(self) -> UserError:
        return UserError("there is no such bucket", self.uri, "create it, or correct `store`")

    def _refused(self, reason: str) -> UserError:
        remedy = "check the credentials in the environment and what they allow on this bucket"
        return UserError(f"access is refused ({reason})", self.uri, remedy)
