"""Comparison of two evaluations: finding them by name, what differs in their settings, and rows of their results.

Nothing is made, written or locked in a store.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nextquill_core.analysis.comparison_page import ComparedRun, Comparison, Overlap, ValueDifference
from nextquill_core.config import Config, load_config
from nextquill_core.config.loading import operational_keys
from nextquill_core.config.packaged import ENDINGS, config_names, config_path
from nextquill_core.errors import UserError
from nextquill_core.evaluation.between_runs import matched, paired_rows, shared_scores, unpaired_rows
from nextquill_core.evaluation.metrics import AUTHOR, BERTSCORE, JUDGE, METRICS, ExampleScores, known_metrics
from nextquill_core.evaluation.significance import SAMPLES
from nextquill_core.evaluation.tables import ALL, NO_TEXTS, Key
from nextquill_core.ingest.reader import read_examples
from nextquill_core.pipeline.evaluate import Results, read_results, read_scores
from nextquill_core.pipeline.run import OpenRun
from storage import Artifact, Store
from storage.manifest import MANIFEST_NAME
from storage.remote import open_store
from storage.stored_json import expect_form

EVALUATE = "evaluate"
HOW_TO_NAME = "name a store, the fingerprint of an evaluate artifact (`nextquill status --all` lists them) or a config"
FINGERPRINT = re.compile(r"[0-9a-f]{4,16}")
"""A fingerprint, or its first digits."""
MOST_SAMPLES = 100_000
"""Largest number of resamples, whatever a manifest says."""
NOT_SET = "not set"
_MISSING = object()
OF_THE_DATA = ("ignored_letters", "unspaced_letters", "ceiling", "unread")
"""Fields of the metrics' settings that describe the data."""
ORIGIN = ("model", "template", "code_version", "dirty", "python", "libraries")
"""Fields of a provenance that may explain different numbers; times, hosts and commands do not."""


@dataclass(frozen=True)
class Evaluation:
    """One evaluation to compare.

    Attributes:
        name: What the user called it.
        store: The store that it is in.
        artifact: The evaluation.
    """

    name: str
    store: Store
    artifact: Artifact

    @property
    def split(self) -> str:
        """The split that was measured; "" where the manifest does not say."""
        settings = self.artifact.manifest.identity.get(EVALUATE)
        return str(settings.get("split", "")) if isinstance(settings, Mapping) else ""

    @property
    def samples(self) -> int:
        """The number of resamples that its intervals are made of."""
        settings = self.artifact.manifest.identity.get(EVALUATE)
        found = settings.get("bootstrap_samples") if isinstance(settings, Mapping) else None
        return min(found, MOST_SAMPLES) if isinstance(found, int) and found > 0 else SAMPLES


def find_evaluations(a: str, b: str, store: str | None, open_run: OpenRun) -> tuple[Evaluation, Evaluation]:
    """Return the evaluations that two names mean.

    A name is a store (its latest evaluation), the folder of an evaluate artifact, a YAML file or the name of a packaged
    configuration, or a fingerprint. A fingerprint is looked up in `store`, else in the store that the other name means,
    else in the default store.

    Args:
        a: The first name.
        b: The second name.
        store: A store that replaces those of configurations.
        open_run: Opens a configuration.

    Raises:
        UserError: A name means no evaluation.
    """
    found = {name: _named(name, store, open_run) for name in dict.fromkeys((a, b))}
    known = [one.store for one in found.values() if one]
    place = open_store(store) if store else known[0] if known else open_store(Config().store)
    first, second = (found[name] or _by_fingerprint(name, place) for name in (a, b))
    return first, second


