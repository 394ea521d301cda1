"""The plan of an evaluation: predictions, what methods need for them, choices on val, and likelihoods.

relevance, summaries ─┐
adapters, personal ───┼─▶ predictions on val ─▶ choices ─▶ predictions ─┐
                      └─▶ likelihoods with own, other and no history ───┴─▶ evaluate
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from nextquill_core.config import Config, EvaluateConfig
from nextquill_core.config.evaluate import RetrievalConfig
from nextquill_core.generation.decoding import COPE, DECODINGS, PAPER, SAMPLED, SANE_CANDIDATES
from nextquill_core.methods.differences import difference_revision
from nextquill_core.methods.pooling import Pooling, stored_pooling
from nextquill_core.methods.registry import BASE_ENCODER, METHODS, Method, Style, served_model
from nextquill_core.methods.summaries import prompt_revision
from nextquill_core.model.identity import external_model_identity
from nextquill_core.model.packaged import located_encoder
from nextquill_core.pipeline.step import Step
from nextquill_core.prompts import REVIEW, WORDINGS, Wording
from storage import DigestCache

LIKELIHOOD = "log_likelihood"
"""The metric that chooses how strongly a method steers where texts do not."""
SANE, STEERING = "sane", "steering"
"""What is chosen on val: how the preset `sane` decodes, and how strongly a method steers (see `steering_choice`)."""
CHOOSER = "latestk"
"""The method whose val texts decide how `sane` decodes. Nothing of ours is trained for it, so it favours no method."""
OWN, STRANGER, NONE = "own", "stranger", "none"
"""Whose history a prompt shows: the user's own, another user's as a control, or none."""
PROFILE, DIFFERENCES = PROFILED = ("profile", "differences")
"""Values of `Method.shown` with a profile that the base model writes of the user: `pag` and `dpl`."""
BASE = "qwen"
"""The method that is the base model without history."""

CONTRIEVER: str = RetrievalConfig().encoder
"""The published encoder, which has no files of sentence-transformers."""

Key = tuple[str, str]
"""Method and decoding preset."""


@dataclass(frozen=True)
class PredictionSet:
    """The texts that one method generates for every example of a split.

    Attributes:
        step: The step that makes them.
        method: Name of the method.
        decoding: A preset of the evaluation; on val, a candidate.
        split: `val` or `test`.
        sampler: A name in `DECODINGS`; None for the one that was chosen as `sane`.
        strength: Strength of steering; None where nothing is steered, or for the strength that was chosen.
        style: Where and how strongly a style vector is added; None where none is, or for what was chosen.
        history: Whose history the prompts show, `own` or `stranger`.
    """

    step: Step
    method: str
    decoding: str
    split: str
    sampler: str | None
    strength: float | None = None
    history: str = OWN
    style: Style | None = None

    @property
    def limit(self) -> int:
        """Maximum number of tokens in an answer."""
        limit: int = self.step.settings["max_new_tokens"]
        return limit


@dataclass(frozen=True)
class EvaluationPlan:
    """The steps before `evaluate`.

    Attributes:
        relevance: The encoder's relevance of each past review to the query; None where no method needs it.
        summaries: Summaries of older reviews, for `llm-trsr`.
        profiles: Profiles of users by what methods show: a `profile` (`pag`), or one of `differences` too (`dpl`).
        tasks: The adapters that personal adapters are trained on, `task-0` first.
        personal: Personal adapters, for `oppu`.
        style: Style vectors, for `stylevector`.
        peers: Vectors of reviews and their differences to those of other users, for `dep`.
        soft: The trained soft tokens, for `dep`.
        candidates: Predictions on val, by what is chosen (`sane`, or a `steering_choice`) and then by candidate. A
            choice by likelihood needs none.
        choices: The choice on val, by what is chosen.
        predictions: Predictions, by method and decoding preset.
        controls: Predictions with a stranger's history under the last preset.
        likelihoods: Likelihoods of the true reviews, by method.
        control_likelihoods: The same with a stranger's history.
        bare_likelihoods: The same without history, of the methods that show one.
        rubrics: What matters to each user, as the judge sees it; None without a judge.
        judged: The judge's scores of the predictions, by method and decoding preset, and of the true reviews.
        crossfit: The effects of the measured split by adapters that were trained without the user; None where they are
            not asked for, or those of the score stage already.
        clusters: Clusters of hidden states; None where they are not asked for. No number depends on them, so they are
            no input of `evaluate`.
    """

    relevance: Step | None = None
    summaries: Step | None = None
    profiles: Mapping[str, Step] = field(default_factory=dict)
    tasks: Mapping[str, Step] = field(default_factory=dict)
    personal: Step | None = None
    style: Step | None = None
    peers: Step | None = None
    soft: Step | None = None
    candidates: Mapping[str, Mapping[str, PredictionSet]] = field(default_factory=dict)
    choices: Mapping[str, Step] = field(default_factory=dict)
    predictions: Mapping[Key, PredictionSet] = field(default_factory=dict)
    controls: Mapping[Key, PredictionSet] = field(default_factory=dict)
    likelihoods: Mapping[str, Step] = field(default_factory=dict)
    control_likelihoods: Mapping[str, Step] = field(default_factory=dict)
    bare_likelihoods: Mapping[str, Step] = field(default_factory=dict)
    rubrics: Step | None = None
    judged: Mapping[Key, Step] = field(default_factory=dict)
    crossfit: Step | None = None
    clusters: Step | None = None

    def prediction_set(self, step: Step) -> PredictionSet:
        """Return the set of predictions that a step makes."""
        on_val = (one for candidates in self.candidates.values() for one in candidates.values())
        sets = (*on_val, *self.predictions.values(), *self.controls.values())
        return next(one for one in sets if one.step.fingerprint == step.fingerprint)

    @property
    def steps(self) -> Iterator[Step]:
        """The steps that the evaluate stage makes before `evaluate`, each after its inputs."""
        inputs = (self.crossfit, self.relevance, self.summaries, *self.profiles.values(), self.personal)
        yield from (step for step in (*inputs, self.style, self.peers, self.soft) if step)
        for name, choice in self.choices.items():
            yield from (one.step for one in self.candidates.get(name, {}).values())
            yield choice
        yield from (one.step for one in (*self.predictions.values(), *self.controls.values()))
        for likelihoods in (self.likelihoods, self.control_likelihoods, self.bare_likelihoods):
            yield from likelihoods.values()
        if self.rubrics:
            yield self.rubrics
            yield from self.judged.values()


class EvaluationPlanner:
    """Puts the steps of an evaluation together.

    Args:
        config: The settings.
        common: What decides every text: the model's identity and the settings of the prompt.
        base: The ingest step first, then that of the base model, if it is made here.
        train: The step that trains each method.
        tasks: The adapters that personal adapters are trained on, by name.
        digests: Digests of the files of a local encoder.

    Raises:
        UserError: On construction: the folder of the encoder is missing.
    """

    def __init__(
        self, config: Config, common: Mapping[str, Any], base: tuple[Step, ...], train: Mapping[str, Step],
        tasks: Mapping[str, Step], digests: DigestCache,
    ) -> None:  # fmt: skip
        self.config = config
        self.settings: EvaluateConfig = config.evaluate
        self.common = common
        self.base = base
        self.train = train
        self.tasks = tasks
        self.digests = digests
        self.choices: dict[str, Step] = {}
        self.wording: Wording = WORDINGS[common["prompt"].get("writes", REVIEW.name)]
        methods = [METHODS[name] for name in self.settings.methods]
        shown = {method.shown for method in methods}
        self.relevance = self._relevance() if "contriever" in shown else None
        self.summaries = self._summaries() if "summary" in shown else None
        self.profiles = {what: self._profiles(what) for what in PROFILED if what in shown}
        self.personal = self._personal() if any(method.personal for method in methods) else None
        self.style = self._style([method for method in methods if method.styles])
        self.peers = self._peers() if any(method.soft for method in methods) else None
        self.soft = self._soft(self.peers) if self.peers else None

    def plan(self, effects: Step, crossfit: Step | None = None) -> EvaluationPlan:
        """Return the steps before `evaluate`.

        Args:
            effects: The causal effects of history.
            crossfit: The step that scores the measured split by cross-fitted adapters, if there is one.
        """
        settings = self.settings
        candidates: dict[str, dict[str, PredictionSet]] = {}
        if SANE in settings.decoding:
            candidates[SANE] = {name: self._predictions(CHOOSER, name, "val", name) for name in SANE_CANDIDATES}
            self._choose(SANE, candidates[SANE])
        # Likelihoods are steered too, so without presets the strength is chosen by sampled texts.
        last = settings.decoding[-1] if settings.decoding else SAMPLED.name
        for method in (METHODS[name] for name in settings.methods if METHODS[name].tuned):
            if method.steered and settings.choose_strength_by == "likelihood":
                self._choose_by_likelihood(method)
                continue
            preset = SAMPLED.name if method.samples else last
            sampler = None if preset == SANE else preset
            candidates[steering_choice(method.name)] = {
                f"{strength:g}": self._predictions(method.name, preset, "val", sampler, strength)
                for strength in method.strengths
            } | {
                style.label: self._predictions(method.name, preset, "val", sampler, style=style)
                for style in method.styles
            }
            self._choose(steering_choice(method.name), candidates[steering_choice(method.name)])
        controlled = [name for name in settings.methods if METHODS[name].controlled]
        if settings.control == "none":
            controlled = []
        predictions: dict[Key, PredictionSet] = {
            (name, decoding): self._measured(name, decoding)
            for name in settings.methods
            for decoding in settings.decoding
        }
        rubrics = self._rubrics() if settings.judge.model else None
        controls = controlled if settings.decoding and settings.control == "stranger" else []
        return EvaluationPlan(
            relevance=self.relevance,
            summaries=self.summaries,
            profiles=self.profiles,
            tasks=self.tasks,
            personal=self.personal,
            style=self.style,
            peers=self.peers,
            soft=self.soft,
            candidates=candidates,
            choices=self.choices,
            predictions=predictions,
            controls={(name, last): self._measured(name, last, STRANGER) for name in controls},
            likelihoods={name: self._likelihood(name) for name in settings.methods},
            control_likelihoods={name: self._likelihood(name, STRANGER) for name in controlled},
            bare_likelihoods={name: self._bare_likelihood(name) for name in settings.methods if METHODS[name].history},
            rubrics=rubrics,
            judged=self._judged(rubrics, predictions) if rubrics else {},
            crossfit=crossfit,
            clusters=self._clusters(effects),
        )

    def _relevance(self) -> Step:
        retrieval = self.settings.retrieval
        inputs = self.base if retrieval.encoder == BASE_ENCODER else self.base[:1]
        settings = {
            "encoder": self._encoder("evaluate.retrieval.encoder", retrieval.encoder, retrieval.revision),
            "split": self.settings.split,
        }
        words = {"writes": self.wording.name} if self.wording != REVIEW else {}  # the encoder reads labels of prompts
        return Step("relevance", "relevance", settings | words, inputs)

    def _encoder(self, key: str, name: str, revision: str) -> dict[str, Any]:
        """Return which text encoder this is; of `base`, the identity of the base model."""
        if name == BASE_ENCODER:
            return {"base": self.common["model"]}
        return text_encoder_identity(self.config, key, name, revision, self.digests)

    def _peer_encoder(self) -> dict[str, Any]:
        peers = self.settings.peers
        return self._encoder("evaluate.peers.encoder", peers.encoder, peers.revision)

    def _summaries(self) -> Step:
        settings = self.settings.summaries.fingerprint_fields() | {
            "split": self.settings.split,
            "revision": prompt_revision(self.wording),
        }
        return Step("summaries", "summaries", {**self.common, **settings}, self.base)

    def _profiles(self, what: str) -> Step:
        """Plan the profiles that methods show: those of the users' reviews alone, or of differences to others too."""
        settings = self.settings.profiles
        identity = {**self.common, "split": self.settings.split, "revision": prompt_revision(self.wording)}
        if what == PROFILE:
            keys = {"reviews": settings.reviews, "max_tokens": settings.max_tokens}
            return Step("profiles", "profiles", identity | {"profiles": keys}, self.base)
        identity |= {
            "profiles": settings.fingerprint_fields(),
            "peers": self._peer_encoder(),
            "revision": difference_revision(self.wording),
            "seed": self.config.seed,
        }
        return Step("profiles", "profiles:differences", identity, self.base)

    def _personal(self) -> Step:
        settings = {"personal": self.settings.personal.fingerprint_fields(), "split": self.settings.split}
        identity = {**self.common, **settings, "seed": self.config.seed}
        return Step("personal", "personal", identity, (*self.base, *self.tasks.values()))

    def _style(self, methods: Sequence[Method]) -> Step | None:
        """Plan the style vectors of val and of the measured split, after all layers that the methods try."""
        if not methods:
            return None
        settings = {
            "style": self.settings.style.fingerprint_fields(),
            "depths": sorted({style.depth for method in methods for style in method.styles}),
            "splits": list(dict.fromkeys(("val", self.settings.split))),
        }
        return Step("style", "style", {**self.common, **settings}, self.base)

    def _judge(self) -> dict[str, Any]:
        from nextquill_core.evaluation.judge import judge_revision

        settings = self.settings.judge.fingerprint_fields() | {"revision": judge_revision(self.wording)}
        return {"judge": settings, "split": self.settings.split, "seed": self.config.seed}

    def _rubrics(self) -> Step:
        return Step("rubrics", "rubrics", self._judge(), self.base[:1])

    def _judged(self, rubrics: Step, predictions: Mapping[Key, PredictionSet]) -> dict[Key, Step]:
        """Plan the judge's scores of all predictions and of the true reviews."""
        from nextquill_core.evaluation.ceilings import TRUE_REVIEW

        sources = {TRUE_REVIEW: (rubrics,)} | {key: (rubrics, one.step) for key, one in predictions.items()}
        return {
            key: Step("judged", f"judged:{'-'.join(filter(None, key))}", self._judge(), (*self.base[:1], *inputs))
            for key, inputs in sources.items()
        }

    def _peers(self) -> Step:
        """Plan the vectors of reviews and their differences, with those of the strangers where they are controls."""
        settings = {
            "peers": self._peer_encoder(),
            "dep": {"reviews": self.settings.dep.reviews},
            "split": self.settings.split,
            "control": "none" if self.settings.control == "none" else STRANGER,
            "seed": self.config.seed,
        }
        inputs = self.base if self.settings.peers.encoder == BASE_ENCODER else self.base[:1]
        return Step("peers", "peers", settings, inputs)

    def _soft(self, peers: Step) -> Step:
        settings = {"dep": self.settings.dep.fingerprint_fields(), "seed": self.config.seed}
        return Step("soft", "soft", {**self.common, **settings}, (*self.base, peers))

    def _clusters(self, effects: Step) -> Step | None:
        """Plan the clusters of hidden states of `train.method`, whose inputs are the newest history or none."""
        count = self.settings.pictured_tokens
        if not count:
            return None
        method = METHODS[self.config.train.method]
        settings = {"method": method.name, **self._shown(method), "split": self.settings.split}
        settings |= {"evaluate": {"pictured_tokens": count}, "weights": {"delta": self.config.weights.delta}}
        identity = {**self.common, **settings, "seed": self.config.seed}
        return Step("clusters", "clusters", identity, (*self._inputs(method), effects))

    def _choose(self, name: str, candidates: Mapping[str, PredictionSet]) -> None:
        settings = {"by": self.settings.choose_by, "candidates": list(candidates)}
        inputs = (self.base[0], *(one.step for one in candidates.values()))
        self.choices[name] = Step("choice", f"choice:{name}", settings, inputs)

    def _choose_by_likelihood(self, method: Method) -> None:
        """Plan the choice of how strongly a method steers by the log-likelihood of the true reviews of val."""
        candidates = [f"{strength:g}" for strength in method.strengths]
        settings = {"by": LIKELIHOOD, "candidates": candidates, "method": method.name, **self._shown(method)}
        name = steering_choice(method.name)
        self.choices[name] = Step("choice", f"choice:{name}", {**self.common, **settings}, self._inputs(method))

    def _measured(self, name: str, decoding: str, history: str = OWN) -> PredictionSet:
        """Plan the predictions of a method on the measured split."""
        sampler = None if decoding == SANE else SAMPLED.name if METHODS[name].samples else decoding
        return self._predictions(name, decoding, self.settings.split, sampler, history=history)

    def _shown(self, method: Method) -> dict[str, Any]:
        """Return which part of the history a method's prompts show, and the revision of its wording."""
        shown = {"shown": method.shown}
        summed = method.shown in ("summary", *PROFILED)
        return shown | ({"summary_revision": self.wording.summary_revision} if summed else {})

    def _inputs(self, method: Method) -> tuple[Step, ...]:
        """Return the steps that a method's texts and likelihoods are made from."""
        shown = {"contriever": self.relevance, "summary": self.summaries, **self.profiles}.get(method.shown)
        own = (
            shown,
            self.train.get(method.trained_as),
            self.personal if method.personal else None,
            self.style if method.styles else None,
            *((self.peers, self.soft) if method.soft else ()),
        )
        return (*self.base, *(step for step in own if step))

    def _engine(self, method: Method) -> dict[str, Any]:
        """Return the engine that generates a method's texts, under the keys of the configuration, which `status` names.

        Of a server, the name of the model that serves this method counts. Its URL, key, load and retries do not.
        """
        engine = self.settings.engine
        if engine == "transformers":
            return {"engine": engine}
        served = served_model(method, self.settings.server.models)
        return {"engine": engine, "server": {"models": {method.name: served}}}

    def _predictions(
        self,
        name: str,
        preset: str,
        split: str,
        sampler: str | None,
        strength: float | None = None,
        history: str = OWN,
        style: Style | None = None,
    ) -> PredictionSet:
        method = METHODS[name]
        paper = preset == PAPER.name
        tried = style.label if style else f"{strength:g}" if strength is not None else ""
        decoding = f"{preset}-{tried}" if tried else preset
        settings: dict[str, Any] = {
            "method": name,
            "decoding": decoding,
            **self._shown(method),
            "split": split,
            "past": history,  # the key is part of every fingerprint
            "max_new_tokens": self.settings.paper_max_new_tokens if paper else self.settings.max_new_tokens,
            "evaluate": self._engine(method),
        }
        inputs = self._inputs(method)
        if sampler is None:
            inputs = (*inputs, self.choices[SANE])
        else:
            settings["sampler"] = {key: value for key, value in asdict(DECODINGS[sampler]).items() if key != "summary"}
        if sampler is None or not DECODINGS[sampler].greedy or history == STRANGER:
            settings["seed"] = self.config.seed
        if method.tuned and not tried:
            inputs = (*inputs, self.choices[steering_choice(name)])
        elif style:
            settings["style"] = asdict(style)
        elif method.steered:
            settings["strength"] = strength
        if method.contrasted:
            settings["contrast"] = asdict(COPE)
        label = f"{name}-{decoding}" + ("" if split == self.settings.split else f"-{split}") + _suffix(history)
        step = Step("predictions", label, {**self.common, **settings}, inputs)
        return PredictionSet(step, name, decoding, split, sampler, strength, history, style)

    def _likelihood(self, name: str, history: str = OWN) -> Step:
        method = METHODS[name]
        settings: dict[str, Any] = {"method": name, **self._shown(method)}
        settings |= {"split": self.settings.split, "past": history}
        settings |= {"seed": self.config.seed} if history == STRANGER else {}
        if method.contrasted:  # likelihoods are normalised, so logits and log-probabilities give the same
            settings["contrast"] = {key: value for key, value in asdict(COPE).items() if key != "log_probabilities"}
        inputs = self._inputs(method) + ((self.choices[steering_choice(name)],) if method.tuned else ())
        return Step("likelihood", f"likelihood:{name}{_suffix(history)}", {**self.common, **settings}, inputs)

    def _bare_likelihood(self, name: str) -> Step:
        """Plan the likelihoods of a method's model without any history.

        The model of a method without an adapter is θ0, whose likelihoods are computed once for all such methods.
        """
        adapted = any(source.kind in ("train", "personal") for source in self._inputs(METHODS[name]))
        step = self._likelihood(name, NONE) if adapted else self._likelihood(BASE)
        return replace(step, name=f"likelihood:{name}{_suffix(NONE)}")


