"""Which methods are served from which artifacts: the accepted adapters, their base model, and the newest histories."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from nextquill_core.config import ModelConfig
from nextquill_core.errors import UserError
from nextquill_core.methods.registry import METHODS
from nextquill_core.pipeline.predict import chosen_strength
from nextquill_core.pipeline.run import Run
from nextquill_core.pipeline.writing import (
    Origin,
    adapter_origin,
    method_prompter,
    run_origin,
    sane_decoding,
    writing_method,
)
from nextquill_core.plugins import suggestion
from nextquill_core.registry.promote import accepted
from nextquill_core.writing.histories import Histories
from nextquill_core.writing.prompter import Prompter
from storage import Artifact, InputRef, Store
from storage.pointers import Pointer, is_unchanged, read_pointer


@dataclass(frozen=True)
class ServedMethod:
    """A method that drafts can be asked of.

    Attributes:
        origin: Its model, prompts and adapter.
        prompter: Makes its prompts and drafts.
    """

    origin: Origin
    prompter: Prompter

    @property
    def name(self) -> str:
        """Name of the method."""
        return self.origin.method.name

    @property
    def adapter(self) -> str | None:
        """Fingerprint of its adapter; None for a method without one."""
        return self.prompter.identity.adapter

    @property
    def model_id(self) -> str:
        """Its name among the server's models: the adapter's fingerprint, or the method's name without an adapter."""
        return self.adapter or self.name


@dataclass(frozen=True)
class Selection:
    """The artifacts and settings behind a catalog; two equal selections serve the same.

    Attributes:
        default: Name of the method that answers where a request names none.
        base: The base model of all methods.
        ingest: The artifact with the histories.
        adapters: Method, adapter and strength of steering of each served method.
        sane: How the preset `sane` decodes.
        forget: Users who must not appear.
    """

    default: str
    base: ModelConfig
    ingest: InputRef
    adapters: tuple[tuple[str, InputRef | None, float | None], ...]
    sane: str
    forget: frozenset[str]


@dataclass(frozen=True)
class Catalog:
    """The served methods.

    Attributes:
        selection: What they are made from.
        methods: The methods by name, the default one first.
        left_out: Why other methods of the configuration are not served, by name.
        histories: The stored users and items.
        ids_of: Returns the ids that a user may have in the store; none for a user who is to be forgotten.
        delta: The effect above which a token is a preference token.
    """

    selection: Selection
    methods: Mapping[str, ServedMethod]
    left_out: Mapping[str, str]
    histories: Histories
    ids_of: Callable[[str], tuple[str, ...]]
    delta: float

    @property
    def default(self) -> ServedMethod:
        """The method that answers where a request names none."""
        return self.methods[self.selection.default]

    @property
    def models(self) -> dict[str, str]:
        """The name of each method's model, by the method's name."""
        return {name: one.model_id for name, one in self.methods.items()}

    def find(self, name: str | None) -> ServedMethod | None:
        """Return a method by its name or the name of its model, or None; without a name, the default one."""
        if name is None:
            return self.default
        return self.methods.get(name) or next((one for one in self.methods.values() if one.model_id == name), None)

    def without(self, names: Mapping[str, str]) -> Catalog:
        """Return the catalog without some methods.

        Args:
            names: Why each is left out, by name.
        """
        kept = {name: one for name, one in self.methods.items() if name not in names}
        return replace(self, methods=kept, left_out={**self.left_out, **names})


