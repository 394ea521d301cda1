"""The plan of a configuration: from raw files to the evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from nextquill_core.causal.weighting import weight_settings
from nextquill_core.config import Config, StageName
from nextquill_core.errors import UserError
from nextquill_core.ingest.sources import PARTS, RawFiles, Source, source
from nextquill_core.methods.registry import METHODS, Training
from nextquill_core.model.identity import external_model_identity
from nextquill_core.model.template_choice import TemplateChoice, choose_template
from nextquill_core.pipeline.evaluation_plan import EvaluationPlan, plan_evaluation
from nextquill_core.pipeline.step import COMMANDS, Step
from nextquill_core.prompts import PLAIN, TEMPLATE_DATE
from nextquill_core.training.deepspeed_config import configured, deciding
from storage import DigestCache

# How the adapters that score in place of θ0 are trained: history in, plain loss. They come before the weights, so no
# method that uses weights could stand here.
FOLD_METHOD = "contextsft"
# How the adapters are trained that personal ones stand on.
TASK_METHOD = "sft"


@dataclass(frozen=True)
class Plan:
    """All artifacts of a configuration, in the order in which they are made.

    Attributes:
        source: What reads raw files.
        files: The raw files of each category.
        scans: By category.
        model: The offline base model, or None where the model comes from outside.
        weights: By weight policy that a method asks for by name: as `score`, with that policy's weights.
        train: A step for each method that trains, the configured `train.method` first.
        folds: The adapters that score in place of θ0 (`score.effect_source: adapter`), `fold-0` first; else empty.
        evaluation: What comes before `evaluate`.
        template: The template of the prompts, and why it was chosen.
    """

    config: Config
    source: Source
    files: tuple[RawFiles, ...]
    scans: Mapping[str, Step]
    ingest: Step
    model: Step | None
    effects: Step
    score: Step
    weights: Mapping[str, Step]
    train: Mapping[str, Step]
    folds: Mapping[str, Step]
    evaluation: EvaluationPlan
    evaluate: Step
    template: TemplateChoice
    model_identity: Mapping[str, Any] = field(default_factory=dict)

    def parts(self, step: Step) -> list[Step]:
        """The artifacts behind a stage that `status` has no row for, such as scans, effects and predictions."""
        rows = {stage.fingerprint for stage in self.stages}
        found: dict[str, Step] = {}
        for part in step.inputs:
            if part.fingerprint not in rows:
                found |= {one.fingerprint: one for one in (*self.parts(part), part)}
        return list(found.values())

    @property
    def adapters(self) -> Mapping[str, Step]:
        """Everything that is trained: by method, and those that a fold of the users is left out of."""
        return {**self.folds, **self.evaluation.tasks, **self.train}

    def recipe(self, adapter: str) -> str:
        """The method that a key of `adapters` is trained as."""
        if adapter in self.folds:
            return FOLD_METHOD
        return TASK_METHOD if adapter in self.evaluation.tasks else adapter

    @property
    def stages(self) -> Iterator[Step]:
        """The steps that a person knows by name: one a stage, one a fold and one a trained method."""
        for stage in get_args(StageName):
            yield from self.made_by(stage)

    def made_by(self, stage: StageName) -> list[Step]:
        """The steps that a person knows by name that one stage's command makes, its result last."""
        if stage == "ingest":
            return [self.ingest]
        if stage == "model":
            return [self.model] if self.model else []
        if stage == "score":
            return [*self.folds.values(), self.score]
        if stage == "train":
            return [*self.train.values(), *self.evaluation.tasks.values()]
        return [self.evaluate]

    def command(self, step: Step) -> str:
        """The command of `nextquill` that makes a step."""
        return "score" if step in self.folds.values() else COMMANDS[step.kind]

    def needed_by(self, steps: Sequence[Step]) -> list[Step]:
        """What other stages make for these steps, in the order in which it is made."""
        own = {step.fingerprint for step in steps}
        others = {step.fingerprint for step in self.stages} - own
        found = set[str]()
        waiting, seen = list(steps), set[str]()
        while waiting:
            for origin in waiting.pop().inputs:
                if origin.fingerprint in seen:
                    continue
                seen.add(origin.fingerprint)
                if origin.fingerprint in others:
                    found.add(origin.fingerprint)
                else:
                    waiting.append(origin)
        return [step for step in self.stages if step.fingerprint in found]

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

    named = config.model.name_or_path, config.model.revision
    template = choose_template(config.prompt.template, *named, strict=fetch)
    prompt = config.prompt.semantic() | {"template": template.name, "revision": PLAIN.revision}
    if template.name == "chat":
        prompt["date"] = TEMPLATE_DATE.isoformat()
    model, model_identity = _model(config, ingest, prompt, digests)
    common = {"model": model_identity, "prompt": prompt}
    base = (ingest, model) if model else (ingest,)

    cross_fitted = config.score.effect_source == "adapter"
    folds = _left_out(config, FOLD_METHOD, "fold", config.score.folds, common, base) if cross_fitted else {}
    scoring = common | {"score": config.score.semantic()}
    effects = Step("effects", "effects", scoring, (*base, *folds.values()))
    score = Step("score", "score", {"weights": weight_settings(**config.weights.semantic())}, (effects,))
    if METHODS[config.train.method].training is None:
        trained = ", ".join(method.name for method in METHODS.values() if method.training)
        raise UserError(f"{config.train.method} does not train", "train.method", f"name one of {trained}")
    needed = list(dict.fromkeys([config.train.method, *config.evaluate.methods]))
    weights = _weights(config, needed, effects)
    train: dict[str, Step] = {}
    for name in needed:
        if training := METHODS[name].training:
            train[name] = _train(config, name, common, base, score=weights.get(training.policy or "", score))
    personal = any(METHODS[name].personal for name in needed)
    tasks = _left_out(config, TASK_METHOD, "task", config.evaluate.personal.folds, common, base) if personal else {}
    evaluation = plan_evaluation(config, common, base, train, tasks, digests)
    inputs = (ingest, score, *train.values(), *evaluation.steps)
    measuring = {
        "evaluate": config.evaluate.measuring() | {"bertscore": _bertscore(config, digests)},
        "delta": config.weights.delta,
        "seed": config.seed,
    }
    evaluate = Step("evaluate", "evaluate", measuring, inputs)
    return Plan(
        config, reader, files, scans, ingest, model, effects, score, weights, train, folds, evaluation, evaluate,
        template, model_identity,
    )  # fmt: skip


