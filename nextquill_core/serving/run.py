"""The process of the server: listen, load, prove, answer, and end within the time that a signal leaves."""

from __future__ import annotations

import functools
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

import uvicorn
from fastapi import FastAPI

from nextquill_core.config import Config, ModelConfig
from nextquill_core.errors import UserError
from nextquill_core.methods.registry import BASE_MODEL
from nextquill_core.pipeline.run import Run
from nextquill_core.serving.app import make_app
from nextquill_core.serving.backend import Backend
from nextquill_core.serving.catalog import CatalogReader, ServedMethod
from nextquill_core.serving.deployment import Rollout
from nextquill_core.serving.probe import probe
from nextquill_core.serving.settings import ServeSettings

logger = logging.getLogger(__name__)


def serve(
    config: Config,
    open_run: Callable[[], Run],
    settings: ServeSettings,
    *,
    method: str | None = None,
    pointer: str | None = None,
    started: Callable[[str, dict[str, str]], None] = lambda url, models: None,
) -> None:
    """Serve until a signal ends the server.

    Args:
        config: The settings of the run.
        open_run: Opens the configuration with the store as it is now.
        settings: Address and limits.
        method: Name of the default method; None for `train.method`.
        pointer: Name under which its adapter was accepted; None for the method's name.
        started: Receives the server's address, and the name of each method's model, when requests are answered.

    Raises:
        UserError: The address is taken, what is to be served is missing, or an adapter does not pass the probe.
    """
    with ExitStack() as held:
        listener = held.enter_context(_listener(settings))
        rollout = make_rollout(config, open_run, method=method, pointer=pointer)
        held.callback(rollout.close)
        deployment = rollout.start()
        held.enter_context(_watched(rollout, settings.poll_s))
        if not settings.on_loopback and settings.key is None:
            logger.warning("anybody who reaches this address reads people's reviews; set a key with --api-key-env")
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        models = deployment.catalog.models
        url = f"http://{host}:{listener.getsockname()[1]}"
        _run(make_app(rollout, settings), listener, settings.drain_s, lambda: started(url, models))


def make_rollout(
    config: Config, open_run: Callable[[], Run], *, method: str | None = None, pointer: str | None = None
) -> Rollout:
    """Return the rollout of a configuration, whose engine decides where the models run.

    Args:
        config: The settings of the run.
        open_run: As for `serve`.
        method: As for `serve`.
        pointer: As for `serve`.
    """
    reader = CatalogReader(open_run, method, pointer)

    def proved(backend: Backend, served: ServedMethod) -> str:
        if config.evaluate.engine != "openai":
            return probe(backend, served, reader.store)
        with ExitStack() as held:
            here = functools.cache(lambda: held.enter_context(_opened_here(config, served)))
            return probe(
                backend, served, reader.store, lambda pair: here().score(served.adapter, pair).result()[0].tolist()
            )

    return Rollout(reader, functools.partial(open_backend, config), proved)


def open_backend(config: Config, base: ModelConfig) -> Backend:
    """Return the backend that `evaluate.engine` names.

    Args:
        config: The settings of the run.
        base: The base model.

    Raises:
        UserError: The server of `evaluate.server` cannot be used.
        ModelError: The model cannot be loaded.
    """
    if config.evaluate.engine == "openai":
        from nextquill_core.model.identity import base_name
        from nextquill_core.model.loading import load_tokenizer
        from nextquill_core.serving.upstream_backend import UpstreamBackend

        name = config.evaluate.server.models.get(BASE_MODEL) or base_name(base.name_or_path, base.revision).name
        return UpstreamBackend(config.evaluate.server, name, load_tokenizer(base), seed=config.seed)
    return _local_backend(config, base)


def _local_backend(config: Config, base: ModelConfig) -> Backend:
    from nextquill_core.serving.local_backend import LocalBackend

    return LocalBackend(
        base,
        batch_tokens=config.evaluate.batch_tokens,
        score_tokens=config.score.batch_tokens,
        seed=config.seed,
    )


@contextmanager
def _opened_here(config: Config, served: ServedMethod) -> Iterator[Backend]:
    """Load the model and the adapter of a method in this process for the duration of a block."""
    backend = _local_backend(config, served.origin.model)
    try:
        if served.origin.adapter is not None:
            backend.load(served.origin.adapter)
        yield backend
    finally:
        backend.close()


@contextmanager
def _listener(settings: ServeSettings) -> Iterator[socket.socket]:
    """Take the address, before anything that takes long is loaded."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:  # the second for a name whose parts are empty or too long
        raise UserError(
            f"no such address ({getattr(error, 'strerror', 'not a host name')})",
            f"--host {settings.host}",
            "name one of this machine",
        ) from None
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError as error:
            where = f"{settings.host}:{settings.port}"
            raise UserError(f"cannot listen there ({error.strerror})", where, "name another with --port") from None
        yield listener


@contextmanager
def _watched(rollout: Rollout, every_s: float) -> Iterator[None]:
    """Look for changes of the store within the block."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(every_s):
            try:
                rollout.look()
            except Exception:  # a look that fails must not be the last one
                logger.exception("a look at the store failed")

    thread = threading.Thread(target=watch, name="watch-store", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()


class _Server(uvicorn.Server):
    """A server that says when it listens, and that obeys a signal without raising it again.

    Args:
        config: Settings of the server.
        started: Called then.
    """

    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._call_started = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen."""
        await super().startup(sockets)
        self._call_started()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop listening, and end once the requests in flight have ended."""
        self.should_exit = True


def _run(app: FastAPI, listener: socket.socket, drain_s: float, started: Callable[[], None]) -> None:
    """Answer requests until a signal, and then let those in flight end."""
    settings = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        timeout_graceful_shutdown=max(1, round(drain_s)),
    )
    _Server(settings, started).run(sockets=[listener])
    logger.info("ended")
