"""The plan of a configuration: every artifact from the raw files to the evaluation, worked out without a stage run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from pydantic import ValidationError

from nextquill_core.causal.weights import asks_for_answers, weight_settings
from nextquill_core.config import CleanConfig, Config, ModelConfig, StageName
from nextquill_core.errors import UserError
from nextquill_core.ingest.batches import PARTS
from nextquill_core.ingest.sources import RawFiles, Source, source
from nextquill_core.methods.registry import BASE_ENCODER, METHODS, Training
from nextquill_core.model.identity import external_model_identity, is_gguf, is_hub_name
from nextquill_core.model.packaged import located_encoder, located_model
from nextquill_core.model.template_choice import TemplateChoice, choose_template
from nextquill_core.pipeline.evaluation_plan import (
    EvaluationPlan,
    EvaluationPlanner,
    encoder_identity,
    text_encoder_identity,
)
from nextquill_core.pipeline.step import KINDS, Step
from nextquill_core.prompts import REVIEW, TEMPLATE_DATE, WORDINGS
from nextquill_core.records import TextKind
from nextquill_core.training.engines import configured, deciding
from storage import DigestCache

FOLD_METHOD = "contextsft"
"""The method that trains the adapters which score in place of θ0. Weights come after scores, so it may not use any."""
TASK_METHOD = "sft"
"""The method that trains the adapters which personal adapters are trained on."""


@dataclass(frozen=True)
class Plan:
    """The steps of a configuration.

    Attributes:
        config: The settings.
        source: The source that reads the raw files.
        files: The raw files of each category.
        scans: The scan of each category's raw files.
        ingest: Sequences, items and examples.
        model: The base model, where it is made here: trained (`tiny`) or converted from GGUF. None for a model that is
            used as it is.
        effects: The causal effects of history.
        score: The effects with the configured weights.
        weights: Like `score`, by weight policy that a method asks for by name.
        train: The adapter of each method that trains, the configured `train.method` first.
        folds: The adapters that score in place of θ0, `fold-0` first; empty where neither `score.effect_source` nor
            `evaluate.preference_tokens` asks for them.
        scorer: The adapter of `FOLD_METHOD` on all users, where it scores in place of θ0 (`effect_source: trained`).
        writes: Kind of text that the prompts ask for.
        evaluation: The steps before `evaluate`.
        evaluate: Metrics, figures and the report.
        template: The template of the prompts, and why it was chosen.
        model_identity: Name and revision, or digests, of the base model.
        base: The section `model` with what its name stands for on this machine.
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
    base: ModelConfig = field(default_factory=ModelConfig)
    scorer: Step | None = None
    writes: TextKind = REVIEW.name

    @property
    def scoring(self) -> Mapping[str, Step]:
        """The adapters that the score stage trains, by the method or fold that `adapters` lists them under."""
        return {**self.folds, **({FOLD_METHOD: self.scorer} if self.scorer else {})}

    def parts(self, step: Step) -> list[Step]:
        """Return the steps behind a stage that have no row in `status`, such as scans, effects and predictions."""
        rows = {stage.fingerprint for stage in self.stages}
        found: dict[str, Step] = {}
        for part in step.inputs:
            if part.fingerprint not in rows:
                found |= {one.fingerprint: one for one in (*self.parts(part), part)}
        return list(found.values())

    @property
    def adapters(self) -> Mapping[str, Step]:
        """The steps that train an adapter, by method; those without a fold of the users as `fold-0`, `task-0`, …."""
        return {**self.scoring, **self.evaluation.tasks, **self.train}

    def adapter(self, name: str) -> Step:
        """Return the step that trains an adapter.

        Args:
            name: A key of `adapters`.

        Raises:
            UserError: This configuration does not train it.
        """
        if name in self.adapters:
            return self.adapters[name]
        if METHODS[name].training is None:
            used = METHODS[name].adapter
            remedy = f"name {used}, whose adapter it uses" if used else f"name one of {_trained_methods()}"
            raise UserError(f"`{name}` trains no adapter", "--method", remedy)
        there = ", ".join(self.train)
        raise UserError(f"this config trains no `{name}`", "--method", f"it trains {there}; add it to evaluate.methods")

    def adapter_name(self, step: Step) -> str:
        """Return the key of `adapters` under which a step stands."""
        return next(name for name, adapter in self.adapters.items() if adapter.name == step.name)

    def recipe(self, adapter: str) -> str:
        """Return the method by which an adapter is trained.

        Args:
            adapter: A key of `adapters`.
        """
        if adapter in self.folds:
            return FOLD_METHOD
        return TASK_METHOD if adapter in self.evaluation.tasks else adapter

    def title(self, step: Step) -> str:
        """Return the name of a step in messages and in the UI, such as `scan Books` and `train nextquill`."""
        return f"train {self.adapter_name(step)}" if step.kind == "train" else step.name.replace(":", " ")

    @property
    def stages(self) -> Iterator[Step]:
        """The steps that have a row in `status`: one for each stage, fold and trained method."""
        for stage in get_args(StageName):
            yield from self.made_by(stage)

    def made_by(self, stage: StageName) -> list[Step]:
        """Return the steps with a row in `status` that a stage's command makes, its result last."""
        if stage == "ingest":
            return [self.ingest]
        if stage == "model":
            return [self.model] if self.model else []
        if stage == "score":
            return [*self.scoring.values(), self.score]
        if stage == "train":
            methods = [step for step in self.train.values() if step != self.scorer]
            return [*methods, *self.evaluation.tasks.values()]
        return [self.evaluate]

    def command(self, step: Step) -> str:
        """Return the command of `nextquill` that makes a step; adapters that score are trained by `score`."""
        if step in self.scoring.values():
            return "score"
        return "evaluate" if step == self.evaluation.crossfit else KINDS[step.kind].command

    def needed_by(self, steps: Sequence[Step]) -> list[Step]:
        """Return the steps with a row in `status` that other stages make for these steps, each after its inputs."""
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
        """Return the step with a row in `status` that has this name; `train` is the configured method's."""
        return next((step for step in self.stages if step.name == name), None)


