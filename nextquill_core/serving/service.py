"""From a request to a draft: find the model, look up the history, make the prompt, ask the backend, explain."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import TypeVar

from fastapi import Request

from nextquill_core.analysis.token_colours import Unit, draft_units
from nextquill_core.generation.decoding import steering
from nextquill_core.generation.engines import Generation
from nextquill_core.serving.backend import Asked
from nextquill_core.serving.catalog import ServedMethod, unknown_model
from nextquill_core.serving.deployment import Deployment, Rollout
from nextquill_core.serving.errors import ApiError
from nextquill_core.serving.metrics import Metrics
from nextquill_core.writing.draft import Draft, ScoredToken
from nextquill_core.writing.prompter import SANE, Prepared
from nextquill_core.writing.requests import WriteRequest
from nextquill_core.writing.scoring import scored_tokens

Result = TypeVar("Result")


@dataclass(frozen=True)
class Order:
    """What a route asks for.

    Attributes:
        form: Person, item and review.
        model: Name of a method or of its model; None for the default method.
        decoding: Name of the decoding preset.
        strength: λ of context steering; None for the method's own decoding.
        explain: Whether to say how much likelier the history made each token.
        seed: Makes another draw of a sampled text; None for the usual one.
        most_tokens: Maximum number of tokens; None for the preset's.
    """

    form: WriteRequest
    model: str | None = None
    decoding: str = SANE
    strength: float | None = None
    explain: bool = False
    seed: int | None = None
    most_tokens: int | None = None


@dataclass(frozen=True)
class Written:
    """A draft and what the routes say about it.

    Attributes:
        draft: The draft.
        served: The method that wrote it.
        strength: λ of context steering; None for none.
        prompt_tokens: Number of tokens of the prompt.
        units: The pieces of the text coloured by their effect; empty unless they were asked for.
        likelier: The words that the history made likelier, with their effect.
    """

    draft: Draft
    served: ServedMethod
    strength: float | None
    prompt_tokens: int
    units: Sequence[Unit]
    likelier: Sequence[tuple[str, float]]


class Service:
    """Writes drafts for the routes.

    Args:
        rollout: What is served.
        metrics: Receives what drafts cost.
        most_requests: Number of drafts that are written or wait at a time.
    """

    def __init__(self, rollout: Rollout, metrics: Metrics, most_requests: int) -> None:
        self.rollout, self.metrics, self._most = rollout, metrics, most_requests
        self._in_flight = 0

    def unavailable(self) -> ApiError:
        """Return the error for a request that comes while nothing is served."""
        reason = self.rollout.problem or "nothing is served"
        return ApiError(503, f"{reason}; ask again", "unavailable", {"Retry-After": "10"})

    async def prepare(self, order: Order) -> Pending:
        """Return a draft that can be written; the caller closes it.

        Raises:
            ApiError: Too many others are being written or wait, nothing is served, or no such model is.
            UserError: The request cannot be used.
        """
        with ExitStack() as held:
            held.enter_context(self._place())
            deployment = held.enter_context(self.rollout.used())
            if deployment is None:
                raise self.unavailable()
            served = deployment.catalog.find(order.model)
            if served is None:
                raise ApiError(404, unknown_model(deployment.catalog, order.model or ""), "model_not_found")
            prepared, asked = await asyncio.to_thread(_prepared, served, order)
            return Pending(order, deployment, served, prepared, asked, self.metrics, held.pop_all())

    @contextmanager
    def _place(self) -> Iterator[None]:
        """Hold one of the places for drafts that are written or wait at the same time."""
        if self._in_flight >= self._most:
            self.metrics.refused.inc()
            message = f"{self._most} drafts are being written or wait; ask again in a second"
            raise ApiError(429, message, "too_many_requests", {"Retry-After": "1"})
        self._in_flight += 1
        self.metrics.in_flight.set(self._in_flight)
        try:
            yield
        finally:
            self._in_flight -= 1
            self.metrics.in_flight.set(self._in_flight)


def _prepared(served: ServedMethod, order: Order) -> tuple[Prepared, Asked]:
    """Return the prompts of an order, and what the backend is asked."""
    prompter = served.prompter
    if order.strength is not None and not prompter.identity.history:
        raise ApiError(422, f"`strength`: {served.name} shows no history to steer by; leave it out")
    contrast = prompter.contrast if order.strength is None else steering(order.strength)
    preset = prompter.preset(order.decoding)
    (prepared,) = prompter.prepare([order.form], contrast)
    request = replace(prepared.request, limit=order.most_tokens)
    if order.seed is not None:
        request = replace(request, key=f"{request.key}/{order.seed}")
    return prepared, Asked(request, served.adapter, preset, prompter.encoder.stop_id, contrast)


@dataclass(eq=False)
class Pending:
    """A draft that is being written, until it is closed.

    Attributes:
        order: What was asked for.
        deployment: Where it is written.
        served: By which method.
        prepared: The request with its prompts.
        asked: What the backend is asked.
        metrics: Receives what the draft costs.
        held: What is released with it.
        began: When it began, on the clock of `time.perf_counter`, seconds.
    """

    order: Order
    deployment: Deployment
    served: ServedMethod
    prepared: Prepared
    asked: Asked
    metrics: Metrics
    held: ExitStack
    began: float = field(default_factory=time.perf_counter)

    def close(self) -> None:
        """Release what the draft holds."""
        self.held.close()

    async def answer(self, send: Callable[[str], None] | None = None) -> Written:
        """Return the finished draft.

        Args:
            send: Receives the text part by part, in this thread; None for no stream.

        Raises:
            Exception: What the backend raises.
        """
        passing = None if send is None else self._passing(asyncio.get_running_loop(), send)
        answer = await asyncio.wrap_future(self.deployment.backend.generate(self.asked, passing))
        tokens = await self._explained(answer) if self.order.explain else ()
        draft = self.served.prompter.draft(self.prepared, answer, self.order.decoding, tokens)
        self._count(draft)
        delta = self.deployment.catalog.delta
        return Written(
            draft,
            self.served,
            self.order.strength,
            len(self.prepared.pair.factual),
            draft_units(draft, delta),
            draft.likelier_words(delta),
        )

    def _passing(self, loop: asyncio.AbstractEventLoop, send: Callable[[str], None]) -> Callable[[str], None]:
        """Return what passes parts of the text from the backend's thread to the loop's."""
        first = True

        def passing(part: str) -> None:
            nonlocal first
            if first:
                first = False
                self.metrics.first_text_seconds.observe(time.perf_counter() - self.began)
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(send, part)

        return passing

    async def _explained(self, answer: Generation) -> tuple[ScoredToken, ...]:
        prompter = self.served.prompter
        pair = await asyncio.to_thread(prompter.answered, self.prepared, answer)
        logps = await asyncio.wrap_future(self.deployment.backend.score(self.served.adapter, pair))
        return await asyncio.to_thread(scored_tokens, prompter.encoder, pair, logps)

    def _count(self, draft: Draft) -> None:
        metrics, model = self.metrics, self.served.model_id
        metrics.new_tokens.labels(model).inc(draft.n_tokens)
        metrics.prompt_tokens.labels(model).inc(len(self.prepared.pair.factual))
        metrics.drafts.labels(model, "shown" if draft.history_shown else "none").inc()


async def unless_disconnected(request: Request, work: Awaitable[Result]) -> Result:
    """Return the result of some work, which is cancelled if the client leaves.

    Args:
        request: The request, whose body has been read.
        work: What it waits for.

    Raises:
        ApiError: The client has left.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ApiError(499, "the client has left")
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
