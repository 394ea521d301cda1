"""`/v1/chat/completions` and `/v1/models`: the server for clients of OpenAI's API.

The prompt of a draft is that of the training. So a conversation has no place in it: `user` names the person, `metadata`
the item and the review, and the one message stands for the item where `metadata` names none.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from nextquill_core.config.base import Positive
from nextquill_core.generation.decoding import GREEDY
from nextquill_core.plugins import suggestion
from nextquill_core.serving.catalog import ServedMethod, unknown_model
from nextquill_core.serving.drafts import (
    ERRORS,
    DraftForm,
    DraftReply,
    EventStream,
    event,
    note,
    parts_of,
    whole_draft,
)
from nextquill_core.serving.errors import ApiError, as_api_error, error_body
from nextquill_core.serving.service import Pending, Service, Written
from nextquill_core.writing.prompter import SANE
from nextquill_core.writing.requests import checked

KNOWN = (
    "item", "item_title", "item_description", "rating", "title", "category", "before", "example", "decoding",
    "strength", "explain",
)  # fmt: skip
"""Keys of `metadata`."""
CREATED = int(time.time())


class TextPart(BaseModel):
    """A part of a message."""

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """A message of the conversation."""

    model_config = ConfigDict(extra="ignore")

    role: str
    content: str | list[TextPart] | None = None

    @property
    def text(self) -> str:
        """The text of the message."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class StreamOptions(BaseModel):
    """How an answer is streamed."""

    model_config = ConfigDict(extra="ignore")

    include_usage: bool = False


class ChatForm(BaseModel):
    """A request of OpenAI's chat API; what the server would have to ignore is refused."""

    model_config = ConfigDict(extra="forbid")

    model: str
    """name of a model, or of its method, which always means the accepted adapter"""
    messages: Annotated[list[Message], Field(min_length=1)]
    """one message of the user: the item's title on its first line, its description below; not read if `metadata`
    names an item or an example"""
    user: str | None = None
    """id of a user of the store, whose reviews are shown"""
    metadata: dict[str, str] | None = None
    """item, or item_title and item_description; rating, title, category, before; or example; decoding, strength,
    explain: as in /v1/drafts, as text"""
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Positive | None = None
    max_completion_tokens: Positive | None = None
    temperature: float | None = None
    """0 for greedy decoding; not read if `metadata` names a preset as `decoding`"""
    seed: int | None = None
    n: Literal[1] | None = None
    store: Literal[False] | None = None

    @property
    def draft_form(self) -> DraftForm:
        """The same as a request for a draft.

        Raises:
            ApiError: Something in it has no place in a draft.
            UserError: A field is invalid.
        """
        given = self.metadata or {}
        for name in given:
            if name not in KNOWN:
                raise ApiError(422, f"`metadata.{name}`: unknown; {suggestion(name, KNOWN)}")
        for place, message in enumerate(self.messages):
            if message.role != "user":
                what = "the prompt is that of the training, with no place for this message; leave it out"
                raise ApiError(422, f"`messages.{place}`, role {message.role[:20]}: {what}")
        if len(self.messages) > 1:
            raise ApiError(422, "`messages`: a draft answers one message, not a conversation; send the last one")
        values: dict[str, Any] = {name: given[name] for name in ("title", "category", "example") if name in given}
        values |= {name: _number(given[name]) for name in ("rating", "before", "strength") if name in given}
        if "example" not in given:
            values |= {"item": self._item(given), "user": self.user}
        values |= {
            "method": self.model,
            "decoding": self._decoding(given),
            "explain": given.get("explain", "false"),
            "seed": self.seed,
            "max_tokens": self.max_completion_tokens or self.max_tokens,
        }
        return checked(DraftForm, {name: value for name, value in values.items() if value is not None}, "the request")

    def _item(self, given: Mapping[str, str]) -> str | dict[str, str]:
        if "item" in given:
            return given["item"]
        if "item_title" in given or "item_description" in given:
            return {"title": given.get("item_title", ""), "description": given.get("item_description", "")}
        title, _, description = self.messages[0].text.strip().partition("\n")
        return {"title": title.strip(), "description": " ".join(description.split())}

    def _decoding(self, given: Mapping[str, str]) -> str:
        if "decoding" in given:
            return given["decoding"]
        if self.temperature:
            what = "use 0, or name a preset in metadata.decoding"
            raise ApiError(422, f"`temperature`: a draft is decoded by a preset; {what}")
        return SANE if self.temperature is None else GREEDY.name


