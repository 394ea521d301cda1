"""Which artifacts a configuration asks for, and what each of them depends on.

Everything here follows from the configuration and the digests of the raw files, without running a stage: so `status`,
`path` and reuse agree, and a changed field moves exactly the artifacts that it can change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from nextquill_core.causal.weighting import weight_settings
from nextquill_core.config import Config
from nextquill_core.evaluation.methods import METHODS
from nextquill_core.ingest.sources import PARTS, RawFiles, Source, source
from nextquill_core.model.identity import external_model_identity
from nextquill_core.prompts import PLAIN, resolve_template
from storage import Artifact, DigestCache, Store, differences, fingerprint

# Raised by hand when a stage's code changes what it produces from the same settings.
REVISIONS = {
    "scan": 1,
    "ingest": 2,
    "model": 1,
    "effects": 1,
    "score": 1,
    "train": 1,
    "predictions": 1,
    "evaluate": 1,
    "sweep": 1,
}

# How the adapters that score in place of θ0 are trained: history in, plain loss. They come before the weights, so no
# method that uses weights could stand here.
FOLD_METHOD = "contextsft"

State = Literal["fresh", "stale", "missing", "running", "failed"]


@dataclass(frozen=True)
class Step:
    """One artifact to be: its kind, a name people read, what decides it, and what it is made from."""

    kind: str
    name: str
    settings: Mapping[str, Any]
    inputs: tuple[Step, ...] = ()

    @cached_property
    def identity(self) -> dict[str, Any]:
        """The fields behind the fingerprint."""
        return {
            "stage": self.kind,
            "revision": REVISIONS[self.kind],
            **self.settings,
            "inputs": {step.name: step.fingerprint for step in self.inputs},
        }

    @cached_property
    def fingerprint(self) -> str:
        """The artifact's address below its kind."""
        return fingerprint(self.identity)


@dataclass(frozen=True)
class Plan:
    """All artifacts of a configuration, in the order in which they are made.

    Attributes:
        source: What reads raw files.
        files: The raw files of each category.
        scans: By category.
        model: The offline base model, or None where the model comes from outside.
        train: A step for each method that trains, the configured `train.method` first.
        folds: The adapters that score in place of θ0 (`score.effect_source: adapter`), `fold-0` first; else empty.
        predictions: By (method, decoding).
    """

    config: Config
    source: Source
    files: tuple[RawFiles, ...]
    scans: Mapping[str, Step]
    ingest: Step
    model: Step | None
    effects: Step
    score: Step
    train: Mapping[str, Step]
    folds: Mapping[str, Step]
    predictions: Mapping[tuple[str, str], Step]
    evaluate: Step
    model_identity: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def parts(step: Step) -> list[Step]:
        """The nameless artifacts behind ingest (scans), score (effects) and evaluate (predictions)."""
        return [part for part in step.inputs if part.kind in ("scan", "effects", "predictions")]

    @property
    def adapters(self) -> Mapping[str, Step]:
        """Everything that is trained, by the name of its method or fold."""
        return {**self.folds, **self.train}

    @property
    def stages(self) -> Iterator[Step]:
        """The steps that a person knows by name: one a stage, one a fold and one a trained method."""
        yield self.ingest
        if self.model:
            yield self.model
        yield from self.folds.values()
        yield self.score
        yield from self.train.values()
        yield self.evaluate

    def stage(self, name: str) -> Step | None:
        """The step of this name; `train` is the configured method's."""
        return next((step for step in self.stages if step.name == name), None)


def make_plan(config: Config, digests: DigestCache, *, fetch: bool, privacy: Mapping[str, Any] | None = None) -> Plan:
    """Work out every artifact of `config`.

    Args:
        config: The settings.
        digests: Of raw files.
        fetch: Whether raw files that are to come from the hub may be downloaded.
        privacy: What fingerprints may know of the key and the list of users to forget.

    Raises:
        UserError: Raw files or the model folder are missing, or a name is unknown.
    """
    reader = source(config.ingest.source, config.ingest.options)
    files = tuple(reader.find(raw, fetch=fetch) for raw in config.ingest.inputs)
    settings = config.ingest.semantic()
    del settings["inputs"]  # names of files say nothing about what is in them
    reading = {name: settings.pop(name) for name in ("source", "options")} | {"revision": reader.revision}
    scans: dict[str, Step] = {}
    for raw in files:
        digested = {part: [digests(path) for path in raw.of(part)] for part in PARTS}
        scan = {"source": reading, "privacy": privacy or {}, "raw": digested}
        scans[raw.category] = Step("scan", f"scan:{raw.category}", scan)
    ingest = Step("ingest", "ingest", {"ingest": settings}, tuple(scans.values()))

    prompt = config.prompt.semantic() | {
        "template": resolve_template(config.prompt.template, config.model.name_or_path)
    }
    prompt["revision"] = PLAIN.revision
    model, model_identity = _model(config, ingest, prompt, digests)
    common = {"model": model_identity, "prompt": prompt}
    base = (ingest, model) if model else (ingest,)

    folds = _folds(config, common, base)
    scoring = common | {"score": config.score.semantic()}
    effects = Step("effects", "effects", scoring, (*base, *folds.values()))
    score = Step("score", "score", {"weights": weight_settings(**config.weights.semantic())}, (effects,))
    needed = [config.train.method, *config.evaluate.methods]
    train: dict[str, Step] = {
        name: _train(config, name, common, base, score=score)
        for name in dict.fromkeys(needed)
        if METHODS[name].training is not None
    }
    evaluation = config.evaluate.semantic()
    predictions: dict[tuple[str, str], Step] = {
        (name, decoding): Step(
            "predictions",
            f"{name}-{decoding}",
            common
            | {"method": name, "decoding": decoding, "history": METHODS[name].history}
            | {key: evaluation[key] for key in ("split", "max_new_tokens")},
            (*base, train[name]) if name in train else base,
        )
        for name in config.evaluate.methods
        for decoding in config.evaluate.decoding
    }
    report_inputs = (ingest, score, *train.values(), *predictions.values())
    evaluate = Step("evaluate", "evaluate", {"evaluate": evaluation, "seed": config.seed}, report_inputs)
    return Plan(
        config, reader, files, scans, ingest, model, effects, score, train, folds, predictions, evaluate, model_identity
    )