def compare(a: Evaluation, b: Evaluation) -> Comparison:
    """Return all that differs between two evaluations.

    Raises:
        UserError: One of them has no scores of single examples, or a file is damaged.
    """
    results = read_results(a.artifact), read_results(b.artifact)
    (ids_a, scores_a), (ids_b, scores_b) = read_scores(a.artifact), read_scores(b.artifact)
    shown = _measured(results[0]) & _measured(results[1])
    mine, theirs = shared_scores(scores_a, scores_b, shown)
    first, second, changed, notes = _same_examples(a, b, ids_a, ids_b)
    ids = [ids_a[place] for place in first]
    known = sorted({str(row["category"]) for one in results for row in one.rows} - {ALL}, key=len, reverse=True)
    categories = [_category(name, known) for name in ids]
    users = [
        name.removeprefix(f"{category}:").rpartition(":")[0] for name, category in zip(ids, categories, strict=True)
    ]
    overlap = Overlap(len(ids), len(set(users)), len(ids_a) - len(ids), len(ids_b) - len(ids), changed)
    if ids:
        rows = paired_rows(
            {key: scores.take(first) for key, scores in mine.items()},
            {key: scores.take(second) for key, scores in theirs.items()},
            users,
            categories,
            unlike=_unlike(*results),
            samples=max(a.samples, b.samples),
        )
    else:
        models = [
            (one.artifact.manifest.config.get("model"), one.artifact.manifest.provenance.get("model")) for one in (a, b)
        ]
        of_tokens = {key for key in shown if key in METRICS and not METRICS[key].judges_text}
        unlike = _unlike(*results) | (of_tokens if models[0] != models[1] else set())
        rows = unpaired_rows(mine, theirs, unlike=unlike)
    with expect_form(f"{a.artifact.location} or {b.artifact.location}", "evaluate again"):
        settings, operational = setting_differences(a.artifact.manifest.config, b.artifact.manifest.config)
        return Comparison(
            a=_described(a, len(ids_a)),
            b=_described(b, len(ids_b)),
            settings=settings,
            operational=operational,
            origin=list(differing(_origin(a, results[0]), _origin(b, results[1]))),
            overlap=overlap,
            rows=rows,
            notes=[*_same(a, b), *notes, *_only_one_has(scores_a, scores_b, *map(_measured, results))],
        )


def setting_differences(
    config: Mapping[str, Any], other: Mapping[str, Any]
) -> tuple[list[ValueDifference], list[ValueDifference]]:
    """Return the settings that differ: those that decide results, and operational ones.

    Args:
        config: A whole configuration as JSON values, as a manifest has it.
        other: Another one.
    """
    marked = tuple(operational_keys())
    groups: tuple[list[ValueDifference], list[ValueDifference]] = ([], [])
    for found in differing(config, other):
        groups[any(found.key == key or found.key.startswith(f"{key}.") for key in marked)].append(found)
    return groups


