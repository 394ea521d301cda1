"""Settings of the server, which are options of `nextquill serve`."""

from __future__ import annotations

from dataclasses import dataclass

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class ServeSettings:
    """How the server listens, and its limits.

    Attributes:
        host: Address at which it listens.
        port: Port; 0 for any free one.
        most_requests: Number of requests that are answered or wait at a time; further ones are refused (429).
        most_bytes: Size of a request's body; a larger one is refused (413).
        drain_s: Seconds that requests in flight have to end after the first signal.
        poll_s: Seconds between two looks for another accepted adapter.
        page: Whether the page at `/` and its lists of users and items are served; None for yes on loopback alone.
        key: Key that requests must have; None for no key.
        log_texts: Whether the log has prompts and texts.
    """

    host: str = "127.0.0.1"
    port: int = 8081
    most_requests: int = 256
    most_bytes: int = 1_000_000
    drain_s: float = 5.0
    poll_s: float = 5.0
    page: bool | None = None
    key: str | None = None
    log_texts: bool = False

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine reaches it."""
        return self.host in LOOPBACK

    @property
    def with_page(self) -> bool:
        """Whether the page is served."""
        return self.on_loopback if self.page is None else self.page