def routes(service: Service, *, log_texts: bool) -> APIRouter:
    """Return the routes.

    Args:
        service: Writes the drafts.
        log_texts: Whether the log has prompts and texts.
    """
    router = APIRouter()

    @router.post("/v1/chat/completions", responses=ERRORS, summary="The same for clients of OpenAI's chat API")
    async def chat(form: ChatForm, request: Request) -> Any:
        pending = await service.prepare(form.draft_form.order)
        name = f"chatcmpl-{uuid.uuid4().hex}"
        if form.stream:
            usage = form.stream_options is not None and form.stream_options.include_usage
            chunks = _chunks(pending, request, name, usage=usage, log_texts=log_texts)
            return EventStream(chunks, pending.close)
        written = await whole_draft(pending, request, log_texts=log_texts)
        return JSONResponse(_completion(name, written))

    @router.get("/v1/models", summary="The served models")
    async def models() -> dict[str, Any]:
        deployment = service.rollout.current
        found = deployment.catalog.methods.values() if deployment else ()
        return {"object": "list", "data": [_model(one) for one in found]}

    @router.get("/v1/models/{name}", responses=ERRORS, summary="One served model")
    async def model(name: str) -> dict[str, Any]:
        deployment = service.rollout.current
        found = deployment.catalog.find(name) if deployment else None
        if found is None:
            why = unknown_model(deployment.catalog, name) if deployment else service.rollout.problem
            raise ApiError(404, why, "model_not_found")
        return _model(found)

    return router


async def _chunks(
    pending: Pending, request: Request, name: str, *, usage: bool, log_texts: bool
) -> AsyncIterator[bytes]:
    model = pending.served.model_id

    def chunk(choices: list[dict[str, Any]], **more: Any) -> bytes:
        return event({**_head(name, "chat.completion.chunk", model), "choices": choices, **more})

    def choice(delta: dict[str, Any], reason: str | None = None) -> list[dict[str, Any]]:
        return [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}]

    yield chunk(choice({"role": "assistant", "content": ""}))
    async for part in parts_of(pending):
        if isinstance(part, str):
            yield chunk(choice({"content": part}))
        elif isinstance(part, Written):
            note(request, part, pending, log_texts=log_texts)
            yield chunk(choice({}, part.draft.finish_reason), nextquill=_about(part))
            if usage:
                yield chunk([], usage=_usage(part))
        else:
            found = as_api_error(part)
            yield event(error_body(found.status, str(found), found.code))
    yield b"data: [DONE]\n\n"


def _completion(name: str, written: Written) -> dict[str, Any]:
    message = {"role": "assistant", "content": written.draft.text, "refusal": None}
    reason = written.draft.finish_reason
    return {
        **_head(name, "chat.completion", written.served.model_id),
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": reason}],
        "usage": _usage(written),
        "nextquill": _about(written),
    }


def _head(name: str, kind: str, model: str) -> dict[str, Any]:
    return {"id": name, "object": kind, "created": int(time.time()), "model": model}


def _usage(written: Written) -> dict[str, int]:
    prompt, new = written.prompt_tokens, written.draft.n_tokens
    return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}


def _about(written: Written) -> dict[str, Any]:
    """Return what a draft has beyond OpenAI's fields: the history that was shown, the note, effects and adapter."""
    return DraftReply.of(written).model_dump(exclude={"text", "n_tokens", "prompt_tokens", "finish_reason"})


def _model(served: ServedMethod) -> dict[str, Any]:
    return {
        "id": served.model_id,
        "object": "model",
        "created": CREATED,
        "owned_by": "nextquill",
        "method": served.name,
        "adapter": served.adapter,
        "history": served.prompter.identity.history,
        "summary": served.origin.method.summary,
    }


def _number(text: str) -> float | str:
    """Return a number from its text, or the text for the form to refuse."""
    try:
        value = float(text)
    except ValueError:
        return text
    return int(value) if value.is_integer() else value