def encoder_identity(
    config: Config, key: str, name: str, revision: str, digests: DigestCache, **changes: Any
) -> dict[str, Any]:
    """Return which text encoder this is: a hub name with its revision, or the digests of a local folder's files.

    Args:
        config: The settings.
        key: The setting that names the encoder, for messages.
        name: A hub name, a folder or the name of a packaged encoder.
        revision: Revision on the hub.
        digests: Digests of the files of a local folder.
        changes: Further keys of `model` that the encoder is loaded with.

    Raises:
        ModelError: The name can only be a folder, and there is no model in it.
    """
    encoder = {"name_or_path": located_encoder(name), "revision": revision, "dtype": "float32", **changes}
    remedy = f"set {key} to a folder, a hub name (org/name) or `minilm`"
    return external_model_identity(config.model.model_copy(update=encoder), digests, remedy)


def text_encoder_identity(config: Config, key: str, name: str, revision: str, digests: DigestCache) -> dict[str, Any]:
    """Return which encoder makes vectors of texts, and how it pools; see `encoder_identity`.

    Args:
        config: The settings.
        key: The setting that names the encoder, for messages.
        name: A hub name, a folder or the name of a packaged encoder.
        revision: Revision on the hub.
        digests: Digests of the files of a local folder.
    """
    return encoder_identity(config, key, name, revision, digests) | _pooling(located_encoder(name))


def steering_choice(method: str) -> str:
    """Return the name of the choice of how strongly a method is steered, or of its style vectors."""
    return STEERING if method == "cos" else f"{STEERING}-{method}"  # the name of a step is part of fingerprints


def _pooling(encoder: str) -> dict[str, Any]:
    """Return how an encoder makes vectors, unless by the mean alone; the files of a hub model may not be here yet."""
    if encoder == CONTRIEVER:
        return {}
    if not Path(encoder).expanduser().is_dir():
        return {"pooling": "as its files say"}
    pooling = stored_pooling(encoder)
    return {"pooling": asdict(pooling)} if pooling != Pooling() else {}


def _suffix(history: str) -> str:
    return "" if history == OWN else f"-{history}"
