"""The engine on the other side of HTTP: any OpenAI-compatible server, such as vLLM, SGLang or `transformers serve`."""

from __future__ import annotations

import itertools
import json
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import Any

import httpx

from nextquill_core.errors import UserError, first_line
from nextquill_core.generation.decoding import Decoding
from nextquill_core.generation.engines import (
    CUT,
    STOPPED,
    Generation,
    Request,
    Usage,
    finished_text,
    request_seed,
    unheard,
    unkept,
)
from nextquill_core.model.control_tokens import UserTextTokenizer
from storage.redaction import keep_secret

logger = logging.getLogger(__name__)

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 60.0
REJECTED = (400, 422)
BUSY = (408, 409, 425, 429)


@dataclass(frozen=True)
class ServerSettings:
    """Where the server is, and how patient to be with it.

    Attributes:
        url: The address up to the version, as in http://127.0.0.1:8000/v1.
        api_key_env: Name of the environment variable that holds the key; empty for a server that asks for none.
        concurrency: Requests under way at a time; the server batches them.
        timeout_s: Seconds without a word from the server, a queue's waiting time included.
        retries: How often a request is sent once more after the server failed it.
    """

    url: str = "http://127.0.0.1:8000/v1"
    api_key_env: str = ""
    concurrency: int = 16
    timeout_s: float = 600.0
    retries: int = 5


@dataclass(frozen=True, slots=True)
class _Reply:
    generation: Generation
    prompt_tokens: int
    first_token_seconds: float


@dataclass(frozen=True, slots=True)
class _Part:
    """One event of a stream; `counts` are the server's own, of tokens."""

    choices: bool
    text: str
    reason: str
    counts: dict[str, int]


class _Failed(Exception):  # noqa: N818 - says what happened
    """An attempt that may do better another time, and the seconds after which the server wants to see it again."""

    def __init__(self, what: str, wait_s: float = 0.0) -> None:
        super().__init__(what)
        self.wait_s = wait_s


class _Rejected(Exception):  # noqa: N818 - says what happened
    """The server does not take the request as it is put."""


