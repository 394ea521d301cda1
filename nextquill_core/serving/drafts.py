"""`POST /v1/drafts`: a review for one person, whole or part by part."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.sse import format_sse_event
from pydantic import BaseModel, Field, model_validator

from nextquill_core.config.base import Positive
from nextquill_core.serving.errors import ErrorReply, as_api_error, error_body
from nextquill_core.serving.service import Order, Pending, Service, Written, unless_disconnected
from nextquill_core.writing.prompter import SANE
from nextquill_core.writing.requests import WriteRequest

MOST_REVIEWS = 500
"""Number of past reviews in one request."""
LONGEST = {"text": 20_000, "description": 20_000}
LONGEST_NAME = 1000
"""Characters of a text; of a title, an id and any other text."""
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorReply, "description": about}
    for status, about in {
        400: "the body cannot be read",
        404: "no such model",
        413: "the body is too large",
        422: "the request cannot be used",
        429: "too many other requests",
        503: "nothing is served at the moment",
    }.items()
}


class DraftForm(WriteRequest):
    """One review to write, and how."""

    method: str | None = None
    """name of a method, or of its model; without one, the server's default method writes"""
    decoding: str = SANE
    """decoding preset: sane, paper, greedy or sampled"""
    strength: Annotated[float, Field(ge=-1, le=5)] | None = None
    """steers the text towards what the history makes likelier: 0 as the model writes, −1 as without history"""
    explain: bool = False
    """whether to score the text, to say how much likelier the history made each token"""
    seed: int | None = None
    """makes another draw under a preset that samples"""
    max_tokens: Positive | None = None
    """maximum number of tokens, at most that of the preset"""
    stream: bool = False
    """whether the text comes part by part as server-sent events: `text` for each part, then `draft` or `error`"""

    @model_validator(mode="before")
    @classmethod
    def _within_limits(cls, values: Any) -> Any:
        for fault in _too_long(values, ""):
            raise ValueError(fault)
        return values

    @property
    def order(self) -> Order:
        """What the service is asked."""
        return Order(self, self.method, self.decoding, self.strength, self.explain, self.seed, self.max_tokens)


class ItemReply(BaseModel):
    """An item."""

    title: str
    description: str


class ReviewReply(BaseModel):
    """A past review as the prompt shows it; a text that was cut to fit is cut here too."""

    item: ItemReply
    rating: float | None
    title: str
    text: str
    timestamp_ms: int


class TokenReply(BaseModel):
    """A token of the text."""

    text: str
    token_id: int
    logp_with: float
    """log-probability with the history, nats"""
    logp_without: float
    """log-probability without the history, nats"""
    effect: float
    """difference of the two probabilities"""


class UnitReply(BaseModel):
    """A piece of the text as the page colours it."""

    text: str
    style: str
    preferred: bool
    title: str


class DraftReply(BaseModel):
    """A draft."""

    text: str
    n_tokens: int
    prompt_tokens: int
    finish_reason: str
    """stop: the model ended it; length: the limit did"""
    method: str
    model: str
    """name of the model that wrote it: the adapter's fingerprint, or the method without an adapter"""
    adapter: str | None
    """fingerprint of the adapter; null for the base model"""
    decoding: str
    sampler: str
    strength: float | None
    history_shown: list[ReviewReply]
    """the past reviews in the prompt, oldest first"""
    note: str
    """what a reader should know about the history, such as that the user is unknown; empty for nothing"""
    request: str | None
    """the `id` of the request"""
    tokens: list[TokenReply] = []
    """the tokens of the text; empty unless `explain` asks for them"""
    likelier_words: list[tuple[str, float]] = []
    """the words that the history made likelier, with their effect, the largest first"""
    units: list[UnitReply] = []
    """the pieces of the text with their colours"""

    @classmethod
    def of(cls, written: Written) -> DraftReply:
        """Return the form of a draft."""
        values = vars(written.draft) | {
            "prompt_tokens": written.prompt_tokens,
            "model": written.served.model_id,
            "strength": written.strength,
            "likelier_words": written.likelier,
            "units": written.units,
        }
        return cls.model_validate(values, from_attributes=True)


