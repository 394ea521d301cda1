"""Copies of remote files, from a server that speaks S3's protocol and from a web server, both on loopback."""

from __future__ import annotations

import errno
import http.server
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from nextquill_core.config import RawInput
from nextquill_core.errors import DataError
from nextquill_core.ingest.sources import source
from nextquill_core.ingest.sources.base import is_data, remote_files
from storage import UserError, download
from storage.objects import Objects

pytestmark = pytest.mark.timeout(120)


def everything(names: object, pattern: object) -> bool:
    return True


@pytest.fixture
def bucket(s3: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of a prefix in an unused bucket."""
    monkeypatch.setattr(download, "PAUSE_S", 0.01)
    return s3


def put(uri: str, content: bytes) -> None:
    folder, _, name = uri.rpartition("/")
    Objects(folder).put(name, content)


class Handler(http.server.SimpleHTTPRequestHandler):
    """A web server that records requests and injects faults: `faults` maps a path to statuses, or None to break off."""

    seen: list[tuple[str, str]]
    faults: dict[str, list[int | None]]

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        self.seen.append(("GET", self.path))
        waiting = self.faults.get(self.path.partition("?")[0], [])
        if not waiting:
            return super().do_GET()
        status = waiting.pop(0)
        if status is not None:
            return self.send_error(status)
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"half")
        self.close_connection = True
        return None

    def do_HEAD(self) -> None:
        self.seen.append(("HEAD", self.path))
        waiting = self.faults.get(self.path.partition("?")[0], [])
        if waiting and waiting[0] is not None:
            self.send_error(waiting[0])
        else:
            super().do_HEAD()


class Web:
    """A running web server: the folder that it serves, its address, and its requests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.handler = type("Mine", (Handler,), {"seen": [], "faults": {}})
        made = partial(self.handler, directory=str(folder))
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), made)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    def gets(self) -> int:
        return sum(method == "GET" for method, _ in self.handler.seen)


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setenv("NEXTQUILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "PAUSE_S", 0.01)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    made = Web(tmp_path / "web")
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.mark.process
def test_a_glob_on_s3_gives_copies_in_order_that_keep_their_names(bucket: str) -> None:
    for name in ("part-1.csv", "part-0.csv", "_SUCCESS", "deep/part-2.csv", "other.txt"):
        put(f"{bucket}/{name}", name.encode())
    paths = download.fetch(f"{bucket}/part-*.csv", everything)
    assert [path.name for path in paths] == ["part-0.csv", "part-1.csv"]
    assert [path.read_bytes() for path in paths] == [b"part-0.csv", b"part-1.csv"]
    assert download.local_copies(f"{bucket}/part-*.csv", "") == paths
    folder = [path.name for path in remote_files(bucket, fetch=True)]
    assert folder == ["part-2.csv", "other.txt", "part-0.csv", "part-1.csv"]
    assert [path.name for path in remote_files(f"{bucket}/**/*.csv", fetch=True)] == [folder[0], *folder[2:]]
    assert [path.name for path in remote_files(f"{bucket}/_SUCCESS", fetch=True)] == ["_SUCCESS"]


@pytest.mark.process
def test_a_file_on_s3_is_fetched_again_only_when_it_changed(bucket: str) -> None:
    put(f"{bucket}/r.csv", b"one")
    (path,) = download.fetch(f"{bucket}/r.csv", everything)
    before = path.stat().st_mtime_ns
    assert download.fetch(f"{bucket}/r.csv", everything) == (path,)
    assert path.stat().st_mtime_ns == before
    put(f"{bucket}/r.csv", b"two")  # of the same size
    assert download.local_copies(f"{bucket}/r.csv", "")[0].read_bytes() == b"one"
    assert download.fetch(f"{bucket}/r.csv", everything)[0].read_bytes() == b"two"


@pytest.mark.process
def test_errors_on_s3_are_one_line_at_once(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    put(f"{bucket}/r.csv", b"one")
    began = time.monotonic()
    for address, message in (
        (f"{bucket}/nothing.csv", "there is no such file; correct the address"),
        (f"{bucket}/*.parquet", "no file matches; correct the address"),
        ("s3://no-such-bucket-at-all/r.csv", "there is no such (bucket|file); correct the address"),
        ("s3:///r.csv", "the address names no server or bucket"),
        ("s3://KEY:SECRET@bucket/r.csv", "must not carry credentials"),
        ("nothing-known://bucket/r.csv", "the protocol nothing-known:// is unknown"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            download.fetch(address, everything)
        assert "SECRET" not in str(caught.value)
    monkeypatch.setenv(
        "AWS_ENDPOINT_URL", "http://127.0.0.1:1"
    )  # s3fs caches clients by endpoint: no other test has it
    with pytest.raises(UserError, match="the server cannot be reached"):
        download.fetch(f"{bucket}/r.csv", everything)
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(UserError, match=r"access is refused \(NoCredentialsError\); set AWS_ACCESS_KEY_ID"):
        download.fetch(f"{bucket}/r.csv", everything)
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(("module", "address", "remedy"), [
    ("s3fs", "s3://bucket/r.csv", r"pip install 'nextquill\[s3\]'"),
    ("gcsfs", "gs://bucket/r.csv", r"pip install 'nextquill\[gs\]'"),
    ("aiohttp", "https://server/r.csv", "pip install aiohttp"),
])  # fmt: skip
def test_a_library_that_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, module: str, address: str, remedy: str
) -> None:
    import fsspec  # noqa: F401

    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, address.partition(":")[0], raising=False)
    with pytest.raises(UserError, match=f"is not installed; {remedy}"):
        download.fetch(address, everything)


def test_a_file_of_a_web_server_is_fetched_once(web: Web) -> None:
    (web.folder / "data").mkdir()
    (web.folder / "data" / "r.csv").write_bytes(b"one")
    (path,) = download.fetch(f"{web.address}/data/r.csv?token=abc", everything)
    assert (path.name, path.read_bytes()) == ("r.csv", b"one")
    assert web.gets() == 1
    download.fetch(f"{web.address}/data/r.csv?token=abc", everything)
    assert web.gets() == 1
    os.utime(web.folder / "data" / "r.csv", (1, 1))
    (web.folder / "data" / "r.csv").write_bytes(b"three")
    assert download.fetch(f"{web.address}/data/r.csv?token=abc", everything)[0].read_bytes() == b"three"


def test_a_broken_download_is_tried_again_and_leaves_nothing_half(web: Web) -> None:
    (web.folder / "r.csv").write_bytes(b"x" * 1000)
    web.handler.faults = {"/r.csv": [None, 503, None]}
    (path,) = download.fetch(f"{web.address}/r.csv", everything)
    assert path.read_bytes() == b"x" * 1000
    web.handler.faults = {"/other.csv": [None] * 9}
    (web.folder / "other.csv").write_bytes(b"y" * 1000)
    with pytest.raises(UserError, match=r"other\.csv: cannot be downloaded \(.*\); check the address and the network"):
        download.fetch(f"{web.address}/other.csv", everything)
    assert sorted(each.name for each in path.parent.iterdir()) == [".r.csv.version.json", "r.csv"]
    with pytest.raises(UserError, match="it is not downloaded yet; download it first"):
        download.local_copies(f"{web.address}/other.csv", "download it first")


def test_a_full_disk_is_named_as_such(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    def get_file(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as a write to an open file raises it

    from fsspec.implementations.http import HTTPFileSystem

    (web.folder / "r.csv").write_bytes(b"x")
    monkeypatch.setattr(HTTPFileSystem, "get_file", get_file)
    HTTPFileSystem.clear_instance_cache()  # an instance that an earlier test made keeps the library's method
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\); set NEXTQUILL_CACHE"):
        download.fetch(f"{web.address}/r.csv", everything)
    HTTPFileSystem.clear_instance_cache()


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        ("/none.csv", 404, "there is no such file; correct the address"),
        ("/r.csv?X-Amz-Signature=SECRET", 403, r"r\.csv\?…: access is refused \(403\); .*may have expired"),
        ("/r.csv", 401, r"access is refused \(401\)"),
        ("/r.csv", 410, "there is no such file"),
        ("/r.csv?key=SECRET", 500, r"cannot be downloaded \(500"),
        ("/", 404, "names no file|there is no such file"),
        ("/part-*.csv", 404, "http:// has no globs, because a web server cannot list files; name one file"),
    ],
)
def test_refusals_of_a_web_server_are_one_line(web: Web, path: str, status: int, message: str) -> None:
    web.handler.faults = {path.partition("?")[0]: [status] * 50}
    with pytest.raises(UserError, match=message) as caught:
        download.fetch(web.address + path, everything)
    assert "SECRET" not in str(caught.value)


def test_a_server_that_is_not_there_is_noticed_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    began = time.monotonic()
    for address in (f"http://127.0.0.1:{port}/r.csv", "https://nowhere.invalid/r.csv", "hf://datasets/a/b/r.csv"):
        with pytest.raises(UserError, match=r"the server cannot be reached \("):
            download.fetch(address, everything)
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(("address", "remote"), [
    ("s3://bucket/a", True), ("hf://datasets/a/b", True), ("https://a/b?c", True), ("file:///a/b", False),
    ("/a/b", False), ("a/b://c", False), ("c://windows", False),
])  # fmt: skip
def test_what_an_address_is(address: str, remote: bool) -> None:
    assert download.is_remote(address) == remote


def test_a_source_reads_remote_files_like_local_ones(web: Web, tmp_path: Path) -> None:
    (web.folder / "r.jsonl").write_text("{}\n")
    (web.folder / "empty.jsonl").write_text("")
    (tmp_path / "i.jsonl").write_text("{}\n")
    raw = RawInput(category="C", reviews=f"{web.address}/r.jsonl", items=(tmp_path / "i.jsonl").as_uri())
    reader = source("amazon-2023")
    with pytest.raises(DataError, match="it is not downloaded yet; run `nextquill ingest` first"):
        reader.find(raw, fetch=False)
    found = reader.find(raw, fetch=True)
    assert found == reader.find(raw, fetch=False)
    assert [path.read_text() for path in (*found.reviews, *found.items)] == ["{}\n", "{}\n"]
    assert web.gets() == 1
    with pytest.raises(DataError, match="the file is empty"):
        reader.find(raw.model_copy(update={"reviews": f"{web.address}/empty.jsonl"}), fetch=True)
    assert is_data(["a", "part-0.csv"], ["a", "*"])
