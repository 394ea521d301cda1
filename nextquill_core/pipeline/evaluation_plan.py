"""What an evaluation is made of: texts, what goes into them, what is chosen on val, and likelihoods.

relevance, summaries ─┐
adapters, personal ───┼─▶ predictions on val ─▶ choices ─▶ predictions ─┐
                      └─▶ likelihoods ──────────────────────────────────┴─▶ evaluate
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from nextquill_core.config import Config, EvaluateConfig
from nextquill_core.generation.decoding import DECODINGS, PAPER, SAMPLED, SANE_CANDIDATES, STEERING_STRENGTHS
from nextquill_core.methods.registry import BASE_ENCODER, METHODS, Method, served_model
from nextquill_core.methods.summaries import PROMPT_REVISION
from nextquill_core.model.identity import external_model_identity
from nextquill_core.pipeline.step import Step
from nextquill_core.prompts import SUMMARY_REVISION
from storage import DigestCache

SANE, STEERING = "sane", "steering"
"""What is chosen on val: how the preset `sane` decodes, and how strongly `cos` steers."""
CHOOSER = "latestk"
"""The method whose val texts decide what `sane` is: no training of ours takes part, so it favours none."""
OWN, STRANGER = "own", "stranger"

Key = tuple[str, str]  # method, decoding


@dataclass(frozen=True)
class Writing:
    """What one set of predictions is.

    Attributes:
        decoding: A preset of the evaluation; on val, a candidate.
        sampler: A name in `DECODINGS`; None for what was chosen as `sane`.
        strength: Of steering; None where nothing is steered, or for the strength that was chosen.
        past: Whose past reviews go in, the user's `own` or a `stranger`'s.
    """

    step: Step
    method: str
    decoding: str
    split: str
    sampler: str | None
    strength: float | None = None
    past: str = OWN

    @property
    def limit(self) -> int:
        """The longest answer, in tokens."""
        limit: int = self.step.settings["max_new_tokens"]
        return limit


@dataclass(frozen=True)
class EvaluationPlan:
    """The steps before `evaluate`.

    Attributes:
        relevance: How near each past review is to the query, by the encoder; None where no method asks.
        summaries: For `llm-trsr`.
        tasks: The adapters that personal ones stand on, `task-0` first.
        personal: For `oppu`.
        candidates: By what is chosen (`sane`, `steering`) and then by candidate: predictions on val.
        choices: By what is chosen.
        predictions: By method and decoding preset.
        controls: The same with a stranger's past reviews, under the last preset.
        likelihoods: By method, of the true reviews.
        control_likelihoods: The same with a stranger's past reviews.
    """

    relevance: Step | None = None
    summaries: Step | None = None
    tasks: Mapping[str, Step] = field(default_factory=dict)
    personal: Step | None = None
    candidates: Mapping[str, Mapping[str, Writing]] = field(default_factory=dict)
    choices: Mapping[str, Step] = field(default_factory=dict)
    predictions: Mapping[Key, Writing] = field(default_factory=dict)
    controls: Mapping[Key, Writing] = field(default_factory=dict)
    likelihoods: Mapping[str, Step] = field(default_factory=dict)
    control_likelihoods: Mapping[str, Step] = field(default_factory=dict)

    @property
    def writings(self) -> Iterator[Writing]:
        """All sets of predictions, those on val first."""
        for candidates in self.candidates.values():
            yield from candidates.values()
        yield from self.predictions.values()
        yield from self.controls.values()

    @property
    def steps(self) -> Iterator[Step]:
        """Everything that the evaluate stage makes before it measures, in the order in which it can be made."""
        yield from (step for step in (self.relevance, self.summaries, self.personal) if step)
        for name, candidates in self.candidates.items():
            yield from (writing.step for writing in candidates.values())
            yield self.choices[name]
        yield from (writing.step for writing in (*self.predictions.values(), *self.controls.values()))
        yield from (*self.likelihoods.values(), *self.control_likelihoods.values())


class _Planner:
    """Puts the steps together; what each kind of past and of model brings along is said once, here."""

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
        chosen = [METHODS[name] for name in self.settings.methods]
        shown = {method.shown for method in chosen}
        self.relevance = self._relevance() if "contriever" in shown else None
        self.summaries = self._summaries() if "summary" in shown else None
        self.personal = self._personal() if any(method.personal for method in chosen) else None
        self.choices: dict[str, Step] = {}

    def plan(self) -> EvaluationPlan:
        settings = self.settings
        candidates: dict[str, dict[str, Writing]] = {}
        if SANE in settings.decoding:
            candidates[SANE] = {name: self._writing(CHOOSER, name, "val", name) for name in SANE_CANDIDATES}
            self._choose(SANE, candidates[SANE])
        if steered := next((name for name in settings.methods if METHODS[name].steered), None):
            candidates[STEERING] = {
                f"{strength:g}": self._writing(steered, f"{SAMPLED.name}-{strength:g}", "val", SAMPLED.name, strength)
                for strength in STEERING_STRENGTHS
            }
            self._choose(STEERING, candidates[STEERING])
        predictions: dict[Key, Writing] = {
            (name, decoding): self._writing(name, decoding, settings.split, self._sampler(METHODS[name], decoding))
            for name in settings.methods
            for decoding in settings.decoding
        }
        controlled = [name for name in settings.methods if METHODS[name].shown == "newest"]
        if settings.control == "none":
            controlled = []
        last = settings.decoding[-1]
        return EvaluationPlan(
            self.relevance,
            self.summaries,
            self.tasks,
            self.personal,
            candidates,
            self.choices,
            predictions,
            {
                (name, last): self._writing(
                    name, last, settings.split, self._sampler(METHODS[name], last), past=STRANGER
                )
                for name in controlled
            },
            {name: self._likelihood(name) for name in settings.methods},
            {name: self._likelihood(name, STRANGER) for name in controlled},
        )

    def _relevance(self) -> Step:
        """What the encoder finds near to what; a hub name or the digests of a folder say which encoder it is."""
        retrieval = self.settings.retrieval
        encoder: Any = {"base": self.common["model"]}
        if retrieval.encoder != BASE_ENCODER:
            other = self.config.model.model_copy(
                update={"name_or_path": retrieval.encoder, "revision": retrieval.revision, "dtype": "float32"}
            )
            encoder = external_model_identity(other, self.digests)
        settings = {"encoder": encoder, "split": self.settings.split}
        own_model = self.base if retrieval.encoder == BASE_ENCODER else self.base[:1]
        return Step("relevance", "relevance", settings, own_model)

    def _summaries(self) -> Step:
        settings = self.settings.summaries.semantic() | {"split": self.settings.split, "revision": PROMPT_REVISION}
        return Step("summaries", "summaries", {**self.common, **settings}, self.base)

    def _personal(self) -> Step:
        settings = {"personal": self.settings.personal.semantic(), "split": self.settings.split}
        identity = {**self.common, **settings, "seed": self.config.seed}
        return Step("personal", "personal", identity, (*self.base, *self.tasks.values()))

    def _choose(self, name: str, candidates: Mapping[str, Writing]) -> None:
        settings = {"by": self.settings.choose_by, "candidates": list(candidates)}
        inputs = (self.base[0], *(writing.step for writing in candidates.values()))
        self.choices[name] = Step("choice", f"choice:{name}", settings, inputs)

    def _sampler(self, method: Method, decoding: str) -> str | None:
        """CoS brings its own sampler where the others decode as published."""
        if decoding == SANE:
            return None
        return SAMPLED.name if method.steered else decoding

    @staticmethod
    def _shown(method: Method) -> dict[str, Any]:
        """What of the past goes in, and how it is put."""
        shown = {"shown": method.shown}
        return shown | ({"summary_revision": SUMMARY_REVISION} if method.shown == "summary" else {})

    def _brought(self, method: Method) -> tuple[Step, ...]:
        """What a method's texts and likelihoods are made from."""
        brought = {"contriever": self.relevance, "summary": self.summaries}.get(method.shown)
        parts = (brought, self.train.get(method.name), self.personal if method.personal else None)
        return (*self.base, *(part for part in parts if part))

    def _engine(self, method: Method) -> dict[str, Any]:
        """Return what generates a method's texts, under the names of the configuration, which explain a change.

        A server counts by the name of its model for this method alone. Its URL, key, load and retries do not count.
        """
        engine = self.settings.engine
        if engine == "transformers":
            return {"engine": engine}
        served = served_model(method, self.settings.server.models)
        return {"engine": engine, "server": {"models": {method.name: served}}}

    def _writing(
        self, name: str, decoding: str, split: str, sampler: str | None, strength: float | None = None, past: str = OWN
    ) -> Writing:
        method = METHODS[name]
        paper = decoding == PAPER.name
        settings: dict[str, Any] = {
            "method": name,
            "decoding": decoding,
            **self._shown(method),
            "split": split,
            "past": past,
            "max_new_tokens": self.settings.paper_max_new_tokens if paper else self.settings.max_new_tokens,
            "evaluate": self._engine(method),
        }
        inputs = self._brought(method)
        if sampler is None:
            inputs = (*inputs, self.choices[SANE])
        else:
            settings["sampler"] = {key: value for key, value in asdict(DECODINGS[sampler]).items() if key != "summary"}
        if sampler is None or not DECODINGS[sampler].greedy or past == STRANGER:
            settings["seed"] = self.config.seed
        if method.steered and strength is None:
            inputs = (*inputs, self.choices[STEERING])
        elif method.steered:
            settings["strength"] = strength
        label = f"{name}-{decoding}" + ("" if split == self.settings.split else f"-{split}")
        label += "" if past == OWN else f"-{past}"
        return Writing(
            Step("predictions", label, {**self.common, **settings}, inputs),
            name, decoding, split, sampler, strength, past,
        )  # fmt: skip

    def _likelihood(self, name: str, past: str = OWN) -> Step:
        method = METHODS[name]
        settings: dict[str, Any] = {"method": name, **self._shown(method)}
        settings |= {"split": self.settings.split, "past": past}
        settings |= {"seed": self.config.seed} if past == STRANGER else {}
        inputs = self._brought(method) + ((self.choices[STEERING],) if method.steered else ())
        label = f"likelihood:{name}" + ("" if past == OWN else f"-{past}")
        return Step("likelihood", label, {**self.common, **settings}, inputs)


def plan_evaluation(
    config: Config,
    common: Mapping[str, Any],
    base: tuple[Step, ...],
    train: Mapping[str, Step],
    tasks: Mapping[str, Step],
    digests: DigestCache,
) -> EvaluationPlan:
    """Work out the steps before `evaluate`.

    Args:
        config: The settings.
        common: What decides every text: the model's identity and the prompt's settings.
        base: The ingest step first, then that of the offline base model, if there is one.
        train: By method.
        tasks: The adapters that personal ones stand on, by name.
        digests: Of the files of a local encoder.

    Raises:
        UserError: The encoder's folder is missing.
    """
    return _Planner(config, common, base, train, tasks, digests).plan()