def make_plan(
    config: Config,
    digests: DigestCache,
    *,
    fetch: bool,
    privacy: Mapping[str, Any] | None = None,
    files: tuple[RawFiles, ...] | None = None,
) -> Plan:
    """Return the plan of a configuration.

    Args:
        config: The settings.
        digests: Digests of raw files.
        fetch: Whether raw files that come from the hub may be downloaded.
        privacy: What fingerprints contain of the key of pseudonyms and the list of users to forget.
        files: The raw files of each category; None to look for them. Where a category has none, because they are not
            downloaded yet, the plan has all of its steps, and fingerprints that no artifact has.

    Raises:
        UserError: Raw files or the model folder are missing, or a name is unknown.
    """
    reader = source(config.ingest.source, config.ingest.options)
    if files is None:
        files = tuple(reader.find(raw, fetch=fetch) for raw in config.ingest.inputs)
    settings = config.ingest.fingerprint_fields()
    del settings["inputs"]  # names of files say nothing about what is in them
    if config.ingest.clean == CleanConfig():
        del settings["clean"]  # what is not cleaned has the fingerprint that it had before anything could be
    reading = {name: settings.pop(name) for name in ("source", "options")} | {"revision": reader.revision}
    if config.ingest.protocol.name == "published" and not reader.publishes:
        what = f"the files of {reader.name} hold no published examples"
        raise UserError(what, "ingest.protocol.name", "set it to dpl or global-time, or use the source dpl or lamp")
    scans: dict[str, Step] = {}
    for raw in files:
        digested = {part: [digests(path) for path in raw.of(part)] for part in PARTS}
        scan = {"source": reading, "privacy": privacy or {}, "raw": digested}
        if reader.publishes:
            scan["splits"] = [reader.split_of(path) for path in raw.reviews]
        scans[raw.category] = Step("scan", f"scan:{raw.category}", scan)
    ingest = Step("ingest", "ingest", {"ingest": settings}, tuple(scans.values()))

    located = located_model(config.model)
    template = choose_template(config.prompt.template, located.name_or_path, located.revision, strict=fetch)
    writes: TextKind = reader.writes if config.prompt.writes == "auto" else config.prompt.writes
    prompt = config.prompt.fingerprint_fields() | {"template": template.name, "revision": WORDINGS[writes].revision}
    if writes != REVIEW.name:
        prompt["writes"] = writes
    if template.name == "chat":
        prompt["date"] = TEMPLATE_DATE.isoformat()
    model, model_identity = _model(config, located, ingest, prompt, digests)
    common = {"model": model_identity, "prompt": prompt}
    base = (ingest, model) if model else (ingest,)

    cross_fitted = config.score.effect_source == "adapter"
    scorer = _train(config, FOLD_METHOD, common, base) if config.score.effect_source == "trained" else None
    compared = "crossfit" in config.evaluate.preference_tokens
    left_out = cross_fitted or compared
    folds = _left_out(config, FOLD_METHOD, "fold", config.score.folds, common, base) if left_out else {}
    scoring = common | {"score": config.score.fingerprint_fields()}
    scorers = folds.values() if cross_fitted else [scorer] if scorer else []
    effects = Step("effects", "effects", scoring, (*base, *scorers))
    crossfit = _crossfit(config, common, (*base, *folds.values())) if compared and not cross_fitted else None
    score = Step("score", "score", {"weights": weight_settings(**config.weights.fingerprint_fields())}, (effects,))
    if METHODS[config.train.method].training is None:
        raise UserError(f"{config.train.method} does not train", "train.method", f"name one of {_trained_methods()}")
    trained = [METHODS[name].trained_as for name in config.evaluate.methods]
    needed = list(dict.fromkeys([config.train.method, *trained]))
    _check_objectives(config, needed)
    weights = _weights(config, needed, effects)
    train: dict[str, Step] = {}
    for name in needed:
        if training := METHODS[name].training:
            train[name] = _train(config, name, common, base, score=weights.get(training.policy or "", score))
    personal = any(METHODS[name].personal for name in needed)
    tasks = _left_out(config, TASK_METHOD, "task", config.evaluate.personal.folds, common, base) if personal else {}
    evaluation = EvaluationPlanner(config, common, base, train, tasks, digests).plan(effects, crossfit)
    inputs = (ingest, score, *train.values(), *evaluation.steps)
    measuring = {
        "evaluate": config.evaluate.measuring() | {"bertscore": _bertscore(config, digests)} | _author(config, digests),
        "delta": config.weights.delta,
        "seed": config.seed,
    }
    if len(files) > 1:
        measuring["resampled"] = "users across categories"  # which changes nothing where there is one category
    if "exact" in config.evaluate.preference_tokens:
        from nextquill_core.synthetic.truth import truth_file

        measuring["truth"] = {
            raw.category: digests(truth_file(raw.category, raw.reviews)) for raw in files if raw.reviews
        }
    evaluate = Step("evaluate", "evaluate", measuring, inputs)
    return Plan(
        config, reader, files, scans, ingest, model, effects, score, weights, train, folds, evaluation, evaluate,
        template, model_identity, located, scorer, writes,
    )  # fmt: skip