def routes(service: Service, *, log_texts: bool) -> APIRouter:
    """Return the route.

    Args:
        service: Writes the drafts.
        log_texts: Whether the log has prompts and texts.
    """
    router = APIRouter()

    @router.post("/v1/drafts", response_model=DraftReply, responses=ERRORS, summary="Write a review for one person")
    async def drafts(form: DraftForm, request: Request) -> Any:
        pending = await service.prepare(form.order)
        if form.stream:
            return EventStream(_events(pending, request, log_texts=log_texts), pending.close)
        written = await whole_draft(pending, request, log_texts=log_texts)
        return JSONResponse(DraftReply.of(written).model_dump())

    return router


async def whole_draft(pending: Pending, request: Request, *, log_texts: bool) -> Written:
    """Return the finished draft of a request, which is given up if the client leaves.

    Args:
        pending: The draft, which is closed.
        request: The request.
        log_texts: Whether the log has prompts and texts.
    """
    try:
        written = await unless_disconnected(request, pending.answer())
    finally:
        pending.close()
    note(request, written, pending, log_texts=log_texts)
    return written


async def _events(pending: Pending, request: Request, *, log_texts: bool) -> AsyncIterator[bytes]:
    async for part in parts_of(pending):
        if isinstance(part, str):
            yield event({"text": part}, "text")
        elif isinstance(part, Written):
            note(request, part, pending, log_texts=log_texts)
            yield event(DraftReply.of(part).model_dump(), "draft")
        else:
            found = as_api_error(part)
            yield event(error_body(found.status, str(found), found.code), "error")


async def parts_of(pending: Pending) -> AsyncIterator[str | Written | Exception]:
    """Yield the parts of a text while it is written, then the draft, or what went wrong.

    Args:
        pending: The draft, which is given up if the iteration is.
    """
    parts: asyncio.Queue[str | None] = asyncio.Queue()
    writing = asyncio.ensure_future(pending.answer(parts.put_nowait))
    writing.add_done_callback(lambda _: parts.put_nowait(None))
    try:
        while (part := await parts.get()) is not None:
            yield part
        try:
            yield writing.result()
        except Exception as error:
            yield error
    finally:
        writing.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await writing


class EventStream(StreamingResponse):
    """A stream of server-sent events that releases what it uses, however it ends.

    Args:
        events: The events.
        close: Called at the end.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], close: Callable[[], None]) -> None:
        super().__init__(events, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._close = close

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send the events; the arguments are those of any ASGI app."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._close()


def event(data: Mapping[str, Any], kind: str | None = None) -> bytes:
    """Return a server-sent event.

    Args:
        data: Its data, sent as JSON.
        kind: Its type; None for a plain message.
    """
    return format_sse_event(data_str=json.dumps(data, ensure_ascii=False), event=kind)


def note(request: Request, written: Written, pending: Pending, *, log_texts: bool) -> None:
    """Add the facts of a draft to the request's line in the log.

    Args:
        request: The request.
        written: The draft.
        pending: The draft with its prompt.
        log_texts: Whether prompt and text are among the facts.
    """
    draft = written.draft
    facts: dict[str, Any] = {
        "model": written.served.model_id,
        "decoding": draft.decoding,
        "prompt_tokens": written.prompt_tokens,
        "new_tokens": draft.n_tokens,
        "reviews_shown": len(draft.history_shown),
    }
    if log_texts:
        tokenizer = written.served.prompter.encoder.tokenizer
        facts |= {"prompt": tokenizer.decode(pending.prepared.pair.factual), "text": draft.text}
    request.state.log.update(facts)


def _too_long(values: Any, name: str) -> Iterator[str]:
    """Yield what is longer than a request may be, at any depth of its JSON."""
    if isinstance(values, Mapping):
        for key, value in values.items():
            yield from _too_long(value, str(key))
    elif isinstance(values, list):
        if len(values) > MOST_REVIEWS:
            yield f"{name} has {len(values):,} entries; send the newest {MOST_REVIEWS}"
        for value in values[:MOST_REVIEWS]:
            yield from _too_long(value, name)
    elif isinstance(values, str) and len(values) > (most := LONGEST.get(name, LONGEST_NAME)):
        yield f"{name} has {len(values):,} characters; send at most {most:,}"
