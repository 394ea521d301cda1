"""What a run still has to make, and what that takes, before anything is downloaded, loaded or run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nextquill_core.config import Config
from nextquill_core.costs.cards import CARDS, PLANNED
from nextquill_core.costs.rates import Measured, Rates, card_rates
from nextquill_core.costs.shape import BYTES, ModelShape, model_shape
from nextquill_core.costs.sizes import Sizes, known_sizes, stored_sizes
from nextquill_core.costs.work import Work, WorkCounter
from nextquill_core.errors import DataError
from nextquill_core.hub import is_cached
from nextquill_core.ingest.sources import RawFiles, source
from nextquill_core.model.identity import is_hub_name
from nextquill_core.pipeline.plan import Plan, make_plan
from nextquill_core.pipeline.run import OpenRun, Run
from nextquill_core.pipeline.step import Step, lineage
from storage import DigestCache
from storage.download import is_remote

GROUPS: Mapping[str, tuple[str, ...]] = {
    "ingest": ("scan", "ingest"),
    "model": ("model",),
    "score": ("effects", "score"),
    "train": ("train",),
    "retrieval": ("relevance",),
    "summaries": ("summaries",),
    "profiles": ("profiles",),
    "personal adapters": ("personal",),
    "style vectors": ("style",),
    "soft tokens": ("peers", "soft"),
    "texts": ("predictions",),
    "likelihoods": ("likelihood",),
    "judge": ("rubrics", "judged"),
    "evaluate": ("choice", "clusters", "evaluate"),
}
"""The rows of the table, and the kinds of steps in each, in the order in which a run makes them."""
NOWHERE = Path("nowhere")
"""A file of digests that does not exist: without raw files there is nothing to remember."""


@dataclass(frozen=True)
class StepCost:
    """A step and its work.

    Attributes:
        step: The step.
        state: What `nextquill status` says of it.
        work: Its work, if it is made.
    """

    step: Step
    state: str
    work: Work

    @property
    def missing(self) -> bool:
        """Whether a run makes it."""
        return self.state != "fresh"


@dataclass(frozen=True)
class Row:
    """The steps of one row of the table that a run makes.

    Attributes:
        name: A key of `GROUPS`.
        steps: Number of steps in all.
        missing: Number of those that are made.
        examples: Number of examples that they go through.
        seconds: Seconds on one card, by its name.
        processor: Seconds on two processor cores.
        stored: Bytes of their artifacts.
    """

    name: str
    steps: int
    missing: int
    examples: float
    seconds: Mapping[str, float]
    processor: float
    stored: float


@dataclass(frozen=True)
class Estimate:
    """What a run takes.

    Attributes:
        config: The settings.
        sizes: The data.
        shape: The base model.
        rates: How fast each card works.
        steps: All steps, each after its inputs.
        downloads: Bytes that are downloaded first, by what they are.
    """

    config: Config
    sizes: Sizes
    shape: ModelShape
    rates: Sequence[Rates]
    steps: Sequence[StepCost]
    downloads: Mapping[str, float]

    @property
    def model_bytes(self) -> float:
        """Bytes of the base model's weights."""
        return self.shape.parameters * BYTES[self.config.model.dtype]

    @property
    def rows(self) -> Iterator[Row]:
        """The rows of the table, without those that the configuration has no step for."""
        for name, kinds in GROUPS.items():
            steps = [one for one in self.steps if one.step.kind in kinds]
            works = [one.work for one in steps if one.missing]
            if steps:
                yield Row(
                    name,
                    len(steps),
                    len(works),
                    sum(work.examples for work in works),
                    {rates.name: sum(rates.seconds(work, self.model_bytes) for work in works) for rates in self.rates},
                    sum(work.processor for work in works),
                    sum(work.stored for work in works),
                )

    def hours(self, rates: Rates, *, longest: bool = False) -> float:
        """Return the hours of one card for all that is missing.

        Args:
            rates: How fast it works.
            longest: Whether every text reaches its maximum length.
        """
        missing = [one.work for one in self.steps if one.missing]
        return sum(rates.seconds(work, self.model_bytes, longest=longest) for work in missing) / 3600

    def dollars(self, name: str) -> float | None:
        """Return the price of an hour of a card; None for this machine."""
        price: float | None = getattr(self.config.prices, name.lower(), None)
        return price

    @property
    def too_small(self) -> list[str]:
        """Names of the cards whose memory is smaller than the weights of the base model."""
        return [
            rates.name for rates in self.rates if rates.name in CARDS and CARDS[rates.name].memory < self.model_bytes
        ]

    @property
    def stored(self) -> float:
        """Bytes of all artifacts that are made."""
        return sum(one.work.stored for one in self.steps if one.missing)

    @property
    def document(self) -> dict[str, Any]:
        """The estimate as JSON values."""
        return {
            "sizes": {
                "users": self.sizes.users,
                "examples": dict(self.sizes.examples),
                "counted": self.sizes.counted,
                "tokens": {
                    "prompt": round(self.sizes.lengths.prompt, 1),
                    "bare": round(self.sizes.lengths.bare, 1),
                    "opening": round(self.sizes.lengths.opening, 1),
                    "answer": round(self.sizes.lengths.answer, 1),
                },
                "measured": self.sizes.measured,
                "parameters": self.shape.parameters,
            },
            "steps": [
                {
                    "step": one.step.name,
                    "kind": one.step.kind,
                    "state": one.state,
                    "seconds": {
                        rates.name: round(rates.seconds(one.work, self.model_bytes), 1) if one.missing else 0
                        for rates in self.rates
                    },
                    "processor_seconds": round(one.work.processor, 1) if one.missing else 0,
                    "bytes": round(one.work.stored) if one.missing else 0,
                }
                for one in self.steps
            ],
            "too_small": self.too_small,
            "hours": {rates.name: round(self.hours(rates), 3) for rates in self.rates},
            "hours_at_most": {rates.name: round(self.hours(rates, longest=True), 3) for rates in self.rates},
            "dollars": {
                rates.name: round(self.hours(rates) * price, 2)
                for rates in self.rates
                for price in [self.dollars(rates.name)]
                if price is not None
            },
            "rates": {rates.name: rates.source for rates in self.rates},
            "bytes": {"downloads": dict(self.downloads), "artifacts": round(self.stored)},
        }


