"""Local copies of remote files: s3://, gs://, https://, hf:// and whatever else fsspec reads.

A file is fetched once and kept below `$NEXTQUILL_CACHE/inputs`. It is fetched again when its ETag, checksum, size or
time of modification has changed; a server that gives no more than a size cannot be asked, so its files are fetched for
every run. A copy appears under its name when all of its bytes have arrived.
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

from storage.cache import CACHE, cache_folder
from storage.errors import UserError
from storage.files import atomic_path, read_json, write_json
from storage.fingerprint import fingerprint
from storage.objects import EXTRAS, REFUSED, endpoint, error_code, shown_error
from storage.redaction import redact

logger = logging.getLogger(__name__)

SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+)://")  # two letters at least: c:// is a drive
HTTP = ("http", "https")
CHANGING = (
    "ETag", "etag", "generation", "md5Hash", "Content-MD5", "Digest", "LastModified", "Last-Modified", "last_modified",
    "mtime", "blob_id", "sha256", "VersionId",
)  # fmt: skip
STREAMS = 4  # files under way at a time
ATTEMPTS = 4  # for one file, while the network is at fault
PAUSE_S = 1.0  # before the second attempt; twice as long before each further one
LOG_EVERY_S = 15.0
CONNECT_S, READ_S = 10, 60
CREDENTIALS: Mapping[str, str] = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE, or FSSPEC_S3_ANON=true for a public bucket",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS, or FSSPEC_GS_TOKEN=anon for a public bucket",
    "hf": "set HF_TOKEN to a token that may read it",
}
INSTALLS: Mapping[str, str] = {
    "s3": "pip install 'nextquill[s3]'",
    "gs": "pip install 'nextquill[gs]'",
    "http": "pip install aiohttp",
    "https": "pip install aiohttp",
}
Wanted = Callable[[Sequence[str], Sequence[str]], bool]


def is_remote(pattern: str) -> bool:
    """Return whether this is the address of remote files, and no local path."""
    found = SCHEME.match(pattern)
    return found is not None and found[1].lower() != "file"


def fetched(address: str, wanted: Wanted) -> tuple[Path, ...]:
    """Fetch the files that an address, folder or glob names, as far as their copies are not current.

    Args:
        address: `SCHEME://…`; a glob where the server can list files, which http and https cannot.
        wanted: Says of the parts of a file's path, and of those of the glob, whether the file is wanted.

    Returns:
        The copies, sorted.

    Raises:
        UserError: There is no such file, the server cannot be reached or refuses access, a library is missing, or a
            copy cannot be written.
    """
    source = _Remote.at(address)
    found = source.files(wanted)
    copies = {path: source.copy(path) for path in found}
    stale = {path: info for path, info in found.items() if not copies[path].is_current(_version(info))}
    if stale:
        size = sum(int(info.get("size") or 0) for info in stale.values())
        amount = f"{size / 1e6:,.1f} MB" if size else "of unknown size"
        # A warning is shown also where no logging is set up, as in a command before its flow starts.
        logger.warning("fetching %d of %d files of %s (%s)", len(stale), len(found), source.shown, amount)
        meter = _Meter(size, source.shown)
        with ThreadPoolExecutor(STREAMS, thread_name_prefix="download") as pool:
            list(pool.map(lambda path: source.fetch(path, stale[path], copies[path], meter), stale))
    paths = sorted(copy.path for copy in copies.values())
    try:
        write_json(source.listing, [str(path) for path in paths])
    except OSError as error:
        raise _not_written(error, source.listing) from None
    return tuple(paths)


def known(address: str) -> tuple[Path, ...]:
    """The copies that `fetched` left of an address, without asking the server.

    Raises:
        UserError: There are none.
    """
    listing = _listing(address)
    try:
        paths = tuple(Path(path) for path in read_json(listing))
    except (OSError, TypeError, ValueError):
        paths = ()
    if not paths or not all(path.exists() for path in paths):
        raise UserError("it is not fetched yet", _without_secrets(address), "run `nextquill ingest` first")
    return paths


@dataclass(frozen=True)
class _Copy:
    """A file's copy, and beside it what its original was like."""

    path: Path

    @property
    def record(self) -> Path:
        return self.path.with_name(f".{self.path.name}.version.json")

    def is_current(self, version: Mapping[str, str]) -> bool:
        """Whether the copy is of this version of the file."""
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
            logger.info(
                "fetched %s of %s MB of %s", f"{self.done / 1e6:,.0f}", f"{self.total / 1e6:,.0f}", self.address
            )


