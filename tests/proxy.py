"""A proxy in front of an S3 server on loopback, which records requests and simulates the faults of a network."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
NOTHING_LISTED = (
    b'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
    b"<KeyCount>0</KeyCount><MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated></ListBucketResult>"
)


@dataclass(frozen=True)
class Request:
    method: str
    key: str
    query: dict[str, list[str]]
    size: int

    @property
    def listing(self) -> bool:
        return self.method == "GET" and ("list-type" in self.query or "prefix" in self.query)


@dataclass
class Proxy:
    """A proxy that runs for the duration of a `with` block.

    Attributes:
        server: URL of the server.
        fault: Names the fault of each request:
            None, no fault;
            "503", the request is throttled;
            "cut", the connection breaks in the middle of the request's body;
            "lost", the server executes the request, and the connection breaks before the answer;
            "half", the connection breaks in the middle of the answer;
            "silent", the server executes the request, and no answer is sent until `gate` is set;
            "deaf", as "silent", but the request never reaches the server;
            "unlisted", a listing is answered as if there were no objects yet;
            "stall", the request waits until `gate` is set, and then passes.
        seen: Requests so far.
        stalled: Set when a request waits for `gate`.
        gate: Set by a test to let waiting requests pass.
    """

    server: str
    fault: Callable[[Request], str | None] = lambda request: None
    seen: list[Request] = field(default_factory=list)
    stalled: threading.Event = field(default_factory=threading.Event)
    gate: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Proxy:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # an answer is sent in two parts, and the second must not wait for the first

            def log_message(self, *arguments: object) -> None:
                pass

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except OSError:
                    self.close_connection = True

            def pass_on(self) -> None:
                parts = urlsplit(self.path)
                length = int(self.headers.get("Content-Length", 0))
                request = Request(
                    self.command,
                    unquote(parts.path).strip("/").partition("/")[2],
                    parse_qs(parts.query, keep_blank_values=True),
                    length,
                )
                fault = proxy.fault(request)
                proxy.seen.append(request)
                if fault == "cut":
                    self.rfile.read(length // 2)
                    self.drop()
                    return
                body = self.rfile.read(length)
                if fault == "503":
                    self.answer(503, SLOW_DOWN, {"Content-Type": "application/xml"})
                    return
                if fault == "unlisted":
                    self.answer(200, NOTHING_LISTED, {"Content-Type": "application/xml"})
                    return
                if fault == "stall":
                    proxy.stalled.set()
                    proxy.gate.wait(60)
                if fault != "deaf":
                    status, headers, value = self.forward(body)
                if fault in ("deaf", "silent"):
                    proxy.gate.wait(60)
                if fault == "half":
                    self.answer(status, value[: len(value) // 2], {"Content-Length": str(len(value))} | headers)
                if fault in ("deaf", "silent", "lost", "half"):
                    self.drop()
                else:
                    self.answer(status, value, headers)

            def drop(self) -> None:
                self.close_connection = True
                self.connection.close()

            def forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
                there = http.client.HTTPConnection(urlsplit(proxy.server).netloc, timeout=60)
                headers = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
                there.request(self.command, self.path, body, headers)
                answer = there.getresponse()
                value = answer.read()
                kept = {name: value for name, value in answer.getheaders() if name.lower() not in OWN}
                if self.command == "HEAD":
                    kept["Content-Length"] = answer.getheader("Content-Length", "0")
                there.close()
                return answer.status, kept, value

            def answer(self, status: int, value: bytes, headers: dict[str, str]) -> None:
                self.send_response_only(status)
                for name, text in headers.items():
                    self.send_header(name, text)
                if "Content-Length" not in headers:
                    self.send_header("Content-Length", str(len(value)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(value)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = pass_on

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *arguments: object) -> None:
                pass  # clients that were killed, connections that were cut

        self._http = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.gate.set()
        self._http.shutdown()
        self._http.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def puts(self, ending: str) -> int:
        """Return how often an object was put whose key has this ending."""
        return sum(request.method == "PUT" and request.key.endswith(ending) for request in self.seen)


OWN = {"content-length", "connection", "transfer-encoding"}


class Times:
    """A fault of the first `count` requests that match."""

    def __init__(self, fault: str, count: int, match: Callable[[Request], bool]) -> None:
        self.fault, self.left, self.match, self.lock = fault, count, match, threading.Lock()

    def __call__(self, request: Request) -> str | None:
        with self.lock:
            if self.left and self.match(request):
                self.left -= 1
                return self.fault
        return None
