"""What answers at the moment, and how it is exchanged while requests are answered.

A request keeps the deployment with which it began. An adapter is released when the last request that uses it has ended.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from nextquill_core.config import ModelConfig
from nextquill_core.errors import UserError
from nextquill_core.serving.backend import Backend
from nextquill_core.serving.catalog import Catalog, CatalogReader, ServedMethod

logger = logging.getLogger(__name__)
REREAD_S = 60.0

Probe = Callable[[Backend, ServedMethod], str]
"""Proves that a backend serves the adapter of a method; returns one line, or raises UserError."""


class Deployment:
    """A catalog with the backend that answers for it.

    Attributes:
        catalog: The served methods.
        backend: Where their models are.
        users: Number of requests that use it.
    """

    def __init__(self, catalog: Catalog, backend: Backend) -> None:
        self.catalog, self.backend = catalog, backend
        self.users = 0

    @property
    def adapters(self) -> set[str]:
        """The fingerprints of its adapters."""
        return {one.adapter for one in self.catalog.methods.values() if one.adapter}


class Rollout:
    """Keeps the deployment up to date with the store.

    Args:
        reader: Reads what is to be served.
        open_backend: Opens the backend of a base model.
        probe: Proves that an adapter is served, before any request gets it.
        reread_s: Seconds after which the whole catalog is read again, for changes that give no sign.
    """

    def __init__(
        self,
        reader: CatalogReader,
        open_backend: Callable[[ModelConfig], Backend],
        probe: Probe,
        reread_s: float = REREAD_S,
    ) -> None:
        self._reader, self._open_backend, self._probe, self._reread_s = reader, open_backend, probe, reread_s
        self._lock = threading.Lock()
        self._signs: tuple[object, ...] = ()
        self._read_at = 0.0
        self._retired: list[Deployment] = []
        self.current: Deployment | None = None
        self.problem = ""
        self.failures = 0

    def start(self) -> Deployment:
        """Deploy what the store has now.

        Raises:
            UserError: The default method cannot be served, or its adapter does not pass the probe.
        """
        self.current = self._deployed(self._read(None))
        return self.current

    @contextmanager
    def used(self) -> Iterator[Deployment | None]:
        """Yield the deployment, or None if it was withdrawn; its adapters stay loaded within the block."""
        with self._lock:
            found = self.current
            if found is not None:
                found.users += 1
        try:
            yield found
        finally:
            if found is not None:
                with self._lock:
                    found.users -= 1

    def look(self) -> None:
        """Deploy what has changed in the store; an error is logged, and the earlier deployment stays.

        It is withdrawn only if one of its artifacts is no longer in the store, as after users were forgotten.
        """
        self._release()
        due = time.monotonic() - self._read_at >= self._reread_s
        if not (due or self._signs != self._reader.signs()):
            return
        current = self.current
        try:
            catalog = self._read(current.catalog if current else None)
            if current is None or catalog is not current.catalog:
                self._exchange(self._deployed(catalog))
            self.problem = ""
        except UserError as error:
            self.failures += 1
            if str(error) != self.problem:
                logger.warning("the deployment stays as it is", extra={"reason": str(error)})
            self.problem = str(error)
            if current is not None and (gone := self._reader.gone(current.catalog)):
                logger.error("the deployment is withdrawn", extra={"reason": gone})
                self.problem = f"{gone}; {error}"
                self._exchange(None)
        self._release()

    def close(self) -> None:
        """Close the backends."""
        for backend in {id(one.backend): one.backend for one in self._known()}.values():
            backend.close()

    def _exchange(self, new: Deployment | None) -> None:
        with self._lock:
            if self.current is not None:
                self._retired.append(self.current)
            self.current = new

    def _read(self, known: Catalog | None) -> Catalog:
        self._read_at = time.monotonic()
        try:
            return self._reader.read(known)
        finally:
            self._signs = self._reader.signs()

    def _deployed(self, catalog: Catalog) -> Deployment:
        """Return a deployment of a catalog whose adapters are loaded and have passed the probe."""
        backend = self._backend_of(catalog)
        started = not any(one.backend is backend for one in self._known())
        loaded = {name for one in self._known() if one.backend is backend for name in one.adapters}
        refused: dict[str, str] = {}
        added: list[str] = []
        try:
            for served in reversed(list(catalog.methods.values())):  # the default method is loaded last
                if served.origin.adapter is None or served.adapter in (*loaded, *added):
                    continue  # methods may share an adapter
                added.append(served.model_id)
                try:
                    backend.load(served.origin.adapter)
                    logger.info("probed", extra={"method": served.name, "result": self._probe(backend, served)})
                except UserError as error:
                    backend.unload(added.pop())
                    if served.name == catalog.selection.default:
                        raise
                    refused[served.name] = str(error)
        except BaseException:
            if started:
                backend.close()
            else:
                for name in added:
                    backend.unload(name)
            raise
        for name, reason in {**catalog.left_out, **refused}.items():
            logger.info("not served", extra={"method": name, "reason": reason})
        found = Deployment(catalog.without(refused) if refused else catalog, backend)
        facts = {"models": found.catalog.models, "history": catalog.selection.ingest.fingerprint}
        logger.info("deployed", extra=facts)
        return found

    def _backend_of(self, catalog: Catalog) -> Backend:
        current = self.current
        if current is not None and current.catalog.selection.base == catalog.selection.base:
            return current.backend
        return self._open_backend(catalog.selection.base)

    def _known(self) -> list[Deployment]:
        return [*self._retired, *([self.current] if self.current else [])]

    def _release(self) -> None:
        """Release the adapters, and the backends, of retired deployments that no request uses any more."""
        with self._lock:
            idle = [one for one in self._retired if not one.users]
            self._retired = [one for one in self._retired if one.users]
        for old in idle:
            sharing = [one for one in self._known() if one.backend is old.backend]
            if not sharing:
                old.backend.close()
                continue
            for name in old.adapters - {name for one in sharing for name in one.adapters}:
                old.backend.unload(name)
