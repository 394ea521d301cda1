"""What of a store is still wanted: what configurations ask for, what was accepted, and what these are made from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from nextquill_core.config import Config
from nextquill_core.errors import UserError
from nextquill_core.pipeline.run import Run
from nextquill_core.studies.reproduce import reproduction_step, whole_table
from nextquill_core.studies.sweep import all_steps, open_points, steps_behind, sweep_step
from storage import Store
from storage.documents import form_expected
from storage.garbage import Held, Name
from storage.pointers import pointer_names, read_pointer

OpenRun = Callable[[Config], Run]


def current(runs: Sequence[Run], open_run: OpenRun) -> set[Name]:
    """What these configurations ask for: their stages, the sweeps over them and their reproduction, if they are there,
    and what their adapters are judged by on val.

    Raises:
        UserError: What `open_run` raises.
    """
    wanted: set[Name] = set()
    for run in runs:
        steps = [*run.plan.stages, *all_steps(run.plan)]
        wanted |= {(step.kind, step.fingerprint) for stage in steps for step in steps_behind(stage)}
        wanted |= {("sweep", name) for name in _sweeps(run, open_run)}
        judged = run.config.evaluate.model_copy(
            update={"split": "val", "methods": tuple(run.plan.train), "control": "none"}
        )
        on_val = open_run(run.config.model_copy(update={"evaluate": judged}))
        wanted |= {(step.kind, step.fingerprint) for step in on_val.plan.evaluation.likelihoods.values()}
    for together in (list(runs), *([run] for run in runs)):
        wanted |= _reproduction(together, open_run)
    return wanted


def accepted(store: Store) -> dict[Name, list[str]]:
    """By artifact, the names that point at it, or did so before they last moved; with what it was judged by.

    A step back needs the target before; those before that stay only as long as something else needs them.
    """
    found: dict[Name, list[str]] = {}
    for name in pointer_names(store):
        if pointer := read_pointer(store, name):
            for target in (pointer.target, *pointer.before[:1]):
                for ref in target.refs:
                    found.setdefault((ref.kind, ref.fingerprint), []).append(name)
    return found


def what(held: Held) -> str:
    """What an artifact holds, in a few words: its method, decoding preset, fold, ..."""
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
    """The paper's table on these configurations and what it is made from, if it is there."""
    if next(runs[0].store.newest_first("reproduction"), None) is None:
        return set()
    try:
        table = reproduction_step([open_run(whole_table(run.config)) for run in runs])
    except UserError:
        return set()  # what it needs is not to be had any more, so it could not be asked for
    if runs[0].store.find(table.kind, table.fingerprint) is None:
        return set()
    return {(step.kind, step.fingerprint) for step in steps_behind(table)}


def _sweeps(run: Run, open_run: OpenRun) -> Iterator[str]:
    """The sweeps in the store that are over this configuration: their grids laid over it give their fingerprints."""
    for artifact in run.store.newest_first("sweep"):
        grid: dict[str, list[Any]] = {}
        try:
            with form_expected(artifact.location, "delete it"):
                for point in artifact.manifest.identity["points"]:
                    for key, value in point.items():
                        if value not in (values := grid.setdefault(key, [])):
                            values.append(value)
            same = sweep_step(open_points(run.config, grid, open_run)).fingerprint
        except UserError:
            continue  # its keys do not fit this configuration, so it is another's
        if same == artifact.manifest.fingerprint:
            yield same
