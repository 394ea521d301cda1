"""Garbage collection: what configurations ask for and what was accepted stays in a store; the rest can be removed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nextquill_core.errors import UserError
from nextquill_core.pipeline import lineage
from nextquill_core.pipeline.run import OpenRun, Run
from nextquill_core.pipeline.sweep_points import stored_sweeps
from nextquill_core.studies.reproduce import reproduction_step, whole_table
from storage import Artifact, Store
from storage.garbage import Name, StoredItem
from storage.pointers import pointer_names, read_pointer
from storage.stored_json import expect_form


def current(runs: Sequence[Run], open_run: OpenRun) -> set[Name]:
    """Return the artifacts that these configurations ask for.

    They are the stages and everything behind them, sweeps over the configurations, their reproduction and the newest
    studies of their data if the store has these, and the val likelihoods by which their adapters are accepted.

    Args:
        runs: The runs of the configurations.
        open_run: Opens a configuration.

    Raises:
        UserError: As `open_run`.
    """
    wanted: set[Name] = set()
    for run in runs:
        pictured = [run.plan.evaluation.clusters] if run.plan.evaluation.clusters else []
        wanted |= {step.address for step in lineage(*run.plan.stages, run.plan.evaluate, *pictured)}
        wanted |= {("sweep", one.manifest.fingerprint) for one in stored_sweeps(run, open_run)}
        wanted |= _studies(run)
        judged = run.config.evaluate.model_copy(
            update={"split": "val", "methods": tuple(run.plan.train), "control": "none"}
        )
        on_val = open_run(run.config.model_copy(update={"evaluate": judged}))
        wanted |= {step.address for step in on_val.plan.evaluation.likelihoods.values()}
    for together in (list(runs), *([run] for run in runs)):
        wanted |= _reproduction(together, open_run)
    return wanted


def accepted(store: Store) -> dict[Name, list[str]]:
    """Return the artifacts that are accepted, or were before, with the names under which they are.

    `promote --back` needs the target before the present one, so that stays too; older ones do not. The measurement by
    which a target was accepted stays with it.
    """
    found: dict[Name, list[str]] = {}
    for name in pointer_names(store):
        if pointer := read_pointer(store, name):
            for target in (pointer.target, *pointer.before[:1]):
                for ref in target.refs:
                    found.setdefault((ref.kind, ref.fingerprint), []).append(name)
    return found


def what(held: StoredItem) -> str:
    """Describe an artifact in a few words: its method, decoding preset, fold and so on."""
    identity = held.manifest.identity if held.manifest else {}
    words = [str(identity[key]) for key in ("method", "decoding", "split") if identity.get(key)]
    if identity.get("past") not in (None, "own"):
        words.append(str(identity["past"]))
    recipe = identity.get("recipe")
    if isinstance(recipe, Mapping) and held.manifest:
        words.insert(0, str(held.manifest.stats.get("method", "")))
    if isinstance(fold := identity.get("fold"), Mapping):
        words.append(f"without fold {fold.get('leave_out')} of {fold.get('of')}")
    return " ".join(word for word in words if word)


def _reproduction(runs: Sequence[Run], open_run: OpenRun) -> set[Name]:
    """Return the reproduction over these configurations and what it is made from, if the store has it."""
    if next(runs[0].store.newest_first("reproduction"), None) is None:
        return set()
    try:
        table = reproduction_step([open_run(whole_table(run.config)) for run in runs])
    except UserError:
        return set()  # its inputs are gone, so no command can ask for it
    if runs[0].store.find(table.kind, table.fingerprint) is None:
        return set()
    return {step.address for step in lineage(table)}


def _studies(run: Run) -> set[Name]:
    """Return the newest page of each study of a configuration's data, with all that its cells are made from."""
    found: set[Name] = set()
    seen: set[tuple[str, ...]] = set()
    for artifact in run.store.newest_first("study"):
        with expect_form(artifact.location, "delete it"):
            names = tuple(study["name"] for study in artifact.manifest.identity["studies"])
        behind = _origins(run.store, artifact)
        if names not in seen and run.plan.ingest.address in behind:
            found |= behind
            seen.add(names)
    return found


def _origins(store: Store, artifact: Artifact) -> set[Name]:
    """Return an artifact and everything that it was made from, by the manifests in the store."""
    found: set[Name] = set()
    waiting = [artifact.ref]
    while waiting:
        ref = waiting.pop()
        name = ref.kind, ref.fingerprint
        if name not in found:
            found.add(name)
            known = store.find(*name)
            waiting += known.manifest.inputs if known else ()
    return found
