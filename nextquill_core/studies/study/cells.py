"""The cells of a study: which configurations its questions need, what is missing of them, and what that may cost."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from nextquill_core.errors import UserError
from nextquill_core.pipeline import Step, lineage
from nextquill_core.pipeline.run import OpenRun, Run
from nextquill_core.studies.study.choice import Chosen
from nextquill_core.studies.study.spec import BASE, Choice, Overrides, StudyConfig

EFFECTS, PARTS, GAIN, DECODING, VARIANTS = QUESTIONS = (1, 2, 3, 4, 5)
"""Numbers of the questions: are the effects right, which part does the work, where is the gain, does decoding use it,
and what else decides it."""
CHOICES: Mapping[str, tuple[int, ...]] = {"parts": (PARTS, GAIN, DECODING), "variants": (VARIANTS,)}
"""The questions that need what is chosen, by the name of the choice in a study."""
MODELS = "effects"
"""The cells of question 1, in place of the name of a choice."""
LOOKED_AT = 20
"""Number of artifacts of a kind, the newest, from whose times the cost of another one is estimated."""


@dataclass(frozen=True)
class Cell:
    """One configuration of a study.

    Attributes:
        study: Name of the study.
        choice: `parts` or `variants`, the choice among whose candidates it stands; `effects` for a model of question 1,
            of which only the effects are measured.
        candidate: The candidate.
        split: `val` or `test`.
        seed: The seed.
        methods: The methods that it measures.
        run: The run of its configuration.
    """

    study: str
    choice: str
    candidate: str
    split: str
    seed: int
    methods: tuple[str, ...]
    run: Run

    @property
    def label(self) -> str:
        """The cell in a few words."""
        where = "" if self.choice == MODELS else f", {self.split}"
        return f"{self.study}: {self.choice}, {self.candidate}{where}, seed {self.seed}"

    @property
    def goal(self) -> Step:
        """The step that the cell is run for."""
        return self.run.plan.effects if self.choice == MODELS else self.run.plan.evaluate


Choices = Mapping[str, Mapping[str, Chosen]]
"""What was chosen on val, by the name of the choice and then by method."""


class Study:
    """A study whose cells are opened with the runs of their configurations.

    Args:
        spec: The study.
        open_run: Opens a configuration.
        questions: Numbers of the questions to answer.
    """

    def __init__(self, spec: StudyConfig, open_run: OpenRun, questions: Collection[int] = QUESTIONS) -> None:
        self.spec = spec
        self.open_run = open_run
        self.questions = frozenset(questions)

    def choice(self, name: str) -> Choice:
        """Return a choice by its name in the study."""
        return self.spec.parts if name == "parts" else self.spec.variants

    def candidates(self, name: str) -> dict[str, Overrides]:
        """Return the candidates of a choice, or the models of question 1 (`MODELS`), the base first."""
        return {BASE: {}, **self.spec.effects} if name == MODELS else self.choice(name).all_candidates

    @property
    def needed_choices(self) -> list[str]:
        """The names of the choices that the questions need."""
        return [name for name, users in CHOICES.items() if self.questions & set(users)]

    def chooses(self, name: str) -> bool:
        """Return whether candidates of a choice must be measured on val: there are several, or question 5 shows them.

        Args:
            name: Name of the choice.
        """
        return name == "variants" or len(self.candidates(name)) > 1

    def base_run(self, seed: int) -> Run:
        """Return the run of the base configuration with all methods of the study's rows, on test.

        Args:
            seed: The seed.
        """
        return self.open_run(
            self.spec.config({}, methods=self.spec.rows, split="test", seed=seed, decoding=self.spec.decoding)
        )

    def effect_cells(self) -> list[Cell]:
        """Return the cells of question 1: the base's effects and those of further models, where a study names any."""
        if EFFECTS not in self.questions or not self.spec.effects:
            return []
        return [
            self._cell(MODELS, name, (self.spec.reference,), "test", self.spec.seeds[0])
            for name in self.candidates(MODELS)
        ]

    def val_cells(self) -> list[Cell]:
        """Return the cells that choices are made from: each candidate on val, without generated texts."""
        return [
            self._cell(name, candidate, (self.spec.reference, *choosing), "val", seed)
            for name in self.needed_choices
            if self.chooses(name)
            for choosing in [[m for m in self.spec.choosing(self.choice(name)) if m != self.spec.reference]]
            for candidate in self.candidates(name)
            for seed in self.spec.seeds[: self.choice(name).seeds]
        ]

    def test_cells(self, choices: Choices) -> list[Cell]:
        """Return the cells of the rows on test, each method under the candidate that was chosen for it.

        Args:
            choices: What was chosen on val; methods without a choice are measured under the base.
        """
        first, *_ = self.spec.seeds
        return [
            self._cell(name, candidate, shown, "test", seed)
            for name in self.needed_choices
            for candidate, methods in self.chosen_methods(name, choices).items()
            for seed in self.spec.seeds
            if (shown := tuple(one for one in methods if seed == first or one not in self.spec.first_seed_only))
        ]

    def chosen_methods(self, name: str, choices: Choices) -> dict[str, list[str]]:
        """Return the methods to measure on test by the candidate that was chosen for them.

        Args:
            name: Name of the choice.
            choices: What was chosen on val.
        """
        spec, chosen = self.spec, choices.get(name, {})
        found: dict[str, list[str]] = {}
        if name == "variants":
            for method in spec.choosing(spec.variants):
                candidate = chosen[method].candidate if method in chosen else BASE
                found.setdefault(candidate, [spec.reference]).append(method)
            return {candidate: list(dict.fromkeys(methods)) for candidate, methods in found.items()}
        rows = spec.rows if self.questions & {PARTS, GAIN} else (spec.reference, spec.method)
        for method in (*rows, *(spec.decoding_methods if DECODING in self.questions else ())):
            chooser = spec.method if method in spec.decoding_methods else method
            candidate = chosen[chooser].candidate if chooser in chosen else BASE
            found.setdefault(candidate, []).append(method)
        return found

    def _cell(self, name: str, candidate: str, methods: tuple[str, ...], split: str, seed: int) -> Cell:
        overrides = self.candidates(name)[candidate]
        if name == MODELS:  # whose adapters without a fold of the users no question asks for
            overrides = {**overrides, "evaluate.preference_tokens": ["initial"]}
        decoding = self.spec.decoding if split == "test" else ()
        config = self.spec.config(overrides, methods=methods, split=split, seed=seed, decoding=decoding)
        return Cell(self.spec.name, name, candidate, split, seed, methods, self.open_run(config))