def _model(
    config: Config, ingest: Step, prompt: Mapping[str, Any], digests: DigestCache
) -> tuple[Step | None, dict[str, Any]]:
    if config.model.name_or_path == "tiny":
        settings = {"tiny": config.model.tiny.semantic(), "prompt": prompt, "seed": config.seed}
        return Step("model", "model", settings, (ingest,)), {"name": "tiny", "dtype": config.model.dtype}
    return None, external_model_identity(config.model, digests)


def _folds(config: Config, common: Mapping[str, Any], base: tuple[Step, ...]) -> dict[str, Step]:
    """An adapter for each fold of the users, trained without them; it needs no score, so nothing goes in a circle."""
    if config.score.effect_source != "adapter":
        return {}
    count = config.score.folds
    return {
        f"fold-{fold}": _train(config, FOLD_METHOD, common, base, fold={"leave_out": fold, "of": count})
        for fold in range(count)
    }


def _train(
    config: Config,
    name: str,
    common: Mapping[str, Any],
    base: tuple[Step, ...],
    *,
    score: Step | None = None,
    fold: Mapping[str, int] | None = None,
) -> Step:
    """Training by a method's recipe, with the weights of `score` where it has any; or by it without a fold's users."""
    training = METHODS[name].training
    if training is None:
        raise ValueError(f"{name} does not train")
    settings = config.train.semantic()
    del settings["method"]
    if not training.causal:
        del settings["alpha"], settings["causal_loss"]  # a method without L_p does not train again for another α
    recipe = {"history": METHODS[name].history, "weighted": training.weighted, "causal": training.causal}
    identity = {**common, "train": settings, "recipe": recipe, "seed": config.seed}
    if fold is not None:
        return Step("train", f"train:fold-{fold['leave_out']}", identity | {"fold": fold}, base)
    label = "train" if name == config.train.method else f"train:{name}"
    return Step("train", label, identity, (*base, score) if score and training.weighted else base)


@dataclass(frozen=True)
class Freshness:
    """Whether a step's artifact is there and still what its configuration and inputs ask for."""

    state: State
    why: str = ""
    artifact: Artifact | None = None


def freshness(store: Store, step: Step) -> Freshness:
    """Look at the store and say how a step stands, and why."""
    artifact = store.find(step.kind, step.fingerprint)
    progress, message = store.progress(step.kind, step.fingerprint)
    if progress == "running":
        return Freshness("running", "", artifact)
    if artifact is not None:
        why = outdated(store, step, artifact)
        return Freshness("stale" if why else "fresh", why, artifact)
    if progress == "failed":
        return Freshness("failed", message)
    if progress == "interrupted":
        return Freshness("failed", "interrupted")
    older = next((found for found in store.newest_first(step.kind) if _same_line(found, step)), None)
    if older is None:
        return Freshness("missing")
    changes = list(_explained(store, dict(older.manifest.identity), step))
    return Freshness("stale", "; ".join(changes[:3]) + (f"; and {len(changes) - 3} more" if len(changes) > 3 else ""))


def outdated(store: Store, step: Step, artifact: Artifact) -> str:
    """Why a committed artifact may not be reused as it is, or "": an input is gone, or was made anew differently."""
    recorded = {(ref.kind, ref.fingerprint): ref.content for ref in artifact.manifest.inputs}
    for origin in step.inputs:
        current = store.find(origin.kind, origin.fingerprint)
        if current is None:
            return f"its input {origin.name} is missing"
        if current.manifest.content != recorded.get((origin.kind, origin.fingerprint)):
            return f"its input {origin.name} was made anew and differs"
        if why := outdated(store, origin, current):
            return f"its input {origin.name} is stale: {why}"
    return ""


def _same_line(artifact: Artifact, step: Step) -> bool:
    """Whether an older artifact is an earlier form of this step, and not another method's or fold's."""
    return all(
        artifact.manifest.identity.get(key) == step.settings.get(key)
        for key in ("recipe", "fold", "method", "decoding")
    )


def _explained(store: Store, old: dict[str, Any], step: Step) -> Iterator[str]:
    """The differing settings, or, where only inputs differ, the settings that differ further up."""
    new = dict(step.identity)
    old_inputs, new_inputs = old.pop("inputs", {}), new.pop("inputs", {})
    yield from differences(old, new)
    origins = {origin.name: origin for origin in step.inputs}
    for name in sorted(old_inputs.keys() | new_inputs.keys()):
        before, after = old_inputs.get(name), new_inputs.get(name)
        if before == after:
            continue
        origin = origins.get(name)
        earlier = store.find(origin.kind, before) if origin and before else None
        if origin and earlier:
            yield from (f"{name}: {change}" for change in _explained(store, dict(earlier.manifest.identity), origin))
        else:
            yield f"input {name} {before or '(absent)'} → {after or '(absent)'}"
