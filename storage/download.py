"""Local copies of remote files: s3://, gs://, https://, hf:// and every other protocol that fsspec reads.

A file is downloaded once and kept below `$NEXTQUILL_CACHE/inputs`. It is downloaded again when its ETag, checksum, size
or modification time has changed. A server that reports at most a size cannot be asked for changes, so its files are
downloaded for every run. A copy gets its name when all of its bytes have arrived.
"""

from __future__ import annotations

import glob
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from humanize import naturalsize
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential

from storage.errors import NO_SPACE, UserError
from storage.file_systems import (
    CACHE,
    EXTRAS,
    HTTP,
    NO_BUCKET,
    REFUSED,
    cache_folder,
    connection_error,
    endpoint,
    error_chain,
    error_code,
    first_line,
    http_status,
    open_file_system,
)
from storage.files import atomic_path, read_json, write_json
from storage.fingerprint import fingerprint
from storage.redaction import redact

logger = logging.getLogger(__name__)

PROTOCOL = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+)://")
"""Two letters at least, because c:// is a drive."""
VERSION_FIELDS = (
    "size", "ETag", "etag", "generation", "md5Hash", "Content-MD5", "Digest", "LastModified", "Last-Modified",
    "last_modified", "mtime", "blob_id", "sha256", "VersionId",
)  # fmt: skip
"""What servers report of a file that changes when the file changes."""
STREAMS = 4
"""Files downloaded at a time."""
ATTEMPTS = 4
PAUSE_S = 1.0
"""Seconds before the second attempt; the pause doubles each time."""
LOG_EVERY_S = 15.0
CREDENTIALS: Mapping[str, str] = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE, or FSSPEC_S3_ANON=true for a public bucket",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS, or FSSPEC_GS_TOKEN=anon for a public bucket",
    "hf": "set HF_TOKEN to a token with access to it",
}
CLIENTS = ("aiohttp", "botocore", "aiobotocore", "httpx", "httpx2", "requests", "urllib3", "gcsfs")
"""Libraries whose errors mean a broken connection, unless the server has answered."""
Wanted = Callable[[Sequence[str], Sequence[str]], bool]


def is_remote(pattern: str) -> bool:
    """Return whether this is the address of remote files and not a local path."""
    found = PROTOCOL.match(pattern)
    return found is not None and found[1].lower() != "file"


def fetch(address: str, wanted: Wanted) -> tuple[Path, ...]:
    """Download the files that an address, folder or glob names, unless their copies are up to date.

    Args:
        address: `PROTOCOL://…`; a glob only where the server can list files, which http and https cannot.
        wanted: Tells whether a file is wanted, from the parts of its path and the parts of the glob.

    Returns:
        The copies, sorted.

    Raises:
        UserError: There is no such file, the server cannot be reached or refuses access, a library is missing, or a
            copy cannot be written.
    """
    source = _Source.at(address)
    found = source.files(wanted)
    copies = {path: source.copy(path) for path in found}
    stale = {path: info for path, info in found.items() if not copies[path].is_current(_version(info))}
    if stale:
        size = sum(int(info.get("size") or 0) for info in stale.values())
        amount = naturalsize(size) if size else "unknown size"
        # A warning is shown even before logging is set up, as in a command before its flow starts.
        logger.warning("downloading %d of %d files of %s (%s)", len(stale), len(found), source.shown, amount)
        meter = _Meter(size, source.shown)
        with ThreadPoolExecutor(STREAMS, thread_name_prefix="download") as pool:
            list(pool.map(lambda path: source.download(path, stale[path], copies[path], meter), stale))
    paths = sorted(copy.path for copy in copies.values())
    listing = _listing(address)
    try:
        write_json(listing, [str(path) for path in paths])
    except OSError as error:
        raise _not_written(error, listing) from None
    return tuple(paths)


def local_copies(address: str, remedy: str) -> tuple[Path, ...]:
    """Return the copies that `fetch` made of the files of an address, without asking the server.

    Args:
        address: As `fetch` took it.
        remedy: How the user gets the files downloaded.

    Raises:
        UserError: There are none.
    """
    try:
        paths = tuple(Path(path) for path in read_json(_listing(address)))
    except (OSError, TypeError, ValueError):
        paths = ()
    if not paths or not all(path.exists() for path in paths):
        raise UserError("it is not downloaded yet", _without_secrets(address), remedy)
    return paths