def is_measured(cell: Cell) -> bool:
    """Return whether everything of a cell is in its store and up to date."""
    return cell.run.freshness(cell.goal).state == "fresh"


@dataclass(frozen=True)
class PlanRow:
    """What one cell still needs.

    Attributes:
        cell: The cell.
        missing: Number of its artifacts that are missing or stale, by kind, without those of the cells before it.
        seconds: What they may take, by the times of others of their kind in the store; None if the store has none.
    """

    cell: Cell
    missing: Mapping[str, int]
    seconds: float | None

    @property
    def text(self) -> str:
        """The row as a line of text."""
        if not self.missing:
            shared = "" if is_measured(self.cell) else ", waits for cells above"
            return f"{self.cell.label} ({', '.join(self.cell.methods)}): nothing to make{shared}"
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.missing.items())
        about = "unknown" if self.seconds is None else f"about {duration(self.seconds)}"
        return f"{self.cell.label} ({', '.join(self.cell.methods)}): to make {kinds}; {about}"


def plan_rows(cells: Iterable[Cell]) -> Iterator[PlanRow]:
    """Yield what each cell still needs; an artifact that several need is counted at the first of them.

    Args:
        cells: The cells in the order in which they run.
    """
    counted: set[tuple[str, str]] = set()
    times: dict[str, float | None] = {}
    for cell in cells:
        steps = [
            step
            for step in lineage(cell.goal)
            if step.address not in counted and cell.run.freshness(step).state != "fresh"
        ]
        counted |= {step.address for step in steps}
        seconds: float | None = 0.0
        for step in steps:
            if step.kind not in times:
                times[step.kind] = _typical_seconds(cell.run, step)
            known = times[step.kind]
            seconds = None if seconds is None or known is None else seconds + known
        yield PlanRow(cell, Counter(step.kind for step in steps), seconds)


def plan_lines(rows: Sequence[PlanRow]) -> Iterator[str]:
    """Yield a plan as lines of text, the whole cost last.

    Args:
        rows: As from `plan_rows`.
    """
    yield from (f"  {row.text}" for row in rows)
    kinds = Counter[str]()
    for row in rows:
        kinds.update(row.missing)
    if not kinds:
        yield "  everything is up to date"
        return
    known = [row.seconds for row in rows if row.missing and row.seconds is not None]
    unknown = sum(row.seconds is None for row in rows)
    costs = [f"about {duration(sum(known))}"] * bool(known) + [f"{unknown} cells of unknown cost"] * bool(unknown)
    cost = ", and ".join(costs)
    yield f"  to make: {', '.join(f'{count} {kind}' for kind, count in kinds.items())}; {cost}"


def duration(seconds: float) -> str:
    """Return a duration in words, such as `3 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def _typical_seconds(run: Run, step: Step) -> float | None:
    """Return the median time of the newest artifacts of this kind with the same base model, or None without any."""
    model = step.settings.get("model")
    newest = islice(run.store.newest_first(step.kind), LOOKED_AT)
    times = [found.manifest.seconds for found in newest if found.manifest.identity.get("model") == model]
    return statistics.median(times) if times else None


def require_one_store(studies: Sequence[Study]) -> None:
    """Make sure that all studies have their artifacts in one store and different names.

    Raises:
        UserError: They do not.
    """
    names = Counter(study.spec.name for study in studies)
    if twice := [name for name, count in names.items() if count > 1]:
        raise UserError(f"several studies have the name {twice[0]}", "study", "give each another `name`")
    stores = {str(study.base_run(study.spec.seeds[0]).store.root) for study in studies}
    if len(stores) > 1:
        raise UserError("the studies name different stores", "study", "give all of them one by --store")
