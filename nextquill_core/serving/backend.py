"""What a server asks of the place where the models are: texts, log-probabilities, and adapters by fingerprint."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from nextquill_core.errors import UserError
from nextquill_core.generation.decoding import Contrast
from nextquill_core.generation.engines import Generation, Request
from nextquill_core.records import TokenPair
from nextquill_core.writing.prompter import Preset
from storage import Artifact

if TYPE_CHECKING:
    from torch import Tensor

Logps = tuple["Tensor", "Tensor"]
"""Log-probabilities of the answer tokens with and without history, nats, (T,) each."""


class BackendError(UserError):
    """The models cannot answer, through no fault of the request; `status` is the HTTP status that says so."""

    status = 502


class ShuttingDown(BackendError):  # noqa: N818 - names the state of the server
    """The server is ending."""

    status = 503


@dataclass(frozen=True)
class Asked:
    """One text that a backend is asked for.

    Attributes:
        request: Key and prompts; its fields about adapters are not read.
        adapter: Fingerprint of the adapter; None for the base model.
        preset: How tokens are chosen, and how many at most.
        stop: The token that ends an answer.
        contrast: How the branch without history changes the logits; None for no steering.
    """

    request: Request
    adapter: str | None
    preset: Preset
    stop: int
    contrast: Contrast | None = None


class Backend(Protocol):
    """The models of a server; its methods may be called by any thread."""

    def load(self, adapter: Artifact) -> None:
        """Make an adapter available by its fingerprint, and return when it is.

        Raises:
            UserError: It cannot be loaded.
        """

    def unload(self, fingerprint: str) -> None:
        """Release an adapter that no request uses any more."""

    def generate(self, asked: Asked, send: Callable[[str], None] | None = None) -> Future[Generation]:
        """Begin to generate a text; cancelling the future ends it.

        Args:
            asked: What to generate.
            send: Receives the text part by part; None for no stream.
        """

    def score(self, adapter: str | None, pair: TokenPair) -> Future[Logps]:
        """Begin to score the answer of a pair in both branches.

        Args:
            adapter: Fingerprint of the adapter; None for the base model.
            pair: Prompts and answer.
        """

    def close(self) -> None:
        """End what is in flight and release everything."""