class OpenAIEngine:
    """Asks a server's `/completions`, many requests at a time, and asks again where the server fails.

    The prompt is sent as token ids where the server takes them, so that no text by a user can become a control token
    there. To a server that takes text only, a control token that a user has spelled is sent with a blank inside it. The
    repetition penalty goes as a field of its own, which vLLM and SGLang know, or inside a `generation_config`, which
    `transformers serve` knows; how a server wants it is found out with the first answer. Answers are streamed, for the
    time to their first token. The server must penalise the tokens of prompt and output, as these do. A sampled answer
    is repeated by its seed where the server keeps a generator for each request; `transformers serve` has one for all.

    Args:
        settings: Where the server is.
        model_name: By which the server knows the model, or an adapter that it holds.
        tokenizer: The model's.
        decoding: The preset.
        max_new_tokens: Longest answer.
        stop: The token with which the prompts' template ends an answer. The server is asked to stop at it where it is
            another one than the tokenizer's end-of-sequence token.
        seed: Of the run; see `Request.key`.

    Raises:
        UserError: The address is none, or the environment variable of the key is not set or holds none.
    """

    def __init__(
        self,
        settings: ServerSettings,
        model_name: str,
        tokenizer: Any,
        decoding: Decoding,
        *,
        max_new_tokens: int,
        stop: int | None = None,
        seed: int = 0,
    ) -> None:
        self.settings, self.model_name, self.tokenizer, self.decoding = settings, model_name, tokenizer, decoding
        self.max_new_tokens, self.seed = max_new_tokens, seed
        self._stop = None if stop is None or stop == tokenizer.eos_token_id else stop
        self.usage = Usage()
        if not settings.url.startswith(("http://", "https://")):
            raise UserError("not an address", settings.url, "write it as in http://127.0.0.1:8000/v1")
        self.address = f"{settings.url.rstrip('/')}/completions"
        self._key = _api_key(settings.api_key_env)
        self._ways = (self._by_ids, self._by_text, self._by_settings)
        self._way = 0
        self._way_is_known = False
        self._given_up = threading.Event()
        self._counting = threading.Lock()
        self._warned: set[str] = set()

    def generate(
        self,
        requests: Sequence[Request],
        advance: Callable[[int], None] = unheard,
        *,
        keep: Callable[[Request, Generation], None] = unkept,
    ) -> list[Generation]:
        """Answer every request; see `Engine.generate`.

        Raises:
            UserError: A request is steered or names an adapter, the server refuses a request or the key, or it failed
                a request once more after the last retry.
        """
        if any(request.without is not None or request.adapter is not None for request in requests):
            raise UserError(
                "a server can neither steer nor switch adapters by request", "evaluate.engine", "set it to transformers"
            )
        started = time.perf_counter()
        self._given_up.clear()
        answers: dict[int, Generation] = {}
        limits = httpx.Limits(max_connections=self.settings.concurrency)
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        timeout = httpx.Timeout(self.settings.timeout_s, connect=min(self.settings.timeout_s, 30.0))
        with (
            httpx.Client(headers=headers, timeout=timeout, limits=limits) as client,
            ThreadPoolExecutor(self.settings.concurrency, "server") as pool,
        ):
            futures = {pool.submit(self._answer, client, request): index for index, request in enumerate(requests)}
            try:
                for future in as_completed(futures):
                    index = futures[future]
                    answers[index] = self._counted(future.result())
                    keep(requests[index], answers[index])
                    advance(1)
            finally:  # where one has failed for good, the others need not begin; what is under way is still kept
                self._given_up.set()
                begun = [future for future in futures if not future.cancel()]
                for future in wait(begun).done:
                    if futures[future] not in answers and future.exception() is None:
                        keep(requests[futures[future]], future.result().generation)
                self.usage.seconds += time.perf_counter() - started
        return [answers[index] for index in range(len(requests))]

    def _counted(self, reply: _Reply) -> Generation:
        self.usage.answers += 1
        self.usage.prompt_tokens += reply.prompt_tokens
        self.usage.new_tokens += reply.generation.n_tokens
        self.usage.first_token_seconds += reply.first_token_seconds
        return reply.generation

    def _answer(self, client: httpx.Client, request: Request) -> _Reply:
        tried = 0
        while not self._given_up.is_set():
            tried += 1
            try:
                return self._ask_in_some_way(client, request)
            except (_Failed, httpx.RequestError) as failure:
                what = self._told(first_line(failure))
                if tried > self.settings.retries:
                    raise UserError(
                        f"no answer after {tried} attempts ({what})",
                        self.address,
                        "see whether the server runs; answers already stored stay, so the same command goes on",
                    ) from None
                wait_s = max(_back_off(tried), getattr(failure, "wait_s", 0.0))
                logger.warning("%s: %s; asking again in %.1f s", self.address, what, wait_s)
            with self._counting:
                self.usage.retries += 1
            self._given_up.wait(wait_s)
        raise UserError("given up because of another request", self.address)

    def _ask_in_some_way(self, client: httpx.Client, request: Request) -> _Reply:
        way = self._way
        while True:
            try:
                reply = self._ask(client, request, self._ways[way](request))
            except _Rejected as rejection:
                if way == (self._way if self._way_is_known else len(self._ways) - 1):
                    raise UserError(f"the server rejects the request ({rejection})", self.address) from None
                way = self._way if self._way_is_known else way + 1
            else:
                self._way, self._way_is_known = way, True
                return reply

    def _ask(self, client: httpx.Client, request: Request, body: dict[str, Any]) -> _Reply:
        started = time.perf_counter()
        first_token_seconds: float | None = None
        text = reason = ""
        counts: dict[str, int] = {}
        with client.stream("POST", self.address, json=body) as response:
            self._check(response)
            for part in _parts(response):
                if self._given_up.is_set():
                    raise _Failed("given up because of another request")
                if first_token_seconds is None and part.choices:
                    first_token_seconds = time.perf_counter() - started
                text += part.text
                reason = part.reason or reason
                counts |= part.counts
        if reason in ("", "abort", "error") or first_token_seconds is None:
            raise _Failed("the answer broke off")
        reason = CUT if reason == CUT else STOPPED
        if "completion_tokens" in counts:
            n_tokens = max(0, counts["completion_tokens"] - (reason == STOPPED))  # servers count the stop token
        else:
            n_tokens = len(self._text.encode([text])[0])
        prompt_tokens = counts.get("prompt_tokens", len(request.prompt))
        return _Reply(Generation(finished_text(text), n_tokens, reason), prompt_tokens, first_token_seconds)

    def _check(self, response: httpx.Response) -> None:
        """Raise what a status other than 200 means."""
        status = response.status_code
        if status == 200:
            return
        response.read()
        what = self._told(f"{status}: {_message(response.text)}")
        if status in REJECTED:
            raise _Rejected(what)
        if status in (401, 403):
            variable = self.settings.api_key_env
            remedy = f"set {variable} to one" if variable else "name the variable that holds one in api_key_env"
            raise UserError(f"the server wants another key ({what})", self.address, remedy)
        if status in BUSY or status >= 500:
            raise _Failed(what, _retry_after(response))
        raise UserError(
            f"the server refuses ({what})", self.address, f"see whether it has this address and {self.model_name!r}"
        )

    def _by_ids(self, request: Request) -> dict[str, Any]:
        """For vLLM, SGLang and others; what is not said explicitly may come from the model's own settings there."""
        body = self._common(request) | {"prompt": request.prompt, "stream_options": {"include_usage": True}}
        body["repetition_penalty"] = self.decoding.repetition_penalty
        if self._stop is not None:
            body["stop_token_ids"] = [self._stop]
        if not self.decoding.greedy:
            body |= {"top_p": self.decoding.top_p, "top_k": -1}
        return body

    def _by_text(self, request: Request) -> dict[str, Any]:
        return self._by_ids(request) | {"prompt": self._as_text(request.prompt)}

    def _by_settings(self, request: Request) -> dict[str, Any]:
        """For `transformers serve`, which refuses fields that it does not know."""
        body = self._common(request)
        settings: dict[str, Any] = {
            "do_sample": not self.decoding.greedy,
            "repetition_penalty": self.decoding.repetition_penalty,
        }
        if not self.decoding.greedy:
            settings |= {"temperature": self.decoding.temperature, "top_p": self.decoding.top_p, "top_k": 0}
        if self._stop is not None:
            settings["eos_token_id"] = [self._stop, self.tokenizer.eos_token_id]
        return body | {"prompt": self._as_text(request.prompt), "generation_config": json.dumps(settings)}

    def _common(self, request: Request) -> dict[str, Any]:
        return {
            "model": self.model_name,
            "max_tokens": min(request.limit or self.max_new_tokens, self.max_new_tokens),
            "temperature": self.decoding.temperature,
            "seed": request_seed(self.seed, request.key),
            "stream": True,
        }

    @cached_property
    def _text(self) -> UserTextTokenizer:
        return UserTextTokenizer(self.tokenizer)

    def _as_text(self, prompt: list[int]) -> str:
        """The text that the server's tokenizer makes this prompt of; it writes the opening marker itself."""
        for ids in (prompt, prompt[1:]):
            text = self._decoded(ids)
            if self.tokenizer(text)["input_ids"] == prompt:
                return text
        for ids in (prompt, prompt[1:]):
            spelled = self._decoded(ids, broken=True)
            if self._controls(self.tokenizer(spelled)["input_ids"]) == self._controls(prompt):
                self._warn_once("it takes no token ids, so a control token that a user has spelled gets a blank inside")
                return spelled
        self._warn_once("prompts go as text, and the server will read other tokens than ours")
        return text

    def _controls(self, ids: Sequence[int]) -> list[int]:
        known = frozenset(self._text.controls.values())
        return [token for token in ids if token in known]

    def _warn_once(self, message: str) -> None:
        with self._counting:
            if message not in self._warned:
                self._warned.add(message)
                logger.warning("%s: %s", self.address, message)

    def _decoded(self, ids: Sequence[int], *, broken: bool = False) -> str:
        """The text of these tokens; `broken` puts a blank into what looks like a control token and is none."""
        if not broken:
            text: str = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            return text
        controls = self._text.controls
        parts: list[str] = []
        for control, tokens in itertools.groupby(ids, key=frozenset(controls.values()).__contains__):
            part = self._decoded(list(tokens))
            for spelled in controls if not control else ():
                part = part.replace(spelled, f"{spelled[:1]} {spelled[1:]}")
            parts.append(part)
        return "".join(parts)

    def _told(self, message: str) -> str:
        """A message without the key, whoever quoted it."""
        return message.replace(self._key, "***") if self._key else message


