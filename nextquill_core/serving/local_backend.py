"""The backend in this process: one base model, its adapters by fingerprint, and one thread that runs them.

Requests join the running batch between two tokens. Each combination of preset, stop token and contrast has a batch; the
batches take turns token by token and share the memory for keys and values.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from nextquill_core.causal.scorer import Scorer
from nextquill_core.config.model import ModelConfig
from nextquill_core.errors import UserError
from nextquill_core.generation.cache import room_in_memory
from nextquill_core.generation.decoding import Contrast, Decoding
from nextquill_core.generation.engines import BASE, Generation
from nextquill_core.generation.live_batch import Job, LiveBatch
from nextquill_core.generation.local_engine import TransformersEngine
from nextquill_core.generation.streaming import TokenParts
from nextquill_core.model.loading import load_adapter, load_model, load_tokenizer
from nextquill_core.records import TokenPair
from nextquill_core.serving.backend import Asked, Logps, ShuttingDown
from storage import Artifact

MOST_IDLE = 8
"""Number of batches without rows that are kept for the next request of their kind."""
ENDED = ShuttingDown("the server is shutting down", remedy="ask again")


@dataclass(frozen=True)
class _Kind:
    """What all rows of a batch have in common."""

    decoding: Decoding
    limit: int
    stop: int
    contrast: Contrast | None


@dataclass
class _Task:
    """Something else that the thread does between two tokens."""

    do: Callable[[], Any]
    done: Future[Any] = field(default_factory=Future)


class LocalBackend:
    """Generates and scores with a model in this process.

    Args:
        config: The base model.
        batch_tokens: Maximum number of positions in all batches, prompts and padding included; None for as many as fit
            into half of the free memory.
        score_tokens: Token positions of one forward pass of the scorer.
        seed: Seed of sampled texts.

    Raises:
        ModelError: On construction: the model cannot be loaded, or caches something else than keys and values.
    """

    def __init__(self, config: ModelConfig, *, batch_tokens: int | None, score_tokens: int, seed: int) -> None:
        self._tokenizer = load_tokenizer(config)
        self._model = load_model(config)
        self._room = batch_tokens if batch_tokens is not None else room_in_memory(self._model)
        self._score_tokens, self._seed = score_tokens, seed
        self._scorer: Scorer | None = None
        self._batches: dict[_Kind, LiveBatch] = {}
        self._joining: deque[tuple[_Kind, Job]] = deque()
        self._tasks: deque[_Task] = deque()
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    def load(self, adapter: Artifact) -> None:
        """Load an adapter beside those that are loaded; see `Backend.load`."""
        self._do(lambda: self._load(adapter)).result()

    def unload(self, fingerprint: str) -> None:
        """Delete an adapter from the model; see `Backend.unload`."""
        self._do(lambda: self._delete(fingerprint)).result()

    def generate(self, asked: Asked, send: Callable[[str], None] | None = None) -> Future[Generation]:
        """Let a request join its batch; see `Backend.generate`."""
        request = replace(asked.request, adapter=asked.adapter or BASE, counterfactual_adapter=None)
        job = Job(request, None if send is None else TokenParts(send, self._tokenizer))
        kind = _Kind(asked.preset.decoding, asked.preset.limit, asked.stop, asked.contrast)
        with self._changed:
            if self._closed:
                job.end(ENDED)
            else:
                self._joining.append((kind, job))
            self._changed.notify()
        return job.answer

    def score(self, adapter: str | None, pair: TokenPair) -> Future[Logps]:
        """Score an answer between two tokens of the batches; see `Backend.score`."""
        return self._do(lambda: self._score(adapter, pair))

    def close(self) -> None:
        """End the thread, and all requests with an error."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _do(self, work: Callable[[], Any]) -> Future[Any]:
        task = _Task(work)
        with self._changed:
            if self._closed:
                task.done.set_exception(ENDED)
            else:
                self._tasks.append(task)
            self._changed.notify()
        return task.done

    def _run(self) -> None:
        while self._take():
            for batch in list(self._batches.values()):
                if not batch.idle:
                    batch.step()
        for batch in self._batches.values():
            batch.fail(ENDED)
        for _, job in self._joining:
            job.end(ENDED)
        for task in self._tasks:
            if task.done.set_running_or_notify_cancel():
                task.done.set_exception(ENDED)

    def _take(self) -> bool:
        """Admit what has arrived, do one task, and wait if there is nothing else to do; return False at the end."""
        with self._changed:
            while not (self._closed or self._joining or self._tasks or self._busy):
                self._changed.wait()
            if self._closed:
                return False
            joining, self._joining = self._joining, deque()
            task = self._tasks.popleft() if self._tasks else None
        for kind, job in joining:
            self._join(kind, job)
        if task is not None and task.done.set_running_or_notify_cancel():
            try:
                task.done.set_result(task.do())
            except Exception as error:  # belongs to the caller of the task
                task.done.set_exception(error)
        return True

    @property
    def _busy(self) -> bool:
        return any(not batch.idle for batch in self._batches.values())

    def _join(self, kind: _Kind, job: Job) -> None:
        try:
            if kind not in self._batches:
                self._drop_idle(MOST_IDLE)
                self._batches[kind] = self._batch(kind)
            self._batches[kind].add(job)
        except Exception as error:  # belongs to the request
            job.end(error)

    def _batch(self, kind: _Kind) -> LiveBatch:
        engine = TransformersEngine(
            self._model,
            self._tokenizer,
            kind.decoding,
            max_new_tokens=kind.limit,
            batch_tokens=self._room,
            stop=kind.stop,
            contrast=kind.contrast,
            seed=self._seed,
        )
        return LiveBatch(engine, lambda: self._held(kind))

    def _held(self, kind: _Kind) -> int:
        return sum(batch.positions for other, batch in self._batches.items() if other != kind)

    def _drop_idle(self, kept: int) -> None:
        idle = [kind for kind, batch in self._batches.items() if batch.idle]
        for kind in idle[: max(0, len(idle) - kept)]:
            del self._batches[kind]

    def _load(self, adapter: Artifact) -> None:
        name = adapter.manifest.fingerprint
        known = getattr(self._model, "peft_config", {})
        if name in known:
            return
        if not known:  # the first adapter changes the layers of the base model, so no answer may be in flight
            while self._busy:
                for batch in self._batches.values():
                    batch.step()
        try:
            self._model = load_adapter(self._model, adapter.folder / "adapter", name=name)
        except UserError:
            if known and name in self._model.peft_config:
                self._model.delete_adapter(name)
            raise
        self._model.set_adapter(name, inference_mode=True)
        self._drop_idle(0)  # they know the layers as they were
        self._scorer = None

    def _delete(self, name: str) -> None:
        if name in getattr(self._model, "peft_config", {}):
            self._model.delete_adapter(name)

    def _score(self, adapter: str | None, pair: TokenPair) -> Logps:
        with _only(self._model, adapter):
            if self._scorer is None:
                on_cpu = self._model.device.type == "cpu"  # elsewhere, the best strategy would change the attention
                self._scorer = Scorer(self._model, self._score_tokens, strategy=None if on_cpu else "plain")
            return self._scorer.score([pair])[0]


@contextmanager
def _only(model: Any, adapter: str | None) -> Iterator[None]:
    """Make an adapter the active one within the block; None for the base model."""
    if not hasattr(model, "peft_config"):
        yield
    elif adapter is None:
        with model.disable_adapter():
            yield
    else:
        active = model.active_adapter
        model.set_adapter(adapter, inference_mode=True)
        try:
            yield
        finally:
            model.set_adapter(active, inference_mode=True)