def _model(
    config: Config, ingest: Step, prompt: Mapping[str, Any], digests: DigestCache
) -> tuple[Step | None, dict[str, Any]]:
    if config.model.name_or_path == "tiny":
        settings = {"tiny": config.model.tiny.semantic(), "prompt": prompt, "seed": config.seed}
        return Step("model", "model", settings, (ingest,)), {"name": "tiny", "dtype": config.model.dtype}
    return None, external_model_identity(config.model, digests)


def _bertscore(config: Config, digests: DigestCache) -> dict[str, Any] | None:
    """Return which encoder BERTScore has: a hub name with its revision, or the digests of a local folder's files."""
    name, revision = config.evaluate.retrieval.bertscore, config.evaluate.retrieval.bertscore_revision
    if name is None or not Path(name).is_dir():
        return None if name is None else {"name": name, "revision": revision}
    other = {"name_or_path": name, "revision": revision, "dtype": "float32", "trust_remote_code": False}
    return external_model_identity(config.model.model_copy(update=other), digests)


def _weights(config: Config, methods: Sequence[str], effects: Step) -> dict[str, Step]:
    """Weights by the policies that methods name, from the same effects, at their own defaults."""
    trained = [training for name in methods if (training := METHODS[name].training)]
    stored = {training.policy: training for training in trained if training.policy and not _live(config, training)}
    return {
        policy: Step("score", f"score:{policy}", {"weights": method_weights(config, training)}, (effects,))
        for policy, training in sorted(stored.items())
    }


def method_weights(config: Config, training: Training) -> dict[str, Any]:
    """The weight policy of a method with its settings: the configured policy, or the method's at its own defaults."""
    values = config.weights.semantic()
    policy, options = values.pop("policy"), values.pop("options")
    if training.policy:
        policy, options = training.policy, {}
    return weight_settings(policy, options, **values)


def _live(config: Config, training: Training) -> bool:
    """Whether the model in training decides the weights."""
    return training.weighted and training.settings(config.train).weights_from == "live"


def _reads_score(config: Config, training: Training) -> bool:
    """Whether stored weights or effects are read."""
    settings = training.settings(config.train)
    effects = training.causal and settings.alpha > 0 and settings.causal_loss.target == "effect"
    return effects or (training.weighted and settings.weights_from == "stored")


def _left_out(
    config: Config, method: str, label: str, count: int, common: Mapping[str, Any], base: tuple[Step, ...]
) -> dict[str, Step]:
    """An adapter for each fold of the users, trained by a method without them; without weights, so nothing goes in a
    circle."""
    return {
        f"{label}-{fold}": _train(
            config, method, common, base, fold={"leave_out": fold, "of": count}, label=f"train:{label}-{fold}"
        )
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
    label: str | None = None,
) -> Step:
    """Training by a method's recipe, with the weights of `score` where it has any; or by it without a fold's users."""
    training = METHODS[name].training
    if training is None:
        raise ValueError(f"{name} does not train")
    settings = training.settings(config.train).semantic()
    del settings["method"]
    if own := deciding(configured(config.train, config.model.dtype)):
        settings["deepspeed"] = {"config": own}
    if not training.causal:
        del settings["alpha"], settings["causal_loss"]  # a method without L_p does not train again for another α
    elif not training.weighted:
        del settings["causal_loss"]["weighted"]  # every token counts 1
    if not training.weighted:
        del settings["weights_from"]
    recipe: dict[str, Any] = {"history": METHODS[name].history}
    recipe |= {"weighted": training.weighted, "causal": training.causal}
    identity = {**common, "train": settings, "recipe": recipe, "seed": config.seed}
    if _live(config, training):
        identity |= {"weights": method_weights(config, training)}
    if fold is not None:
        identity |= {"fold": fold}
    label = label or ("train" if name == config.train.method else f"train:{name}")
    return Step("train", label, identity, (*base, score) if score and _reads_score(config, training) else base)