def _api_key(variable: str) -> str:
    key = os.environ.get(variable, "").strip() if variable else ""
    keep_secret(variable=variable)
    if variable and not (key and key.isascii() and key.isprintable()):
        raise UserError("the environment variable for the server's key is not set, or holds no key", variable)
    return key


def _parts(response: httpx.Response) -> Iterator[_Part]:
    """What a stream of server-sent events holds, up to its end."""
    for line in response.iter_lines():
        if line.startswith("data:"):
            data = line.removeprefix("data:").strip()
            if data == "[DONE]":
                return
            yield _part(data)


def _part(data: str) -> _Part:
    try:
        chunk = json.loads(data)
        if chunk.get("error"):
            raise _Failed(_message(chunk))
        choices = chunk.get("choices") or []
        text = "".join(choice.get("text") or "" for choice in choices)
        reason = "".join(choice.get("finish_reason") or "" for choice in choices)
        counts = {name: count for name, count in (chunk.get("usage") or {}).items() if isinstance(count, int)}
    except (AttributeError, RecursionError, TypeError, ValueError):
        raise _Failed(f"no part of an answer: {data[:80]!r}") from None
    return _Part(bool(choices), text, reason, counts)


def _message(said: Any) -> str:
    """What a server says went wrong, in the few ways in which servers put it."""
    if isinstance(said, str):
        try:
            said = json.loads(said)
        except (ValueError, RecursionError):
            return " ".join(said.split())[:200] or "nothing more"
    while isinstance(said, dict):
        said = next((said[name] for name in ("error", "message", "detail") if said.get(name)), "nothing more")
    return " ".join(str(said).split())[:200]


def _back_off(tried: int) -> float:
    """Seconds to wait: twice as many each time, and not the same for all requests that failed together."""
    longest = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** (tried - 1))
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 - not a secret


def _retry_after(response: httpx.Response) -> float:
    """Seconds that the server asks to wait, 0 where it does not; it gives a number or a date."""
    given = response.headers.get("Retry-After", "")
    try:
        seconds = float(given)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(given) - datetime.now(UTC)).total_seconds()
        except (TypeError, ValueError):
            return 0.0
    return min(max(seconds, 0.0), 10 * LONGEST_WAIT_S)
