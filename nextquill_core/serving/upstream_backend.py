"""The backend on another server, such as vLLM, that serves the base model and each adapter under its fingerprint."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from nextquill_core.config.evaluate import ServerConfig
from nextquill_core.errors import UserError, first_line
from nextquill_core.generation.decoding import GREEDY
from nextquill_core.generation.engines import Generation
from nextquill_core.generation.openai_engine import OpenAIEngine
from nextquill_core.generation.streaming import TextParts
from nextquill_core.records import TokenPair
from nextquill_core.serving.backend import Asked, BackendError, Logps
from nextquill_core.writing.prompter import Preset
from storage import Artifact

if TYPE_CHECKING:
    from openai import OpenAI


class UpstreamBackend:
    """Asks a server that speaks OpenAI's protocol.

    Args:
        settings: Address, key and limits of the server.
        base: The server's name of the base model.
        tokenizer: The base model's tokenizer.
        seed: Seed of sampled texts.

    Raises:
        UserError: On construction: the address or the key is invalid, the server does not answer, or it does not serve
            the base model.
    """

    def __init__(self, settings: ServerConfig, base: str, tokenizer: Any, *, seed: int) -> None:
        self._settings, self._base, self._tokenizer, self._seed = settings, base, tokenizer, seed
        self._engines: dict[tuple[str, Preset, int | None], OpenAIEngine] = {}
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(settings.concurrency, "upstream")
        self._closing = threading.Event()
        if base not in (served := self._served()):
            known = ", ".join(sorted(served)) or "nothing"
            raise UserError(
                f"the server does not serve the base model as {base!r}, but {known}",
                settings.url,
                "set evaluate.server.models.base to its name there",
            )

    def load(self, adapter: Artifact) -> None:
        """Make sure that the server has an adapter under its fingerprint, and ask it to load the adapter if not.

        Raises:
            UserError: The server neither has it nor loads it.
        """
        from openai import APIError

        name, folder = adapter.manifest.fingerprint, adapter.folder / "adapter"
        if name in self._served():
            return
        try:
            self._post("/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})
        except APIError as error:
            raise UserError(
                f"the server has no adapter named {name} and does not load one ({first_line(error)})",
                self._settings.url,
                f"start it with --lora-modules {name}={folder}, or let it load adapters while it runs",
            ) from None

    def unload(self, fingerprint: str) -> None:
        """Ask the server to release an adapter; one that it was started with stays."""
        from openai import APIError

        try:
            self._post("/unload_lora_adapter", {"lora_name": fingerprint})
        except APIError:
            return  # it does not unload adapters while it runs, or was started with this one

    def generate(self, asked: Asked, send: Callable[[str], None] | None = None) -> Future[Generation]:
        """Ask the server for a text, which cannot be steered; see `Backend.generate`."""
        found: Future[Generation] = Future()
        if asked.contrast is not None and not asked.contrast.neutral and asked.request.counterfactual is not None:
            error = UserError(
                "a served model cannot be steered", "strength", "leave it out, or run the model in-process"
            )
            found.set_exception(error)
            return found
        request = replace(asked.request, counterfactual=None, adapter=None)
        parts = None if send is None else TextParts(send)
        given_up = threading.Event()

        def answer() -> None:
            if found.cancelled() or self._closing.is_set():
                found.cancel()
                return
            try:
                text = self._engine(asked.adapter, asked.preset, asked.stop).answer(
                    self._client, request, given_up, parts
                )
                if parts is not None:
                    parts.finish(text.text)
            except UserError as error:
                self._fail(found, BackendError(error.what, error.where, "ask again"))
                return
            except Exception as error:  # belongs to the request
                self._fail(found, error)
                return
            if found.set_running_or_notify_cancel():
                found.set_result(text)

        found.add_done_callback(lambda _: given_up.set())
        self._pool.submit(answer)
        return found

    @staticmethod
    def _fail(found: Future[Generation], error: Exception) -> None:
        if found.set_running_or_notify_cancel():
            found.set_exception(error)

    def score(self, adapter: str | None, pair: TokenPair) -> Future[Logps]:
        """Score an answer by the log-probabilities that the server echoes; see `Backend.score`."""
        return self._pool.submit(self._logps, adapter, pair)

    def close(self) -> None:
        """Give up what is in flight."""
        self._closing.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._client.close()

    def _logps(self, adapter: str | None, pair: TokenPair) -> Logps:
        import torch

        engine = self._engine(adapter, Preset(GREEDY, 1), None)
        prompts = [pair.factual, pair.counterfactual] if pair.has_history else [pair.factual]
        found = [torch.tensor(engine.answer_logps(self._client, prompt, pair.target)) for prompt in prompts]
        return found[0], found[-1]

    def _engine(self, adapter: str | None, preset: Preset, stop: int | None) -> OpenAIEngine:
        key = adapter or self._base, preset, stop
        with self._lock:
            if key not in self._engines:
                self._engines[key] = OpenAIEngine(
                    self._settings,
                    key[0],
                    self._tokenizer,
                    preset.decoding,
                    max_new_tokens=preset.limit,
                    stop=stop,
                    seed=self._seed,
                )
            return self._engines[key]

    def _post(self, path: str, body: dict[str, str]) -> None:
        engine = self._engine(None, Preset(GREEDY, 1), None)
        self._client.post(path, cast_to=str, body=body, options={"headers": engine.headers})

    @cached_property
    def _client(self) -> OpenAI:
        return self._engine(None, Preset(GREEDY, 1), None).client()

    def _served(self) -> set[str]:
        from openai import APIError

        try:
            headers = self._engine(None, Preset(GREEDY, 1), None).headers
            return {model.id for model in self._client.models.list(extra_headers=headers)}
        except (APIError, ValueError) as error:
            raise UserError(
                f"the server does not list its models ({first_line(error)})",
                self._settings.url,
                "check that it runs, and evaluate.server.url",
            ) from None