def _trained_methods() -> str:
    return ", ".join(name for name, known in METHODS.items() if known.training)


def _model(
    config: Config, located: ModelConfig, ingest: Step, prompt: Mapping[str, Any], digests: DigestCache
) -> tuple[Step | None, dict[str, Any]]:
    """Return the step that makes the base model, if it is made here, and what identifies the model."""
    if config.model.name_or_path == "tiny":
        settings = {"tiny": config.model.tiny.fingerprint_fields(), "prompt": prompt, "seed": config.seed}
        return Step("model", "model", settings, (ingest,)), {"name": "tiny", "dtype": config.model.dtype}
    identity = external_model_identity(located, digests)
    return Step("model", "model", identity) if is_gguf(located.name_or_path) else None, identity


def _crossfit(config: Config, common: Mapping[str, Any], inputs: tuple[Step, ...]) -> Step:
    """Return the step that scores the measured split by adapters that were trained without the user.

    Args:
        config: The settings.
        common: The identity of the model and the settings of the prompt.
        inputs: The ingest step, that of the offline base model if there is one, and the folds.
    """
    scoring = config.score.model_copy(update={"effect_source": "adapter"}).fingerprint_fields()
    settings = {**common, "score": scoring, "split": config.evaluate.split}
    return Step("effects", "effects:crossfit", settings, inputs)


def _bertscore(config: Config, digests: DigestCache) -> dict[str, Any] | None:
    """Return which encoder BERTScore uses, or None without one; of a hub model, the data type is not part of it."""
    key, revision = "evaluate.retrieval.bertscore", config.evaluate.retrieval.bertscore_revision
    if (configured := config.evaluate.retrieval.bertscore) is None:
        return None
    name = located_encoder(configured)
    identity = encoder_identity(config, key, name, revision, digests, trust_remote_code=False)
    return {"name": name, "revision": revision} if is_hub_name(name) else identity