@dataclass(frozen=True)
class _Remote:
    """The files of one address.

    Attributes:
        address: As it was given.
        scheme: Of the address, in lower case.
        fs: The fsspec file system.
        path: The address as the file system writes it.
    """

    address: str
    scheme: str
    fs: Any
    path: str

    @classmethod
    def at(cls, address: str) -> _Remote:
        import fsspec

        parts = urlsplit(address)
        scheme = parts.scheme.lower()
        if "@" in parts.netloc:
            raise UserError(
                "an address must not carry credentials", f"{scheme}://…", "leave them to the environment, or use a file"
            )
        if not parts.netloc:
            raise UserError("names no server or bucket", _without_secrets(address), f"write {scheme}://NAME/PATH")
        options: dict[str, Any] = {"use_listings_cache": False}
        if EXTRAS.get(scheme) == "s3":
            options["endpoint_url"] = endpoint() or None
            retries = {"mode": "standard", "max_attempts": 2}
            options["config_kwargs"] = {"retries": retries, "connect_timeout": CONNECT_S, "read_timeout": READ_S}
        try:
            if scheme in HTTP:
                import aiohttp

                timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=READ_S)
                options["client_kwargs"] = {"timeout": timeout, "trust_env": True}
                options["headers"] = {"Accept-Encoding": "identity"}  # a .gz stays what it is
            fs, path = fsspec.core.url_to_fs(address, **options)
        except ImportError as error:
            family = EXTRAS.get(scheme, scheme)
            remedy = INSTALLS.get(family) or (str(error).splitlines() or [""])[0]
            raise UserError(f"the library for {scheme}:// is not installed", address, remedy) from None
        except ValueError:
            raise UserError(
                f"{scheme}:// is not known", _without_secrets(address), "use s3://, gs://, https://, hf:// or a path"
            ) from None
        except Exception as error:
            raise _explained(error, address) from None
        return cls(address, scheme, fs, str(path))

    @property
    def shown(self) -> str:
        """The address for people: a query may hold a secret."""
        return _without_secrets(self.address)

    @property
    def listing(self) -> Path:
        """The file with the paths of the copies."""
        return _listing(self.address)

    def files(self, wanted: Wanted) -> dict[str, dict[str, Any]]:
        """What the server says of each file, by its path there.

        Raises:
            UserError: There is none, or the server cannot be asked.
        """
        try:
            if self.scheme in HTTP:
                if "*" in urlsplit(self.address).path:
                    raise UserError(
                        f"{self.scheme}:// has no globs: a web server cannot list files", self.shown, "name one file"
                    )
                return {self.path: dict(self.fs.info(self.path))}
            if not glob.has_magic(self.path):
                info = dict(self.fs.info(self.path))
                if info["type"] != "directory":
                    return {self.path: info}
                found = dict(self.fs.find(self.path, detail=True))
            else:
                found = dict(self.fs.glob(self.path, detail=True))
        except UserError:
            raise
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
        """Where the copy of a file is."""
        parts = urlsplit(path) if self.scheme in HTTP else None
        pieces = [parts.netloc, *unquote(parts.path).split("/")] if parts else path.split("/")
        pieces = [_as_name(piece) for piece in pieces if piece]
        if parts and len(pieces) < 2:
            raise UserError("names no file", self.shown, "name a file")
        if parts and parts.query:
            pieces.insert(-1, fingerprint(parts.query)[:12])
        server = endpoint() if EXTRAS.get(self.scheme) == "s3" else ""
        top = self.scheme + (f"-{fingerprint(server)[:8]}" if server else "")
        return _Copy(_inputs().joinpath(top, *pieces))

    def fetch(self, path: str, info: Mapping[str, Any], copy: _Copy, meter: _Meter) -> None:
        """Fetch a file, again after a pause while the network is at fault.

        Raises:
            UserError: It cannot be fetched, or the copy cannot be written.
        """
        try:
            _inputs().mkdir(parents=True, exist_ok=True, mode=0o700)  # reviews are private
            copy.path.parent.mkdir(parents=True, exist_ok=True)
            copy.record.unlink(missing_ok=True)
        except OSError as error:
            raise _not_written(error, copy.path) from None
        for attempt in range(1, ATTEMPTS + 1):
            try:
                with atomic_path(copy.path) as temporary:
                    self.fs.get_file(path, str(temporary), callback=_callback(meter))
                    size, arrived = info.get("size"), temporary.stat().st_size
                    if size is not None and arrived != int(size):
                        raise ConnectionError(f"{arrived:,} of {int(size):,} bytes arrived")
                write_json(copy.record, _version(info))
                return
            except Exception as error:
                explained = _explained(error, self._one(path))
                if attempt == ATTEMPTS or not _is_passing(error):
                    raise explained from None
            time.sleep(PAUSE_S * 2 ** (attempt - 1))

    def _one(self, path: str) -> str:
        return path if SCHEME.match(path) else f"{self.scheme}://{path}"


