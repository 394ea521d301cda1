"""Whether the artifact of a step can be reused, and if not, why.

An artifact is up to date ("fresh") if the store has it whole and each of its inputs is the one that it was made from.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from nextquill_core.pipeline.step import Step, lineage
from storage import Artifact, Store, differences
from storage.garbage import CachedStore

State = Literal["fresh", "stale", "missing", "running", "failed", "interrupted"]
INTERRUPTED = "stopped before it was done; the same command resumes it"


@dataclass(frozen=True)
class Freshness:
    """The state of a step's artifact in a store.

    Attributes:
        state: What `nextquill status` shows.
        why: What makes it stale, or why making it failed; "" where there is nothing to say.
        artifact: The committed artifact, also where it is stale or being made again.
    """

    state: State
    why: str = ""
    artifact: Artifact | None = None


def freshness(store: Store, step: Step) -> Freshness:
    """Return the state of a step's artifact; nothing is locked or written."""
    artifact = store.find(step.kind, step.fingerprint)
    progress, message = store.progress(step.kind, step.fingerprint)
    if artifact is None and progress != "running":
        store.refresh(step.kind, step.fingerprint)  # it may have been committed after `find`
        artifact = store.find(step.kind, step.fingerprint)
    if progress == "running":
        return Freshness("running", "", artifact)
    if artifact is not None:
        why = outdated(store, step, artifact)
        if why and (store.progress(step.kind, step.fingerprint)[0] == "running" or store.successor(artifact)):
            return freshness(store, step)  # its writer began or finished meanwhile
        return Freshness("stale" if why else "fresh", why, artifact)
    if progress == "failed":
        return Freshness("failed", message)
    if progress == "interrupted":
        return Freshness("interrupted", INTERRUPTED)
    if fault := store.manifest_fault(step.kind, step.fingerprint):
        return Freshness("stale", fault)
    older = next((found for found in store.newest_first(step.kind) if _earlier_form(found, step)), None)
    if older is None:
        return Freshness("missing")
    changes = list(_explained(store, dict(older.manifest.identity), step))
    return Freshness("stale", "; ".join(changes[:3]) + (f"; and {len(changes) - 3} more" if len(changes) > 3 else ""))


def outdated(store: Store, step: Step, artifact: Artifact) -> str:
    """Return why a committed artifact may not be reused, or "".

    It may not if a file is damaged or missing, or if an input is gone, was made again differently, or is itself stale.

    Args:
        store: The store.
        step: The step that asks for it.
        artifact: The committed artifact of the step.
    """
    return _outdated(store, step, artifact, {})


class FreshnessCache:
    """Remembers the answers of `freshness` while one command runs, so that each step is looked up once.

    Commits of this process update the answers. Another process may change the store at any time, so an answer decides
    what to try, and `Run.make` looks again when it holds the artifact's lock.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.clear()

    def __call__(self, step: Step) -> Freshness:
        """Return the state of a step's artifact, looked up or remembered."""
        if step.address not in self._known:
            self._known[step.address] = step, freshness(self._view, step)
        return self._known[step.address][1]

    def committed(self, step: Step, artifact: Artifact) -> None:
        """Remember that this process made an artifact, and look up again what a new artifact may have outdated.

        Steps without an artifact stay as they are: a change of their inputs does not give them one.
        """
        self._view = CachedStore(self._store)
        for address, (other, known) in list(self._known.items()):
            if known.artifact is not None and step.address in {one.address for one in lineage(other)}:
                del self._known[address]
        self._known[step.address] = step, Freshness("fresh", "", artifact)

    def discard(self, step: Step) -> None:
        """Forget the answer for one step, whose state is about to change."""
        self._known.pop(step.address, None)

    def clear(self) -> None:
        """Forget everything, after something other than `Run.make` changed the store."""
        self._view = CachedStore(self._store)
        self._known: dict[tuple[str, str], tuple[Step, Freshness]] = {}


def _outdated(store: Store, step: Step, artifact: Artifact, known: dict[str, str]) -> str:
    """As `outdated`; `known` holds the answers by fingerprint, since steps share their inputs."""
    if step.fingerprint not in known:
        fault = store.fault(artifact)
        while fault and (newer := store.successor(artifact)):
            artifact = newer
            fault = store.fault(artifact)
        known[step.fingerprint] = fault or _stale_input(store, step, artifact, known)
    return known[step.fingerprint]


def _stale_input(store: Store, step: Step, artifact: Artifact, known: dict[str, str]) -> str:
    recorded = {(ref.kind, ref.fingerprint): ref.content for ref in artifact.manifest.inputs}
    for origin in step.inputs:
        current = store.find(origin.kind, origin.fingerprint)
        if current is None:
            return f"its input {origin.name} is missing"
        if current.manifest.content != recorded.get((origin.kind, origin.fingerprint)):
            return f"its input {origin.name} was made again and differs"
        if why := _outdated(store, origin, current, known):
            return f"its input {origin.name} is stale: {why}"
    return ""


def _earlier_form(artifact: Artifact, step: Step) -> bool:
    """Return whether an older artifact was made for an earlier form of this step, not for another method or fold."""
    return all(
        artifact.manifest.identity.get(key) == step.settings.get(key)
        for key in ("recipe", "fold", "method", "decoding", "split", "past", "encoder")
    )


def _explained(store: Store, old: dict[str, Any], step: Step) -> Iterator[str]:
    """Yield the settings that differ, of this step and of its inputs.

    Inputs that were added or removed follow from settings, so they are named only where no setting differs.
    """
    new = dict(step.identity)
    old_inputs, new_inputs = old.pop("inputs", {}), new.pop("inputs", {})
    changes, moved = list(differences(old, new)), []
    origins = {origin.name: origin for origin in step.inputs}
    for name in sorted(old_inputs.keys() | new_inputs.keys()):
        before, after = old_inputs.get(name), new_inputs.get(name)
        if before == after:
            continue
        origin = origins.get(name)
        earlier = store.find(origin.kind, before) if origin and before else None
        if origin and earlier:
            above = _explained(store, dict(earlier.manifest.identity), origin)
            changes += (f"{name}: {change}" for change in above)
        elif before and after:
            changes.append(f"input {name} {before} → {after}")
        else:
            moved.append(f"input {name} {before or '(absent)'} → {after or '(absent)'}")
    yield from changes or moved
