"""The engine that asks a chat model behind an OpenAI-compatible API, such as a judge, in text and not in token ids."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NotRequired

from typing_extensions import TypedDict

from nextquill_core.config.evaluate import EndpointConfig
from nextquill_core.errors import UserError
from nextquill_core.generation.decoding import GREEDY
from nextquill_core.generation.engines import CUT, STOPPED, Generation, Request, finished_text, request_seed
from nextquill_core.generation.openai_engine import (
    OpenAIEngine,
    RejectedError,
    Reply,
    TransientServerError,
    checked_body,
)
from nextquill_core.generation.streaming import TextParts

if TYPE_CHECKING:
    from openai import OpenAI


@dataclass(frozen=True, slots=True)
class ChatRequest(Request):
    """One question to a chat model; it has no token ids, since the model's tokenizer is unknown.

    Attributes:
        text: The question, as the user's turn.
        temperature: Temperature of the answer; 0 for the likeliest tokens.
    """

    text: str = ""
    temperature: float = 0.0


class _Message(TypedDict):
    content: NotRequired[str | None]


class _Choice(TypedDict):
    finish_reason: str | None
    message: _Message


class _Usage(TypedDict):
    prompt_tokens: NotRequired[int | None]
    completion_tokens: NotRequired[int | None]


class _ChatAnswer(TypedDict):
    """What is read of an answer."""

    choices: list[_Choice]
    usage: NotRequired[_Usage | None]


class ChatEngine(OpenAIEngine):
    """Asks through a server's `/chat/completions`: many questions at a time, repeated where the server fails.

    Args:
        settings: Address, key and limits of the server.
        model_name: The server's name of the model.
        max_tokens: Maximum number of tokens in an answer.
        seed: Seed of the run; see `Request.key`.

    Raises:
        UserError: The address is invalid, or the environment variable of the key is not set or holds no key.
    """

    path = "chat/completions"

    def __init__(self, settings: EndpointConfig, model_name: str, *, max_tokens: int, seed: int = 0) -> None:
        super().__init__(settings, model_name, None, GREEDY, max_new_tokens=max_tokens, seed=seed)

    def _attempt(self, client: OpenAI, request: Request, given_up: threading.Event, parts: TextParts | None) -> Reply:
        if not isinstance(request, ChatRequest):
            raise TypeError("a chat model is asked in text")
        started = time.perf_counter()
        try:
            with self._failures():
                raw = client.chat.completions.with_raw_response.create(
                    model=self.model_name,
                    messages=[{"role": "user", "content": request.text}],
                    temperature=request.temperature,
                    seed=request_seed(self.seed, request.key),
                    max_tokens=min(request.limit or self.max_new_tokens, self.max_new_tokens),
                    extra_headers=self.headers,
                )
        except RejectedError as rejection:
            raise UserError(f"the server rejects the request ({rejection})", self.address) from None
        answer: _ChatAnswer = checked_body(raw, _ChatAnswer)
        choice = next(iter(answer["choices"]), None)
        if choice is None or choice["finish_reason"] not in ("stop", CUT):
            raise TransientServerError("the answer broke off")
        text = finished_text(choice["message"].get("content") or "")
        reason = CUT if choice["finish_reason"] == CUT else STOPPED
        usage: _Usage = answer.get("usage") or {}
        generation = Generation(text, usage.get("completion_tokens") or 0, reason)
        return Reply(generation, usage.get("prompt_tokens") or 0, time.perf_counter() - started)