@dataclass(frozen=True)
class _Copy:
    """The local copy of a file; the version of the original is recorded beside it."""

    path: Path

    @property
    def record(self) -> Path:
        return self.path.with_name(f".{self.path.name}.version.json")

    def is_current(self, version: Mapping[str, str]) -> bool:
        """Return whether the copy is of this version of the file."""
        if not version.keys() - {"size"}:
            return False
        try:
            return self.path.exists() and bool(read_json(self.record) == version)
        except (OSError, ValueError):
            return False


@dataclass
class _Meter:
    """Logs how much of a download has arrived."""

    total: int
    address: str
    done: int = 0
    logged_at: float = 0.0

    def add(self, size: int) -> None:
        self.done += size
        now = time.monotonic()
        self.logged_at = self.logged_at or now
        if now - self.logged_at >= LOG_EVERY_S:
            self.logged_at = now
            logger.info("downloaded %s of %s of %s", naturalsize(self.done), naturalsize(self.total), self.address)


@dataclass(frozen=True)
class _Source:
    """The remote files of one address.

    Attributes:
        address: As the user gave it.
        protocol: Protocol of the address, in lower case.
        fs: The fsspec file system.
        path: The address as the file system writes it.
    """

    address: str
    protocol: str
    fs: Any
    path: str

    @classmethod
    def at(cls, address: str) -> _Source:
        parts, shown = urlsplit(address), _without_secrets(address)
        protocol = parts.scheme.lower()
        if "@" in parts.netloc:
            remedy = "leave them to the environment, or use a file"
            raise UserError("an address must not carry credentials", f"{protocol}://…", remedy)
        if not parts.netloc:
            raise UserError("the address names no server or bucket", shown, f"write {protocol}://NAME/PATH")
        try:
            fs, path = open_file_system(address, shown, "use s3://, gs://, https://, hf:// or a path")
        except Exception as error:
            raise _explained(error, address) from None
        return cls(address, protocol, fs, path)

    @property
    def shown(self) -> str:
        """The address for messages, because a query may hold a secret."""
        return _without_secrets(self.address)

    def files(self, wanted: Wanted) -> dict[str, dict[str, Any]]:
        """Return what the server reports of each file, by its path there.

        Raises:
            UserError: There is none, or the server cannot be asked.
        """
        try:
            if self.protocol in HTTP:
                if "*" in urlsplit(self.address).path:
                    what = f"{self.protocol}:// has no globs, because a web server cannot list files"
                    raise UserError(what, self.shown, "name one file")
                return {self.path: dict(self.fs.info(self.path))}
            if not glob.has_magic(self.path):
                info = dict(self.fs.info(self.path))
                if info["type"] != "directory":
                    return {self.path: info}
                found = dict(self.fs.find(self.path, detail=True))
            else:
                found = dict(self.fs.glob(self.path, detail=True))
        except Exception as error:
            raise _explained(error, self.address) from None
        parts = self.path.strip("/").split("/")
        base = len(self.path.strip("/")) if not glob.has_magic(self.path) else 0
        chosen = {
            path: info
            for path, info in found.items()
            if info["type"] != "directory" and wanted(path.strip("/")[base:].strip("/").split("/"), parts)
        }
        if not chosen:
            hidden = f" but {len(found):,} folders, or files whose names begin with . or _" if found else ""
            raise UserError(f"no file matches{hidden}", self.shown, "correct the address")
        return chosen

    def copy(self, path: str) -> _Copy:
        """Return the place of the copy of a file."""
        parts = urlsplit(path) if self.protocol in HTTP else None
        pieces = [parts.netloc, *unquote(parts.path).split("/")] if parts else path.split("/")
        pieces = [_file_name(piece) for piece in pieces if piece]
        if parts and len(pieces) < 2:
            raise UserError("the address names no file", self.shown, "name a file")
        if parts and parts.query:
            pieces.insert(-1, fingerprint(parts.query)[:12])
        server = endpoint() if EXTRAS.get(self.protocol) == "s3" else ""
        top = self.protocol + (f"-{fingerprint(server)[:8]}" if server else "")
        return _Copy(_inputs().joinpath(top, *pieces))

    def download(self, path: str, info: Mapping[str, Any], copy: _Copy, meter: _Meter) -> None:
        """Download a file, and repeat it after growing pauses while the network is at fault.

        Args:
            path: The file's path on the server.
            info: What the server reports of it.
            copy: Where it goes.
            meter: Counts the bytes.

        Raises:
            UserError: It cannot be downloaded, or the copy cannot be written.
        """
        try:
            _inputs().mkdir(parents=True, exist_ok=True, mode=0o700)  # the data may be private
            copy.path.parent.mkdir(parents=True, exist_ok=True)
            copy.record.unlink(missing_ok=True)
        except OSError as error:
            raise _not_written(error, copy.path) from None
        attempts = Retrying(
            retry=retry_if_exception(_is_temporary),
            stop=stop_after_attempt(ATTEMPTS),
            wait=wait_exponential(multiplier=PAUSE_S),
            reraise=True,
        )
        try:
            attempts(self._download_once, path, info, copy, meter)
        except Exception as error:
            shown = path if PROTOCOL.match(path) else f"{self.protocol}://{path}"
            raise _explained(error, shown) from None

    def _download_once(self, path: str, info: Mapping[str, Any], copy: _Copy, meter: _Meter) -> None:
        with atomic_path(copy.path) as temporary:
            self.fs.get_file(path, str(temporary), callback=_callback(meter))
            size, arrived = info.get("size"), temporary.stat().st_size
            if size is not None and arrived != int(size):
                raise ConnectionError(f"{arrived:,} of {int(size):,} bytes arrived")
        write_json(copy.record, _version(info))


