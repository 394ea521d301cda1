"""Fetching a category, against a local server that speaks as much of the hub's protocol as downloads need."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import pty
import random
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest

pytestmark = pytest.mark.process

COMMIT = "a" * 40
PREFIX = "/datasets/McAuley-Lab/Amazon-Reviews-2023/resolve/{}/raw/"
TREE = "/api/datasets/McAuley-Lab/Amazon-Reviews-2023/tree/main/raw/"
MIB = 1 << 20
BIG = random.Random(5).randbytes(24 * MIB)  # the client hands on 10 MiB at a time: two such pieces and a rest
FILES = {
    "review_categories/Small.jsonl": b'{"rating": 5.0}\n',
    "meta_categories/meta_Small.jsonl": b'{"title": "t"}\n',
    "review_categories/Big.jsonl": BIG,
}


class Hub(ThreadingHTTPServer):
    """Serves `FILES`; `cuts` are the bytes after which the next answers break off, `stall` makes them hang instead."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.cuts: list[int] = []
        self.stall = False
        self.ranges: list[str | None] = []
        self.sent = 0
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def stop(self) -> None:
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        path = unquote(self.path)
        if path.startswith(TREE):
            self.list_folder(path.removeprefix(TREE).partition("?")[0])
        else:
            self.answer(with_body=True)

    def list_folder(self, folder: str) -> None:
        found = [{"type": "file", "path": f"raw/{name}", "size": len(data), "oid": "c" * 40}
                 for name, data in FILES.items() if name.startswith(f"{folder}/")]  # fmt: skip
        body = json.dumps(found or {"error": "not found"}).encode()
        self.send_response(200 if found else 404)
        if not found:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def answer(self, with_body: bool) -> None:
        begins = (PREFIX.format("main"), PREFIX.format(COMMIT), "/storage/")
        name = next((self.path.removeprefix(begin) for begin in begins if self.path.startswith(begin)), "")
        data = FILES.get(name)
        if data is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("X-Error-Message", "Entry not found")
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        digest = hashlib.sha256(data).hexdigest()
        if len(data) > MIB and not self.path.startswith("/storage/"):  # large files lie elsewhere, and in another form
            self.send_response(302)
            self.send_header("Location", f"{self.server.url}/storage/{name}")
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("X-Linked-Size", str(len(data)))
            self.send_header("X-Linked-Etag", f'"{digest}"')
            self.send_header("X-Xet-Hash", "b" * 64)
            self.send_header("Link", f'<{self.server.url}/api/token>; rel="xet-auth"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        asked = self.headers["Range"]
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.send_header("ETag", f'"{digest}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if not with_body:
            return
        self.server.ranges.append(asked)
        rest = data[start:]
        cut = self.server.cuts.pop(0) if self.server.cuts else len(rest)
        for place in range(0, min(cut, len(rest)), MIB):
            piece = rest[place : min(place + MIB, cut)]
            try:
                self.wfile.write(piece)
            except OSError:
                return
            self.server.sent += len(piece)
        if cut < len(rest):
            if self.server.stall:
                time.sleep(60)
            self.close_connection = True


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    yield server
    server.stop()


CODE = """
import sys
from nextquill_core.errors import DataError
from nextquill_core.ingest.sources import hub, source
category, part, fetch = sys.argv[1:]
hub.PAUSES = (0.1,) * 2
try:
    print(*source("amazon-2023").fetched(category, part, fetch == "fetch"))
except DataError as error:
    sys.exit(f"DataError {error}")
"""


def command(*arguments: str, code: str = CODE) -> list[str]:
    return [sys.executable, "-c", code, *arguments]


def surroundings(hub: Hub, cache: Path) -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    return ours | {"HF_ENDPOINT": hub.url, "HF_HOME": str(cache), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}


def paths(hub: Hub, cache: Path, command: list[str]) -> list[Path]:
    """Return the paths that a command prints, one a line."""
    environment = surroundings(hub, cache)
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip())
    return [Path(line) for line in done.stdout.splitlines()]


def fetched(hub: Hub, cache: Path, category: str, part: str = "reviews", *, fetch: bool = True) -> Path:
    (path,) = paths(hub, cache, command(category, part, "fetch" if fetch else "look"))
    return path


def test_a_category_is_downloaded_once_and_then_found_without_the_network(hub: Hub, tmp_path: Path) -> None:
    reviews, items = (fetched(hub, tmp_path, "Small", part) for part in ("reviews", "items"))
    assert reviews.read_bytes() == FILES["review_categories/Small.jsonl"]
    assert items.read_bytes() == FILES["meta_categories/meta_Small.jsonl"]
    asked = len(hub.ranges)
    assert fetched(hub, tmp_path, "Small") == reviews
    assert len(hub.ranges) == asked
    hub.stop()
    assert fetched(hub, tmp_path, "Small", fetch=False) == reviews
    assert fetched(hub, tmp_path, "Small") == reviews


FOLDER = """
import sys
from nextquill_core.errors import DataError
from nextquill_core.ingest.sources.fetching import fetched_from
name, how = sys.argv[1:]
repository = "McAuley-Lab/Amazon-Reviews-2023"
try:
    print(*fetched_from(repository, name, "configuration", name, "reviews", fetch=how == "fetch"), sep="\\n")
except DataError as error:
    sys.exit(f"DataError {error}")
"""


def folder(hub: Hub, cache: Path, name: str, how: str = "fetch") -> list[Path]:
    return paths(hub, cache, command(f"raw/{name}", how, code=FOLDER))


def test_a_folder_is_downloaded_whole_and_then_found_without_the_network(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(
        RuntimeError, match=r"DataError .* it is not downloaded yet; run `nextquill ingest` with a network"
    ):
        folder(hub, tmp_path, "meta_categories", "look")
    found = folder(hub, tmp_path, "review_categories")
    assert [path.name for path in found] == ["Big.jsonl", "Small.jsonl"]
    assert found[1].read_bytes() == FILES["review_categories/Small.jsonl"]
    with pytest.raises(RuntimeError, match=r"DataError .* there is no configuration `raw/none`; correct ingest"):
        folder(hub, tmp_path, "none")
    hub.stop()
    assert folder(hub, tmp_path, "review_categories", "look") == found
    assert folder(hub, tmp_path, "review_categories") == found
    with pytest.raises(RuntimeError, match=r"DataError ingest.inputs\[\].reviews .* cannot be reached"):
        folder(hub, tmp_path, "meta_categories")


def test_a_connection_that_breaks_is_resumed(hub: Hub, tmp_path: Path) -> None:
    hub.cuts = [15 * MIB]
    assert fetched(hub, tmp_path, "Big").read_bytes() == BIG
    assert hub.ranges == [None, f"bytes={10 * MIB}-"]
    assert len(BIG) < hub.sent < 1.5 * len(BIG)
    assert not list(tmp_path.rglob("*partial"))


def test_a_killed_process_leaves_its_partial_download(hub: Hub, tmp_path: Path) -> None:
    hub.cuts, hub.stall = [15 * MIB], True
    process = subprocess.Popen(
        command("Big", "reviews", "fetch"), env=surroundings(hub, tmp_path), stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while not any(path.stat().st_size == 10 * MIB for path in tmp_path.rglob("*partial")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert fetched(hub, tmp_path, "Big").read_bytes() == BIG
    assert hub.ranges[-1] == f"bytes={10 * MIB}-"


def test_a_damaged_download_is_deleted(hub: Hub, tmp_path: Path) -> None:
    blobs = tmp_path / "hub" / "datasets--McAuley-Lab--Amazon-Reviews-2023" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{hashlib.sha256(BIG).hexdigest()}.nextquill-partial").write_bytes(bytes(20 * MIB))
    with pytest.raises(RuntimeError, match="the download was damaged and was deleted: run the command again"):
        fetched(hub, tmp_path, "Big")
    assert fetched(hub, tmp_path, "Big").read_bytes() == BIG


def test_an_unknown_category_is_one_line(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as caught:
        fetched(hub, tmp_path, "Bokks")
    assert str(caught.value) == (
        "DataError hub data set McAuley-Lab/Amazon-Reviews-2023: cannot fetch raw/review_categories/Bokks.jsonl: there "
        "is no category `Bokks`; correct ingest.inputs[].category, or name local files in ingest.inputs[].reviews"
    )


def test_nothing_is_downloaded_where_it_is_not_allowed(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"^DataError .*it is not downloaded yet; run `nextquill ingest`[^\n]*$"):
        fetched(hub, tmp_path, "Small", fetch=False)
    assert not hub.ranges


def test_no_network_is_one_line(hub: Hub, tmp_path: Path) -> None:
    hub.stop()
    with pytest.raises(RuntimeError, match=r"^DataError .*cannot fetch [^\n]*; check the network[^\n]*$"):
        fetched(hub, tmp_path, "Small")


def test_a_terminal_shows_a_bar(hub: Hub, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))  # a new terminal has no columns
    process = subprocess.Popen(
        command("Big", "reviews", "fetch"), env=surroundings(hub, tmp_path), stdout=subprocess.DEVNULL, stderr=theirs
    )
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 65536):
            shown += piece
    except OSError:  # how Linux says that the other side is closed
        pass
    os.close(ours)
    assert process.wait() == 0, shown.decode()
    assert b"Big.jsonl: 100%" in shown
    assert b"25.2M/25.2M" in shown
