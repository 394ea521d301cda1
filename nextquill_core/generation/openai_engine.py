"""The engine that asks an OpenAI-compatible server, such as vLLM, SGLang or `transformers serve`."""

from __future__ import annotations

import itertools
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, NotRequired
from urllib.parse import urlsplit

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    sleep_using_event,
    stop_after_attempt,
    stop_when_event_set,
    wait_random_exponential,
)
from typing_extensions import TypedDict

from nextquill_core.config.evaluate import EndpointConfig
from nextquill_core.errors import UserError, first_line
from nextquill_core.generation.decoding import Decoding
from nextquill_core.generation.engines import (
    CUT,
    STOPPED,
    Generation,
    Request,
    Usage,
    discard,
    finished_text,
    no_progress,
    request_seed,
)
from nextquill_core.generation.streaming import TextParts
from nextquill_core.tokens import UserTextTokenizer
from storage.redaction import register_secret
from storage.stored_json import type_adapter

if TYPE_CHECKING:
    from openai import APIStatusError, OpenAI

logger = logging.getLogger(__name__)

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 60.0
REJECTED = (400, 422)
BUSY = (408, 409, 425, 429)
ECHO = "use a server that echoes prompts with log-probabilities, such as vLLM or SGLang"


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer of a server, with the tokens of its prompt and the seconds to its first token."""

    generation: Generation
    prompt_tokens: int
    first_token_seconds: float


class TransientServerError(Exception):
    """A failed attempt that may succeed later.

    Args:
        what: What happened.
        wait_s: Seconds after which the server asks to be asked again.
    """

    def __init__(self, what: str, wait_s: float = 0.0) -> None:
        super().__init__(what)
        self.wait_s = wait_s


class RejectedError(Exception):
    """The server does not accept the form of a request."""


class _Logprobs(TypedDict):
    token_logprobs: list[float | None]


class _EchoChoice(TypedDict):
    logprobs: NotRequired[_Logprobs | None]


class _Echo(TypedDict):
    """What is read of an echoed prompt."""

    choices: list[_EchoChoice]


def checked_body(raw: Any, form: Any) -> Any:
    """Return the JSON value of a reply, whose form the client does not check.

    Args:
        raw: What `with_raw_response` of the client returns.
        form: A type that pydantic can check.

    Raises:
        TransientServerError: The body is something else, such as the page of another server.
    """
    try:
        return type_adapter(form).validate_json(raw.content)
    except ValueError:
        raise TransientServerError(f"not a part of an answer: {raw.text[:80]!r}") from None


class OpenAIEngine:
    """Generates through a server's `/completions`: many requests at a time, repeated where the server fails.

    The prompt is sent as token ids where the server accepts them, so that no text of a user can become a control token
    there. For a server that accepts text only, a control token that a user has spelled is sent with a blank inside it.
    The repetition penalty is a field of the request, which vLLM and SGLang know, or part of a `generation_config`,
    which `transformers serve` knows. The first answer shows which form a server accepts. Answers are streamed, to
    measure the time to the first token. The server must apply the penalty to the tokens of prompt and output, as these
    servers do. A sampled answer is reproducible where the server has a generator for each request; `transformers serve`
    has one for all.

    Args:
        settings: Address, key and limits of the server.
        model_name: The server's name of the model, or of an adapter that it holds.
        tokenizer: The model's tokenizer.
        decoding: The preset.
        max_new_tokens: Maximum number of tokens in an answer.
        stop: The token with which the prompts' template ends an answer. The server is asked to stop at it where it is
            not the tokenizer's end-of-sequence token.
        seed: Seed of the run; see `Request.key`.

    Raises:
        UserError: The address is invalid, or the environment variable of the key is not set or holds no key.
    """

    path = "completions"

    def __init__(
        self,
        settings: EndpointConfig,
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
        if not _is_address(settings.url):
            raise UserError("not an address", settings.url, "write it as in http://127.0.0.1:8000/v1")
        self.address = f"{settings.url.rstrip('/')}/{self.path}"
        self._key = _api_key(settings.api_key_env or "")
        self._forms = (self._by_ids, self._by_text, self._by_settings)
        self._form = 0
        self._form_is_known = False
        self._lock = threading.Lock()
        self._warned: set[str] = set()

    def generate(
        self,
        requests: Sequence[Request],
        advance: Callable[[int], None] = no_progress,
        *,
        keep: Callable[[Request, Generation], None] = discard,
    ) -> list[Generation]:
        """Answer every request; see `Engine.generate`.

        Args:
            requests: As for `Engine.generate`; with one branch and without adapters.
            advance: As for `Engine.generate`.
            keep: As for `Engine.generate`.

        Raises:
            UserError: A request has two branches or names an adapter, the server refuses a request or the key, or the
                last retry of a request failed.
        """
        if any(request.counterfactual is not None or request.adapter is not None for request in requests):
            raise UserError(
                "a server can neither contrast two branches nor switch adapters by request",
                "evaluate.engine",
                "set it to transformers",
            )
        started = time.perf_counter()
        given_up = threading.Event()
        answers: dict[int, Generation] = {}
        with self.client() as client, ThreadPoolExecutor(self.settings.concurrency, "server") as pool:
            futures = {
                pool.submit(self._answer, client, request, given_up): index for index, request in enumerate(requests)
            }
            for future in futures:
                future.add_done_callback(lambda done: _give_up_after(done, given_up))
            try:
                for future in as_completed(futures):
                    index = futures[future]
                    answers[index] = self._counted(future.result())
                    keep(requests[index], answers[index])
                    advance(1)
            finally:  # after a failure no further request begins, but answers in flight are still kept
                given_up.set()
                begun = [future for future in futures if not future.cancel()]
                for future in wait(begun).done:
                    if futures[future] not in answers and future.exception() is None:
                        keep(requests[futures[future]], future.result().generation)
                self.usage.seconds += time.perf_counter() - started
        return [answers[index] for index in range(len(requests))]

    def answer(
        self, client: OpenAI, request: Request, given_up: threading.Event, parts: TextParts | None = None
    ) -> Generation:
        """Answer one request; it may be called by several threads.

        Args:
            client: The client, which all calls can share.
            request: As for `generate`.
            given_up: Ends the request, within its current attempt, when it is set.
            parts: Receives the text while it is generated; None for no stream.

        Raises:
            UserError: As `generate`.
        """
        reply = self._answer(client, request, given_up, parts)
        with self._lock:
            return self._counted(reply)

    def answer_logps(self, client: OpenAI, prompt: list[int], target: Sequence[int]) -> list[float]:
        """Return log p(y_t | prompt, y_<t) of each answer token by the server's model, nats.

        The server echoes the prompt with the log-probabilities of its tokens, which vLLM and SGLang do.

        Args:
            client: The client.
            prompt: Token ids of the prompt.
            target: Token ids of the answer.

        Raises:
            UserError: The server fails, or returns no log-probabilities of the prompt's tokens.
        """
        from openai import APIError

        ids = [*prompt, *target]
        try:
            raw = client.completions.with_raw_response.create(
                model=self.model_name,
                prompt=ids,
                echo=True,
                logprobs=1,
                max_tokens=1,
                temperature=0.0,
                extra_headers=self.headers,
            )
            choices = checked_body(raw, _Echo)["choices"]
        except (APIError, TransientServerError) as error:
            said = first_line(error) if isinstance(error, TransientServerError) else error.body or error.message
            what = self._masked(_message(said))
            raise UserError(f"the server gives no log-probabilities ({what})", self.address, ECHO) from None
        echoed = choices[0].get("logprobs") if choices else None
        found = echoed["token_logprobs"][len(prompt) : len(ids)] if echoed else []
        logps = [value for value in found if value is not None]
        if len(logps) != len(target):
            raise UserError("the server gives no log-probabilities of the prompt's tokens", self.address, ECHO)
        return logps

    @property
    def headers(self) -> dict[str, Any]:
        """Headers of every request: without a key, the client's own header about one is left out."""
        from openai import Omit

        return {} if self._key else {"Authorization": Omit()}

    def client(self) -> OpenAI:
        """Return a client of the server, which is closed by its `close` or at the end of a `with` block."""
        from openai import OpenAI, Timeout

        return OpenAI(
            base_url=self.settings.url,
            api_key=self._key or "none",
            timeout=Timeout(self.settings.timeout_s, connect=min(self.settings.timeout_s, 30.0)),
            max_retries=0,  # its own retries end where a stream begins; `_answer` repeats broken streams too
        )

    def _counted(self, reply: Reply) -> Generation:
        self.usage.answers += 1
        self.usage.prompt_tokens += reply.prompt_tokens
        self.usage.new_tokens += reply.generation.n_tokens
        self.usage.first_token_seconds += reply.first_token_seconds
        return reply.generation

    def _answer(
        self, client: OpenAI, request: Request, given_up: threading.Event, parts: TextParts | None = None
    ) -> Reply:
        retrying = Retrying(
            retry=retry_if_exception_type(TransientServerError),
            stop=stop_after_attempt(self.settings.retries + 1) | stop_when_event_set(given_up),
            wait=_wait,
            sleep=sleep_using_event(given_up),
            before_sleep=self._count_retry,
            reraise=True,
        )
        try:
            return retrying(self._attempt, client, request, given_up, parts)
        except TransientServerError as failure:
            attempts = retrying.statistics["attempt_number"]
            raise UserError(
                f"no answer after {attempts} attempts ({self._masked(first_line(failure))})",
                self.address,
                "check that the server runs, then run the same command again: stored answers are kept",
            ) from None

    def _count_retry(self, state: RetryCallState) -> None:
        failure = state.outcome.exception() if state.outcome else None
        what = self._masked(first_line(failure)) if failure else ""
        logger.warning("%s: %s; next attempt in %.1f s", self.address, what, state.upcoming_sleep)
        with self._lock:
            self.usage.retries += 1

    def _attempt(self, client: OpenAI, request: Request, given_up: threading.Event, parts: TextParts | None) -> Reply:
        """Ask in the form that the server is known to accept, or in one after the other until it accepts one."""
        form = self._form
        while True:
            try:
                reply = self._ask(client, self._forms[form](request), len(request.prompt), given_up, parts)
            except RejectedError as rejection:
                if form == (self._form if self._form_is_known else len(self._forms) - 1):
                    raise UserError(f"the server rejects the request ({rejection})", self.address) from None
                form = self._form if self._form_is_known else form + 1
            else:
                self._form, self._form_is_known = form, True
                return reply

    def _ask(
        self,
        client: OpenAI,
        body: dict[str, Any],
        prompt_tokens: int,
        given_up: threading.Event,
        parts: TextParts | None,
    ) -> Reply:
        started = time.perf_counter()
        first_token_seconds: float | None = None
        text = reason = ""
        usage: Any = None
        if parts is not None:
            parts.restart()
        with self._failures():
            stream = client.completions.create(
                model=self.model_name,
                prompt=body.pop("prompt"),
                stream=True,
                extra_body=body,
                extra_headers=self.headers,
            )
            for part in stream:
                if given_up.is_set():
                    raise TransientServerError("given up because of another request")
                more, ended = _content(part)
                if first_token_seconds is None and part.choices:
                    first_token_seconds = time.perf_counter() - started
                text, reason, usage = text + more, ended or reason, part.usage or usage
                if parts is not None:
                    parts.grow(more)
        if reason in ("", "abort", "error") or first_token_seconds is None:
            raise TransientServerError("the answer broke off")
        reason = CUT if reason == CUT else STOPPED
        counted, sent = (getattr(usage, name, None) for name in ("completion_tokens", "prompt_tokens"))
        if isinstance(counted, int):
            n_tokens = max(0, counted - (reason == STOPPED))  # servers count the stop token
        else:
            n_tokens = len(self._text.encode([text])[0])
        prompt_tokens = sent if isinstance(sent, int) else prompt_tokens
        return Reply(Generation(finished_text(text), n_tokens, reason), prompt_tokens, first_token_seconds)

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Turn what the client raises into errors that are repeated, and errors of the user."""
        from httpx2 import RequestError
        from openai import APIConnectionError, APIError, APIStatusError

        try:
            yield
        except APIStatusError as error:
            raise self._refusal(error) from None
        except APIConnectionError as error:
            raise TransientServerError(first_line(error.__cause__ or error)) from None
        except RequestError as error:  # while a body is read, where the client does not turn it into its own error
            raise TransientServerError(first_line(error)) from None
        except APIError as error:
            raise TransientServerError(_message(error.body or error.message)) from None
        except (ValueError, RecursionError) as error:  # JSON that cannot be parsed
            data = getattr(error, "doc", str(error))
            raise TransientServerError(f"not a part of an answer: {data[:80]!r}") from None

    def _refusal(self, error: APIStatusError) -> Exception:
        """Return what a status other than 200 means."""
        status = error.status_code
        what = self._masked(f"{status}: {_message(error.body)}")
        if status in REJECTED:
            return RejectedError(what)
        if status in (401, 403):
            variable = self.settings.api_key_env
            remedy = f"set {variable} to one" if variable else "name the variable that holds one in api_key_env"
            return UserError(f"the server wants another key ({what})", self.address, remedy)
        if status in BUSY or status >= 500:
            return TransientServerError(what, _retry_after(error.response.headers.get("Retry-After", "")))
        return UserError(
            f"the server refuses ({what})", self.address, f"check that it has this address and {self.model_name!r}"
        )

    def _by_ids(self, request: Request) -> dict[str, Any]:
        """Return a request for vLLM, SGLang and others; every setting is explicit, for the server has own defaults."""
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
        """Return a request for `transformers serve`, which refuses fields that it does not know."""
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
            "max_tokens": min(request.limit or self.max_new_tokens, self.max_new_tokens),
            "temperature": self.decoding.temperature,
            "seed": request_seed(self.seed, request.key),
        }

    @cached_property
    def _text(self) -> UserTextTokenizer:
        return UserTextTokenizer(self.tokenizer)

    def _as_text(self, prompt: list[int]) -> str:
        """Return the text that the server's tokenizer turns into this prompt; it adds the opening marker itself."""
        for ids in (prompt, prompt[1:]):
            text = self._decoded(ids)
            if self.tokenizer(text)["input_ids"] == prompt:
                return text
        for ids in (prompt, prompt[1:]):
            spelled = self._decoded(ids, broken=True)
            if self._controls(self.tokenizer(spelled)["input_ids"]) == self._controls(prompt):
                self._warn_once(
                    "it accepts no token ids, so a control token that a user has spelled gets a blank inside"
                )
                return spelled
        self._warn_once("prompts are sent as text, which the server will split into other tokens than ours")
        opened = self.tokenizer("")["input_ids"][:1] == prompt[:1]
        return self._decoded(prompt[1:] if opened else prompt)

    def _controls(self, ids: Sequence[int]) -> list[int]:
        known = frozenset(self._text.controls.values())
        return [token for token in ids if token in known]

    def _warn_once(self, message: str) -> None:
        with self._lock:
            if message not in self._warned:
                self._warned.add(message)
                logger.warning("%s: %s", self.address, message)

    def _decoded(self, ids: Sequence[int], *, broken: bool = False) -> str:
        """Return the text of tokens; `broken` puts a blank into what looks like a control token and is none."""
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

    def _masked(self, message: str) -> str:
        """Return a message without the key, which a server may quote."""
        return message.replace(self._key, "***") if self._key else message