def _author(config: Config, digests: DigestCache) -> dict[str, Any]:
    """Return which encoder the author metric uses; nothing without one, or for the base model, which is an input."""
    retrieval = config.evaluate.retrieval
    if retrieval.author is None:
        return {}
    if retrieval.author == BASE_ENCODER:
        return {"author": BASE_ENCODER}
    key, revision = "evaluate.retrieval.author", retrieval.author_revision
    return {"author": text_encoder_identity(config, key, retrieval.author, revision, digests)}


def _weights(config: Config, methods: Sequence[str], effects: Step) -> dict[str, Step]:
    """Return a step for each weight policy that a method names, at the policy's defaults."""
    trained = [training for name in methods if (training := METHODS[name].training)]
    stored = {training.policy: training for training in trained if training.policy and not _live(config, training)}
    return {
        policy: Step("score", f"score:{policy}", {"weights": method_weights(config, training)}, (effects,))
        for policy, training in sorted(stored.items())
    }


def method_weights(config: Config, training: Training) -> dict[str, Any]:
    """Return the weight policy of a method with its settings: the configured one, or the method's at its defaults."""
    values = config.weights.fingerprint_fields()
    policy, options = values.pop("policy"), values.pop("options")
    if training.policy:
        policy, options = training.policy, {}
    return weight_settings(policy, options, **values)


def _check_objectives(config: Config, methods: Sequence[str]) -> None:
    """Make sure that the configured settings go with those that belong to the methods.

    Raises:
        UserError: A method cannot be trained with them.
    """
    for name in methods:
        training = METHODS[name].training
        if training is None:
            continue
        try:
            live = _live(config, training)
        except ValidationError as error:
            reason = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
            fixed = ", ".join(f"{key} {value}" for key, value in training.fixed.items())
            what = f"`{name}`, which always has {fixed}, does not go with these settings: {reason}"
            raise UserError(what, "train", f"change them or leave out `{name}`") from None
        if live and asks_for_answers(policy := method_weights(config, training)["policy"]):
            raise UserError(
                f"`{name}` takes its weights from the model in training, and policy `{policy}` reads more than effects",
                "weights.policy",
                f"set train.weights_from to stored, or leave out `{name}`"
                if "weights_from" not in training.fixed
                else f"name another policy, or leave out `{name}`",
            )


def _live(config: Config, training: Training) -> bool:
    """Return whether the model in training decides the weights."""
    return training.weighted and training.settings(config.train).weights_from == "live"


def _reads_score(config: Config, training: Training) -> bool:
    """Return whether training reads stored weights or effects."""
    settings = training.settings(config.train)
    effects = training.causal and settings.alpha > 0 and settings.causal_loss.target == "effect"
    return effects or (training.weighted and settings.weights_from == "stored")


def _left_out(
    config: Config, method: str, label: str, count: int, common: Mapping[str, Any], base: tuple[Step, ...]
) -> dict[str, Step]:
    """Return a step for each fold of the users that trains an adapter without them, and without weights."""
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
    """Return the step that trains an adapter by a method's recipe.

    Args:
        config: The settings.
        name: Name of the method.
        common: The identity of the model and the settings of the prompt.
        base: The ingest step, and that of the base model if it is made here.
        score: Where stored effects and weights come from, for a method that reads them.
        fold: The fold of users whose examples are left out; None for none.
        label: Name of the step; by default it follows from the method.
    """
    training = METHODS[name].training
    if training is None:
        raise ValueError(f"{name} does not train")
    trained = training.settings(config.train)
    settings = trained.fingerprint_fields()
    del settings["method"], settings["normal_loss"]
    if own := deciding(configured(config.train, config.model.dtype)):
        settings["deepspeed"] = {"config": own}
    if not training.causal:
        del settings["alpha"], settings["causal_loss"]  # without L_p, another α changes nothing
    elif not training.weighted:
        del settings["causal_loss"]["weighted"]  # every token counts 1
    if not training.weighted:
        del settings["weights_from"]
    recipe: dict[str, Any] = {"history": METHODS[name].history}
    recipe |= {"weighted": training.weighted, "causal": training.causal}
    if training.weighted and not trained.normal_loss.weighted:
        recipe |= {"normal_weighted": False}
    identity = {**common, "train": settings, "recipe": recipe, "seed": config.seed}
    if _live(config, training):
        identity |= {"weights": method_weights(config, training)}
    if fold is not None:
        identity |= {"fold": fold}
    label = label or ("train" if name == config.train.method else f"train:{name}")
    return Step("train", label, identity, (*base, score) if score and _reads_score(config, training) else base)