class CatalogReader:
    """Reads what is to be served.

    Args:
        open_run: Opens the configuration with the store as it is now.
        method: Name of the default method; None for `train.method`.
        pointer: Name under which its adapter was accepted; None for the method whose adapter it is.
    """

    def __init__(self, open_run: Callable[[], Run], method: str | None = None, pointer: str | None = None) -> None:
        self._open_run, self._method, self._pointer = open_run, method, pointer
        self._run: Run | None = None
        self._pointers: frozenset[str] = frozenset()

    def read(self, known: Catalog | None = None) -> Catalog:
        """Return the catalog, or the known one if nothing has changed since.

        Raises:
            UserError: The default method cannot be served: its adapter, its base model or the histories are missing.
        """
        run = self._run = self._open_run()
        default = self._method or run.config.train.method
        pointers = {default: self._pointer or METHODS[default].trained_as}
        origins = {default: _origin(run, default, pointers[default])}
        strengths = {default: _strength(run, origins[default])}
        left_out: dict[str, str] = {}
        for name in dict.fromkeys(run.config.evaluate.methods):
            if name == default:
                continue
            pointers[name] = METHODS[name].trained_as
            try:
                origin = _origin(run, name, pointers[name])
                if origin.model != origins[default].model:
                    raise UserError(f"its base model is another one than that of {default}")
                origins[name], strengths[name] = origin, _strength(run, origin)
            except UserError as error:
                left_out[name] = str(error)
        self._pointers = frozenset(pointers.values())
        ingest = _ingest(run, origins[default].adapter)
        selection = Selection(
            default,
            origins[default].model,
            ingest.ref,
            tuple((name, origin.ref, strengths[name]) for name, origin in origins.items()),
            sane_decoding(run),
            run.privacy.forget,
        )
        if known is not None and known.selection == selection:
            return known
        histories = Histories(ingest.folder)
        methods = {
            name: ServedMethod(origin, method_prompter(run, origin, ingest, histories))
            for name, origin in origins.items()
        }
        return Catalog(selection, methods, left_out, histories, run.privacy.stored_ids, run.config.weights.delta)

    @property
    def store(self) -> Store:
        """The store that was read last."""
        if self._run is None:
            raise ValueError("nothing has been read yet")
        return self._run.store

    def signs(self) -> tuple[object, ...]:
        """Return what changes at once when another adapter is accepted or another user is to be forgotten.

        It costs a look at some small files; other changes show when the catalog is read again.
        """
        if self._run is None:
            return ()
        store, forget = self._run.store, self._run.config.privacy.forget
        return (*(_pointer(store, name) for name in sorted(self._pointers)), _stamp(forget))

    def gone(self, catalog: Catalog) -> str:
        """Return which artifact of a catalog is no longer in the store as it was, or ""."""
        refs = [catalog.selection.ingest, *(ref for _, ref, _ in catalog.selection.adapters if ref)]
        for ref in refs:
            if not is_unchanged(self.store, ref):
                return f"{ref.kind} {ref.fingerprint} is no longer in the store as it was"
        return ""


def _origin(run: Run, name: str, pointer: str) -> Origin:
    """Return what a method is served with: the accepted adapter, or the configuration's own where none is accepted."""
    method = writing_method(name)
    if (method.training is None and method.adapter is None) or read_pointer(run.store, pointer) is None:
        return run_origin(run, name)
    adapter = accepted(run, pointer)
    if fault := run.store.fault(adapter):
        raise UserError(f"the accepted adapter cannot be used: {fault}", adapter.location, "train it again")
    return adapter_origin(run.store, method, adapter)


def _strength(run: Run, origin: Origin) -> float | None:
    return chosen_strength(run, origin.method) if origin.method.steered else None


def _ingest(run: Run, adapter: Artifact | None) -> Artifact:
    """Return the histories of the raw files as they are now, or those behind an adapter until these are made."""
    step = run.plan.ingest
    found = run.store.find(step.kind, step.fingerprint)
    if found is None and adapter is not None:
        ref = next((ref for ref in adapter.manifest.inputs if ref.kind == step.kind), None)
        found = run.store.find(ref.kind, ref.fingerprint) if ref else None
    return found if found is not None else run.artifact(step)


def _pointer(store: Store, name: str) -> Pointer | str | None:
    try:
        return read_pointer(store, name)
    except UserError as error:
        return str(error)


def _stamp(path: str | None) -> tuple[int, int] | None:
    try:
        found = Path(path).expanduser().stat() if path else None
    except OSError:
        return None
    return (found.st_mtime_ns, found.st_size) if found else None


def unknown_model(catalog: Catalog, name: str) -> str:
    """Return one line about a model or method that is not served.

    Args:
        catalog: What is served.
        name: The name.
    """
    reason = catalog.left_out.get(name)
    known = [*catalog.methods, *(one.model_id for one in catalog.methods.values())]
    return f"`{name}` is not served: {reason or suggestion(name, list(dict.fromkeys(known)))}"
