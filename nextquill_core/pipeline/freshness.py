"""How an artifact stands against the step that asks for it, and why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from nextquill_core.pipeline.step import Step
from storage import Artifact, Store, differences

State = Literal["fresh", "stale", "missing", "running", "failed", "interrupted"]
INTERRUPTED = "stopped before it was done; the same command resumes it"


@dataclass(frozen=True)
class Freshness:
    """Whether a step's artifact is there and still what its configuration and inputs ask for."""

    state: State
    why: str = ""
    artifact: Artifact | None = None


def freshness(store: Store, step: Step) -> Freshness:
    """Look at the store and return how a step's artifact stands, and why; nothing is locked or written."""
    artifact = store.find(step.kind, step.fingerprint)
    progress, message = store.progress(step.kind, step.fingerprint)
    if artifact is None and progress != "running":
        store.look_again(step.kind, step.fingerprint)  # it may have been committed between the two looks
        artifact = store.find(step.kind, step.fingerprint)
    if progress == "running":
        return Freshness("running", "", artifact)
    if artifact is not None:
        why = outdated(store, step, artifact)
        if why and (store.progress(step.kind, step.fingerprint)[0] == "running" or store.successor(artifact)):
            return freshness(store, step)  # its writer began, or was done, during this look
        return Freshness("stale" if why else "fresh", why, artifact)
    if progress == "failed":
        return Freshness("failed", message)
    if progress == "interrupted":
        return Freshness("interrupted", INTERRUPTED)
    if fault := store.manifest_fault(step.kind, step.fingerprint):
        return Freshness("stale", fault)
    older = next((found for found in store.newest_first(step.kind) if _same_line(found, step)), None)
    if older is None:
        return Freshness("missing")
    changes = list(_explained(store, dict(older.manifest.identity), step))
    return Freshness("stale", "; ".join(changes[:3]) + (f"; and {len(changes) - 3} more" if len(changes) > 3 else ""))


def outdated(store: Store, step: Step, artifact: Artifact) -> str:
    """Return why a committed artifact may not be reused, or "".

    A file of it is damaged or missing, or one of its inputs is gone, was made again differently, or is itself stale.
    """
    return _outdated(store, step, artifact, {})


def _outdated(store: Store, step: Step, artifact: Artifact, known: dict[str, str]) -> str:
    """As `outdated`; `known` holds the answers of this look by fingerprint, since steps share their inputs."""
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


def _same_line(artifact: Artifact, step: Step) -> bool:
    """Whether an older artifact is an earlier form of this step, and not another method's or fold's."""
    return all(
        artifact.manifest.identity.get(key) == step.settings.get(key)
        for key in ("recipe", "fold", "method", "decoding", "split", "past", "encoder")
    )


def _explained(store: Store, old: dict[str, Any], step: Step) -> Iterator[str]:
    """The differing settings, here and further up; inputs that came or went, which follow from such, only where there
    are none."""
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