def estimate(
    config: Config,
    open_run: OpenRun,
    *,
    users: int | None = None,
    measured: Sequence[Measured] = (),
    here: bool = False,
) -> Estimate:
    """Return what a run of a configuration takes; nothing is downloaded, made or written.

    Args:
        config: The settings.
        open_run: Opens a configuration for reading.
        users: Number of users to assume where the sequences have not been made and nothing is known of the data.
        measured: What was measured on accelerators.
        here: Whether to measure this machine, too.

    Raises:
        UserError: The data or the model are not known well enough, or the configuration cannot be used.
    """
    absent = _absent(config)
    if absent:
        plan, run = make_plan(config, DigestCache(NOWHERE, save=False), fetch=False, files=absent), None
    else:
        run = open_run(config)
        plan = run.plan
    made = _fresh(run, plan.model)
    ingested = _fresh(run, plan.ingest)
    shape = model_shape(plan.base, made.folder / "model" if made else None)
    if ingested and run:
        sizes = stored_sizes(plan, ingested, _tokenizer(run, made is not None))
    else:
        sizes = known_sizes(plan, users)
    number_bytes = BYTES[config.model.dtype]
    context = sizes.lengths.prompt + sizes.lengths.answer / 2
    rates = [card_rates(CARDS[name], shape, number_bytes, context, measured) for name in PLANNED]
    if here:
        from nextquill_core.costs.trial import measure_here

        rates.append(measure_here(shape, config.model.dtype, sizes.lengths, config))
    counter = WorkCounter(plan, shape, sizes)
    goals = [plan.evaluate, *([plan.evaluation.clusters] if plan.evaluation.clusters else [])]
    steps = [
        StepCost(step, run.freshness(step).state if run else "missing", counter.of(step)) for step in lineage(*goals)
    ]
    return Estimate(config, sizes, shape, rates, steps, _downloads(plan, shape, sizes))


def _absent(config: Config) -> tuple[RawFiles, ...] | None:
    """Return the raw files with none for a category that is not downloaded or written yet; None if all are here.

    Raises:
        DataError: A file that is named is missing.
    """
    reader = source(config.ingest.source, config.ingest.options)
    found, complete = [], True
    for raw in config.ingest.inputs:
        named = [path for path in (raw.reviews, raw.items) if path and not is_remote(path)]
        try:
            found.append(reader.find(raw, fetch=False))
        except DataError:
            if named:
                raise
            found.append(RawFiles(raw.category, (), ()))
            complete = False
    return None if complete else tuple(found)


def _fresh(run: Run | None, step: Step | None) -> Any:
    """Return the artifact of a step if it is up to date."""
    if run is None or step is None:
        return None
    known = run.freshness(step)
    return known.artifact if known.state == "fresh" else None


def _tokenizer(run: Run, made: bool) -> Any:
    """Return the base model's tokenizer, or None where it is not on this machine."""
    base = run.plan.base
    here = made if run.plan.model else not is_hub_name(base.name_or_path) or is_cached(base.name_or_path, base.revision)
    if not here:
        return None
    from nextquill_core.model.loading import load_tokenizer

    return load_tokenizer(run.model)


def _downloads(plan: Plan, shape: ModelShape, sizes: Sizes) -> dict[str, float]:
    """Return the bytes of what a run downloads first: raw files, and the base model."""
    found = {f"raw files of {raw.category}": sizes.raw_bytes[raw.category] for raw in plan.files
             if not raw.reviews and sizes.raw_bytes[raw.category]}  # fmt: skip
    base = plan.base
    if (
        base.name_or_path != "tiny"
        and is_hub_name(base.name_or_path)
        and not is_cached(base.name_or_path, base.revision)
    ):
        found[f"model {base.name_or_path}"] = shape.parameters * BYTES[plan.config.model.dtype]
    return found