def _callback(meter: _Meter) -> Any:
    from fsspec.callbacks import Callback

    class Counting(Callback):  # type: ignore[misc]
        def relative_update(self, inc: int = 1) -> None:
            meter.add(inc)

    return Counting()


def _inputs() -> Path:
    return cache_folder() / "inputs"


def _listing(address: str) -> Path:
    return _inputs() / "listings" / f"{fingerprint([address, endpoint()])}.json"


def _as_name(piece: str) -> str:
    """A part of a path that the local file system takes."""
    if piece in (".", "..") or "\0" in piece or "/" in piece or len(piece.encode()) > 200:
        return f"{fingerprint(piece)[:12]}-{piece.replace(chr(0), '').replace('/', '')[-40:]}"
    return piece


def _version(info: Mapping[str, Any]) -> dict[str, str]:
    """What changes when a file changes, as far as the server says it."""
    return {name: str(info[name]) for name in ("size", *CHANGING) if info.get(name) is not None}


def _without_secrets(address: str) -> str:
    return redact(re.sub(r"\?.*", "?…", address) if address.startswith(HTTP) else address)


def _not_written(error: OSError, path: Path) -> UserError:
    return UserError(f"cannot be written ({error.strerror})", str(path), f"name a folder that can in {CACHE}")


def _chain(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in found:
        found.append(current)
        current = current.__cause__ or current.__context__
    return found


def _status(chain: Sequence[BaseException]) -> int | None:
    """The HTTP status that the server answered with."""
    for error in chain:
        status = getattr(error, "status", None) or getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
    return None


def _unreachable(chain: Sequence[BaseException]) -> BaseException | None:
    """The error by which no connection came about."""
    names = ("gaierror", "ClientConnector", "EndpointConnectionError", "ConnectTimeout", "ConnectError", "ProxyError")
    found = [error for error in chain if any(type(error).__name__.startswith(name) for name in names)]
    refused = [error for error in chain if isinstance(error, ConnectionRefusedError)]
    return (refused or found[-1:] or [None])[0]


def _explained(error: BaseException, address: str) -> UserError:
    """The fault as one line with its remedy."""
    if isinstance(error, UserError):
        return error
    shown, scheme = _without_secrets(address), urlsplit(address).scheme.lower()
    family = EXTRAS.get(scheme, scheme)
    chain = _chain(error)
    code, status = error_code(error), _status(chain)
    said = re.sub(r"(https?://\S+?)\?[^\s'\")]*", r"\1?…", shown_error(chain[-1]))
    if code in ("NoSuchBucket", "InvalidBucketName"):
        return UserError("there is no such bucket", shown, "correct the address")
    if unreachable := _unreachable(chain):
        return UserError(
            f"the server cannot be reached ({shown_error(unreachable)})", shown, "check the address and the network"
        )
    if code in REFUSED or status in (401, 403) or any(isinstance(each, PermissionError) for each in chain):
        reason = code or (str(status) if status else type(error).__name__)
        remedy = CREDENTIALS.get(family, "check what the server asks for; an address that was signed may have expired")
        return UserError(f"access is refused ({reason})", shown, remedy)
    if status in (404, 410) or (isinstance(error, FileNotFoundError) and status is None and len(chain) == 1):
        return UserError("no such file", shown, "correct the address")
    if isinstance(error, OSError) and error.errno and error.filename:
        return UserError(f"the copy cannot be written ({error.strerror})", str(error.filename), f"set {CACHE}")
    if any(isinstance(each, TimeoutError) for each in chain):
        return UserError("the server does not answer in time", shown, "check the address and the network")
    if scheme not in HTTP and any("NotFound" in type(each).__name__ for each in chain):
        return UserError("no such file", shown, "correct the address")
    return UserError(f"cannot be fetched ({said})", shown, "check the address and the network, and run it again")


def _is_passing(error: BaseException) -> bool:
    """Whether another attempt may succeed: a broken connection, a throttle, a server's own fault."""
    chain = _chain(error)
    if isinstance(error, UserError) or _unreachable(chain) or error_code(error) in REFUSED:
        return False
    status = _status(chain)
    if status is not None:
        return status >= 500 or status in (408, 429)
    foreign = ("aiohttp", "botocore", "aiobotocore", "httpx", "httpx2", "requests", "urllib3", "gcsfs")
    return any(
        isinstance(each, ConnectionError | TimeoutError) or type(each).__module__.partition(".")[0] in foreign
        for each in chain
    )