def differing(values: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> Iterator[ValueDifference]:
    """Yield the values that differ between two nested mappings, by dotted key.

    The elements of a list of mappings have their position in the key. A mapping that is empty, null or absent on one
    side is shown by the keys of the other side.

    Args:
        values: The first mapping.
        other: The second mapping.
        prefix: Dotted name of the section that both come from.
    """
    for key in dict.fromkeys((*values, *other)):
        mine, theirs = (_by_position(side.get(key, _MISSING)) for side in (values, other))
        if isinstance(mine, Mapping) or isinstance(theirs, Mapping):
            first, second = (side if isinstance(side, Mapping) else {} for side in (mine, theirs))
            yield from differing(first, second, f"{prefix}{key}.")
            mine, theirs = (_MISSING if side is None or isinstance(side, Mapping) else side for side in (mine, theirs))
        if mine != theirs:
            yield ValueDifference(f"{prefix}{key}", _shown(mine), _shown(theirs))


def _by_position(value: Any) -> Any:
    if isinstance(value, list | tuple) and any(isinstance(part, Mapping) for part in value):
        return {str(position): part for position, part in enumerate(value)}
    return value


def _shown(value: Any) -> str:
    if value is _MISSING:
        return NOT_SET
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _named(name: str, store: str | None, open_run: OpenRun) -> Evaluation | None:
    """Return the evaluation of a store, a folder or a configuration; None for what may be a fingerprint."""
    if "://" in name:
        return _latest(name, open_store(name))
    path = Path(name).expanduser()
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except PermissionError:
        raise
    except (OSError, ValueError):  # the name is too long, or has a NUL character
        is_folder, exists = False, False
    if is_folder and (path / MANIFEST_NAME).is_file():
        place = path.resolve()
        return _exactly(name, open_store(str(place.parent.parent)), place.parent.name, place.name)
    if is_folder:
        return _latest(name, open_store(name))
    if exists or name in config_names():
        run = open_run(load_config(config_path(name), [f"store={store}"] if store else []))
        return Evaluation(name, run.store, run.artifact(run.plan.evaluate))
    if FINGERPRINT.fullmatch(name):
        return None
    raise _not_found(name, path)


def _latest(name: str, store: Store) -> Evaluation:
    artifact = next(store.newest_first(EVALUATE), None)
    if artifact is None:
        if faults := store.unreadable(EVALUATE):
            fingerprint, fault = next(iter(faults.items()))
            raise UserError(fault, store.location(EVALUATE, fingerprint), "run `nextquill evaluate` again")
        remedy = "run `nextquill evaluate` with this store, or name another"
        raise UserError("this store has no evaluation", store.location("", "").rstrip("/"), remedy)
    return Evaluation(name, store, artifact)


def _exactly(name: str, store: Store, kind: str, fingerprint: str) -> Evaluation:
    """Return an evaluation by its kind and whole fingerprint.

    Raises:
        UserError: The artifact is of another kind, or its manifest is damaged.
    """
    where = store.location(kind, fingerprint)
    if fault := store.manifest_fault(kind, fingerprint):
        raise UserError(fault, where, f"run `nextquill {EVALUATE}` again, or name another evaluation")
    artifact = store.find(kind, fingerprint)
    if artifact is None or kind != EVALUATE:
        raise UserError(f"the {kind} artifact has no scores of single examples", where, HOW_TO_NAME)
    return Evaluation(name, store, artifact)


def _by_fingerprint(name: str, store: Store) -> Evaluation:
    """Return the evaluation with a fingerprint, of which the first digits are enough.

    Raises:
        UserError: There is none, there are several, or the artifact is of another kind.
    """
    if store.find(EVALUATE, name) or store.manifest_fault(EVALUATE, name):
        return _exactly(name, store, EVALUATE, name)
    known = [artifact.manifest.fingerprint for artifact in store.newest_first(EVALUATE)]
    beginning = [fingerprint for fingerprint in known if fingerprint.startswith(name)]
    if len(beginning) == 1:
        return _exactly(name, store, EVALUATE, beginning[0])
    where = store.location("", "").rstrip("/")
    if beginning:
        raise UserError(f"several evaluations begin with {name}", where, f"name one of {', '.join(sorted(beginning))}")
    for kind in sorted(store.kinds() - {EVALUATE}):
        if store.find(kind, name):
            return _exactly(name, store, kind, name)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    listed = f"name one of {', '.join(known[:3])}" if known else "name its store with --store"
    raise UserError(f"no evaluation {name}", where, f"did you mean {near[0]}?" if near else listed)


def _not_found(name: str, path: Path) -> UserError:
    """Return the error for a name that means nothing, with the nearest configuration or neighbouring file."""
    names = {} if len(path.parts) > 1 else {known: known for known in config_names()}
    try:
        for other in path.parent.iterdir():
            if other.suffix in ENDINGS or other.is_dir():
                names[other.name] = str(other)
    except (OSError, ValueError):
        pass  # the parent folder is missing, too
    near = difflib.get_close_matches(path.name, names, n=1)
    remedy = f"did you mean {names[near[0]]}?" if near else HOW_TO_NAME
    shown = name if len(name) <= 80 else f"{name[:80]}…"
    return UserError("no such store, evaluation or config", shown, remedy)


def _measured(results: Results) -> set[str]:
    return {str(row["metric"]) for row in results.rows}


def _unlike(results: Results, others: Results) -> set[str]:
    """Return the metrics whose values depend on a model that was not the same."""

    def how(one: Results, metric: str) -> dict[str, Any]:
        return {key: value for key, value in one.settings.get(metric, {}).items() if key not in OF_THE_DATA}

    return {metric for metric in (BERTSCORE, AUTHOR, JUDGE) if how(results, metric) != how(others, metric)}


def _same_examples(
    a: Evaluation, b: Evaluation, ids: Sequence[str], others: Sequence[str]
) -> tuple[Any, Any, int, list[str]]:
    """Return the positions of the examples that match, how many have another true review, and notes.

    An id names a user and the position of a review. If the ingested data differ, the same position may hold another
    review, so the reviews are compared too.
    """
    first, second = matched(ids, others)
    refs = [next((ref for ref in one.artifact.manifest.inputs if ref.kind == "ingest"), None) for one in (a, b)]
    if not len(first) or (refs[0] and refs[1] and refs[0].content == refs[1].content):
        return first, second, 0, []
    targets = []
    for one, ref in zip((a, b), refs, strict=True):
        ingested = one.store.find(ref.kind, ref.fingerprint) if ref else None
        if ingested is None:
            note = "The data differ or are gone from the store: examples were matched by their ids alone."
            return first, second, 0, [note]
        with expect_form(ingested.location, "run `nextquill ingest --force`"):
            found = read_examples(ingested.folder, [one.split] if one.split else None)
            targets.append(
                {example.example_id: (example.target.text, example.target.timestamp_ms) for example in found}
            )
    same = np.array([targets[0].get(ids[place]) == targets[1].get(ids[place]) for place in first], dtype=bool)
    return first[same], second[same], int((~same).sum()), []


def _category(example_id: str, known: Sequence[str]) -> str:
    """Return the category of an example, whose id begins with it; `known` has the longest category first."""
    return next((name for name in known if example_id.startswith(f"{name}:")), example_id.partition(":")[0])


def _origin(one: Evaluation, results: Results) -> dict[str, Any]:
    manifest = one.artifact.manifest
    data = next((ref.content for ref in manifest.inputs if ref.kind == "ingest"), None)
    return {
        "data": data,
        **{name: manifest.provenance[name] for name in ORIGIN if name in manifest.provenance},
        "chosen_on_val": {name: choice.get("chosen") for name, choice in results.chosen_on_val.items()},
        "metrics": {
            name: {key: value for key, value in how.items() if key not in OF_THE_DATA}
            for name, how in results.settings.items()
            if isinstance(how, Mapping)
        },
    }


def _described(one: Evaluation, examples: int) -> ComparedRun:
    manifest = one.artifact.manifest
    made = str(manifest.provenance.get("end", ""))[:16].replace("T", " ")
    return ComparedRun(
        one.name, manifest.fingerprint, one.artifact.location, f"{made} UTC" if made else "", one.split, examples
    )


def _same(a: Evaluation, b: Evaluation) -> Iterator[str]:
    if (content := a.artifact.manifest.content) and content == b.artifact.manifest.content:
        yield "Both have the same content, file by file."


def _only_one_has(
    scores: Mapping[Key, ExampleScores],
    others: Mapping[Key, ExampleScores],
    metrics: set[str],
    other_metrics: set[str],
) -> Iterator[str]:
    """Yield a sentence for each kind of thing that only one of the two has."""
    kinds = {
        "method": tuple([key[0] for key in side] for side in (scores, others)),
        "decoding preset": tuple([key[1] for key in side if key[1] != NO_TEXTS] for side in (scores, others)),
        "metric": tuple([one.name for one in known_metrics(sorted(side))] for side in (metrics, other_metrics)),
    }
    for what, sides in kinds.items():
        for letter, mine, theirs in (("A", *sides), ("B", *sides[::-1])):
            if alone := [name for name in dict.fromkeys(mine) if name not in theirs]:
                yield f"Only {letter} has the {what}{'s' if len(alone) > 1 else ''} {', '.join(alone)}."