def _give_up_after(done: Future[Reply], given_up: threading.Event) -> None:
    """Keep the requests that wait from beginning, as soon as one has failed."""
    if not done.cancelled() and done.exception() is not None:
        given_up.set()


def _is_address(url: str) -> bool:
    """Return whether the client takes this as the address of a server."""
    try:
        parts = urlsplit(url)
        named = bool(parts.hostname) and parts.port != 0  # reading the port checks it
    except ValueError:
        return False
    return named and url.startswith(("http://", "https://")) and url.isprintable()


def _api_key(variable: str | None) -> str:
    key = os.environ.get(variable, "").strip() if variable else ""
    register_secret(variable=variable)
    if variable and not (key and key.isascii() and key.isprintable()):
        raise UserError(
            "the environment variable for the server's key is not set, or holds no key", variable, "set it to the key"
        )
    return key


def _content(part: Any) -> tuple[str, str]:
    """Return the text and the finish reason in one event of a stream; the client does not check its fields."""
    try:
        choices = part.choices or []
        return "".join(choice.text or "" for choice in choices), "".join(one.finish_reason or "" for one in choices)
    except (AttributeError, TypeError):
        raise TransientServerError(f"not a part of an answer: {str(part)[:80]!r}") from None


def _message(said: Any) -> str:
    """Return the message in a server's error, in the few forms that servers use."""
    if isinstance(said, str):
        try:
            said = json.loads(said)
        except (ValueError, RecursionError):
            return " ".join(said.split())[:200] or "nothing more"
    while isinstance(said, dict):
        said = next((said[name] for name in ("error", "message", "detail") if said.get(name)), "nothing more")
    return " ".join(str(said).split())[:200]


def _wait(state: RetryCallState) -> float:
    """Return seconds to wait: exponential with jitter, and not less than the server asks for."""
    failure = state.outcome.exception() if state.outcome else None
    return max(wait_random_exponential(FIRST_WAIT_S, LONGEST_WAIT_S)(state), getattr(failure, "wait_s", 0.0))


def _retry_after(value: str) -> float:
    """Return the seconds in a Retry-After header, a number or a date; 0 for anything else."""
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
        except (TypeError, ValueError):
            return 0.0
    return min(max(seconds, 0.0), 10 * LONGEST_WAIT_S)