def _callback(meter: _Meter) -> Any:
    from fsspec.callbacks import Callback

    class Counting(Callback):  # type: ignore[misc]
        def relative_update(self, inc: int = 1) -> None:
            meter.add(inc)

    return Counting()


def _inputs() -> Path:
    return cache_folder() / "inputs"


def _listing(address: str) -> Path:
    """The file with the paths of the copies that were made of an address."""
    return _inputs() / "listings" / f"{fingerprint([address, endpoint()])}.json"


def _file_name(piece: str) -> str:
    """Turn a part of a remote path into a name that the local file system accepts."""
    if piece in (".", "..") or "\0" in piece or "/" in piece or len(piece.encode()) > 200:
        return f"{fingerprint(piece)[:12]}-{piece.replace(chr(0), '').replace('/', '')[-40:]}"
    return piece


def _version(info: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(info[name]) for name in VERSION_FIELDS if info.get(name) is not None}


def _without_secrets(address: str) -> str:
    return redact(re.sub(r"\?.*", "?…", address) if address.startswith(HTTP) else address)


def _not_written(error: OSError, path: Path) -> UserError:
    return UserError(f"cannot be written ({error.strerror})", str(path), f"set {CACHE} to a writable folder")


def _explained(error: BaseException, address: str) -> UserError:
    """Return an error of a download as one line with its remedy."""
    if isinstance(error, UserError):
        return error
    shown, protocol = _without_secrets(address), urlsplit(address).scheme.lower()
    chain = error_chain(error)
    code, status = error_code(error), http_status(chain)
    if code in NO_BUCKET:
        return UserError("there is no such bucket", shown, "correct the address")
    if unreachable := connection_error(chain):
        what = f"the server cannot be reached ({first_line(unreachable)})"
        return UserError(what, shown, "check the address and the network")
    if code in REFUSED or status in (401, 403) or any(isinstance(each, PermissionError) for each in chain):
        reason = code or (str(status) if status else type(error).__name__)
        otherwise = "check what the server asks for; a signed address may have expired"
        return UserError(
            f"access is refused ({reason})", shown, CREDENTIALS.get(EXTRAS.get(protocol, protocol), otherwise)
        )
    if status in (404, 410) or (isinstance(error, FileNotFoundError) and status is None and len(chain) == 1):
        return UserError("there is no such file", shown, "correct the address")
    if isinstance(error, OSError) and (error.errno in NO_SPACE or (error.errno and error.filename)):
        return _not_written(error, Path(error.filename or _inputs()))
    if any(isinstance(each, TimeoutError) for each in chain):
        return UserError("the server does not answer in time", shown, "check the address and the network")
    if protocol not in HTTP and any("NotFound" in type(each).__name__ for each in chain):
        return UserError("there is no such file", shown, "correct the address")
    message = re.sub(r"(https?://\S+?)\?[^\s'\")]*", r"\1?…", first_line(chain[-1]))
    return UserError(f"cannot be downloaded ({message})", shown, "check the address and the network, and run it again")


def _is_temporary(error: BaseException) -> bool:
    """Return whether another attempt may succeed: a broken connection, a throttle, or a fault of the server."""
    chain = error_chain(error)
    if isinstance(error, UserError) or connection_error(chain) or error_code(error) in REFUSED:
        return False
    status = http_status(chain)
    if status is not None:
        return status >= 500 or status in (408, 429)
    return any(
        isinstance(each, ConnectionError | TimeoutError) or type(each).__module__.partition(".")[0] in CLIENTS
        for each in chain
    )
