"""The artifact of studies: all their numbers as JSON, the page that is written from it, and its figures."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from nextquill_core.config import Config
from nextquill_core.errors import UserError
from nextquill_core.evaluation.metrics import METRICS
from nextquill_core.evaluation.tables import NO_TEXTS
from nextquill_core.model.identity import base_name
from nextquill_core.pipeline import Step
from nextquill_core.pipeline.evaluate import chosen_notes, read_results
from nextquill_core.pipeline.run import Outcome, Run
from nextquill_core.progress import Progress
from nextquill_core.studies.study.cells import DECODING, EFFECTS, MODELS, Cell, Choices, Study, is_measured
from nextquill_core.studies.study.choice import Chosen, choose
from nextquill_core.studies.study.effects import effect_rows
from nextquill_core.studies.study.measure import Line, Measured, read_cell, table, val_differences
from nextquill_core.studies.study.spec import BASE
from storage import Staging
from storage.files import atomic_path, user_path
from storage.stored_json import read_checked

TINY = "tiny"
"""Name of the offline base model."""
RESULTS, PAGE, IMAGES = "results.json", "RESULTS.md", "images"
FIRST = ("personal_gain", "history_gain", "log_likelihood")
"""Metrics that tables show first; other metrics of likelihoods follow, then those of texts."""


def choices_of(study: Study) -> Choices:
    """Return what val says to choose; a choice that lacks a cell is left out, and one without candidates is empty.

    Args:
        study: The study.
    """
    cells = study.val_cells()
    found: dict[str, dict[str, Chosen]] = {}
    for name in study.needed_choices:
        own = [cell for cell in cells if cell.choice == name]
        if not study.chooses(name):
            found[name] = {}
            continue
        if not all(map(is_measured, own)):
            continue
        choice, reference = study.choice(name), study.spec.reference
        found[name] = {
            method: choose(val_differences(own, method, reference), choice, reference)
            for method in study.spec.choosing(choice)
            if method != reference
        }
    return found


def study_step(studies: Sequence[Study]) -> Step:
    """Return the step of the page of some studies, whose inputs are all evaluations that are up to date by now."""
    inputs = [
        replace(cell.goal, name=cell.label)
        for study in studies
        for cell in (*study.effect_cells(), *study.val_cells(), *_test_cells(study))
        if is_measured(cell)
    ]
    settings = {
        "studies": [study.spec.fingerprint_fields() for study in studies],
        "questions": sorted({number for study in studies for number in study.questions}),
    }
    return Step("study", "study", settings, tuple(inputs))


def _test_cells(study: Study) -> list[Cell]:
    choices = choices_of(study)
    return [cell for cell in study.test_cells(choices) if cell.choice in choices]


def collect(studies: Sequence[Study], *, force: bool = False) -> Outcome:
    """Make the artifact of studies from what the store has; cells that have not run are listed on the page.

    Args:
        studies: The studies, all in one store.
        force: Make it even if it is up to date.

    Raises:
        UserError: Nothing has been measured yet.
    """
    step = study_step(studies)
    if not step.inputs:
        raise UserError("nothing has been measured yet", "study", "run `nextquill study` without --write-only")
    run = studies[0].base_run(studies[0].spec.seeds[0])
    return run.make(step, force=force, studies=studies)


def build_study(
    run: Run, step: Step, staging: Staging, progress: Progress, *, studies: Sequence[Study]
) -> dict[str, Any]:
    """Write results.json, RESULTS.md and the figures.

    Args:
        run: The run of the first study's base.
        step: As from `study_step`.
        staging: Folder of the new artifact.
        progress: Receives the studies whose tables are made.
        studies: The studies.
    """
    found = []
    for number, study in enumerate(studies):
        progress(number, len(studies), phase=f"tables of {study.spec.name}")
        found.append(results_of(study))
    for name, content in document_files({"studies": found}).items():
        staging.path(name).write_bytes(content)
    return {"studies": [study.spec.name for study in studies], "missing": sum(len(one["missing"]) for one in found)}


def document_files(document: Mapping[str, Any]) -> dict[str, bytes]:
    """Return results.json, the page and its figures by path; all follow from the numbers alone.

    Args:
        document: The content of results.json.
    """
    from nextquill_core.analysis.results_page import figures, render

    numbers = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
    pictures = {f"{IMAGES}/{name}": png for name, png in figures(document).items()}
    return {RESULTS: numbers.encode(), PAGE: render(document, IMAGES).encode(), **pictures}


def read_document(path: Path) -> dict[str, Any]:
    """Read a results.json.

    Raises:
        UserError: The file is missing or damaged.
    """
    from nextquill_core.evaluation.forms import StudyDocument

    document: dict[str, Any] = read_checked(path, StudyDocument, "run `nextquill study` again")
    return document


def stored_studies(folder: Path) -> list[dict[str, Any]]:
    """Return the studies in the results.json of a folder; none if there is no such file.

    Args:
        folder: Where a page was written.

    Raises:
        UserError: The file is damaged.
    """
    path = folder / RESULTS
    return list(read_document(path)["studies"]) if path.is_file() else []


def beside(document: Mapping[str, Any], stored: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return a document with stored studies of other names, so that studies of several machines stand on one page.

    Args:
        document: The content of a new results.json.
        stored: Earlier studies; one of the same name as a new one is replaced where it stands.
    """
    new = {study["name"]: study for study in document["studies"]}
    kept = {study["name"]: study for study in stored}
    return {**document, "studies": list((kept | new).values())}


def results_of(study: Study) -> dict[str, Any]:
    """Return all numbers of a study, as JSON values."""
    spec, choices = study.spec, choices_of(study)
    models, val, test = study.effect_cells(), study.val_cells(), study.test_cells(choices)
    base = study.base_run(spec.seeds[0])
    missing = [cell.label for cell in (*models, *val, *test) if not is_measured(cell)]
    measured = [cell for cell in (*val, *test) if cell.label not in missing]
    done = {cell.label: read_cell(cell) for cell in measured}
    rows = {
        "parts": (list(_lines(study, "parts", test, done, choices)), test),
        "tuned": (list(_lines(study, "variants", test, done, choices)), test),
        "parts_val": (list(_val_lines(study, "parts", val, done)), val),
        "variants_val": (list(_val_lines(study, "variants", val, done)), val),
    }
    tables = {name: _table(study, lines, done, cells) for name, (lines, cells) in rows.items() if lines}
    return {
        "name": spec.name,
        "title": spec.title,
        "questions": sorted(study.questions),
        "method": spec.method,
        "reference": spec.reference,
        "decoding_methods": list(spec.decoding_methods) if DECODING in study.questions else [],
        "decoding": spec.decoding[-1] if spec.decoding else NO_TEXTS,
        "seeds": list(spec.seeds),
        "val_seeds": {name: study.choice(name).seeds for name in ("parts", "variants")},
        "data": _data(base),
        "settings": _settings(base.config),
        "steps": _steps(measured),
        "choices": [_described(study, name, found) for name, found in choices.items() if found],
        "candidates": {
            MODELS: spec.effects,
            **{name: study.candidates(name) for name in ("parts", "variants")},
        },
        "tables": tables,
        "effects": list(_effects(study, base, models)),
        "notes": list(_notes(measured)),
        "missing": missing,
        "evaluations": {cell.label: cell.run.plan.evaluate.fingerprint for cell in measured},
    }


def _lines(
    study: Study, name: str, cells: Sequence[Cell], done: Mapping[str, Measured], choices: Choices
) -> Iterator[Line]:
    """Yield the test rows of a choice in the order of the study's methods; those that lack a seed are left out."""
    if name not in choices:
        return
    chosen = study.chosen_methods(name, choices)
    order = {method: place for place, method in enumerate((*study.spec.rows, *study.spec.decoding_methods))}
    rows = [
        (order.get(method, len(order)), method, candidate) for candidate, found in chosen.items() for method in found
    ]
    for _, method, candidate in sorted(rows):
        own = [cell for cell in cells if (cell.choice, cell.candidate) == (name, candidate)]
        if line := _line(study, method, candidate, own, done):
            yield line


def _val_lines(study: Study, name: str, cells: Sequence[Cell], done: Mapping[str, Measured]) -> Iterator[Line]:
    """Yield the val rows of a choice: under each candidate the reference, then the methods that choose."""
    for candidate in study.candidates(name):
        own = [cell for cell in cells if (cell.choice, cell.candidate) == (name, candidate)]
        for method in own[0].methods if own else ():
            if line := _line(study, method, candidate, own, done):
                yield line


def _line(
    study: Study, method: str, candidate: str, cells: Sequence[Cell], done: Mapping[str, Measured]
) -> Line | None:
    decoding = study.spec.decoding[-1] if study.spec.decoding else NO_TEXTS
    own = [cell for cell in cells if method in cell.methods]
    found = [done[cell.label].of(method, decoding) for cell in own if cell.label in done]
    scores = [one for one in found if one is not None]
    return Line(method, candidate, tuple(scores)) if scores and len(scores) == len(own) else None


def _table(study: Study, lines: Sequence[Line], done: Mapping[str, Measured], cells: Sequence[Cell]) -> dict[str, Any]:
    """Return the rows of a table and its comparisons: each line with the reference, and the method with each line."""
    spec = study.spec
    users = {done[cell.label].users for cell in cells if cell.label in done}
    if len(users) > 1:
        remedy = "leave `ingest` and `evaluate.repeated_targets` out of candidates"
        raise UserError("its cells measure different examples", f"study {spec.name}", remedy)
    shown = {key for cell in cells if cell.label in done for key in done[cell.label].shown}
    others = sorted((key for key in METRICS if key not in FIRST), key=lambda key: METRICS[key].judges_text)
    metrics = [key for key in (*FIRST, *others) if key in shown and key in METRICS]
    [examples] = users
    rows, comparisons = table(
        lines, examples, list(_pairs(lines, spec.method, spec.reference)), metrics,
        samples=spec.bootstrap_samples, seed=spec.seeds[0],
    )  # fmt: skip
    return {
        "split": next(cell.split for cell in cells),
        "examples": len(examples),
        "users": len(set(examples)),
        "rows": rows,
        "comparisons": comparisons,
    }


def _pairs(lines: Sequence[Line], method: str, reference: str) -> Iterator[tuple[int, int]]:
    """Yield the pairs to compare, by place.

    Where each candidate has a reference, a line is compared with that under the same candidate, and the method under
    the base with each other candidate. Otherwise each line is compared with the reference, and the method with each
    line.
    """
    references = {line.candidate: place for place, line in enumerate(lines) if line.method == reference}
    several = len(references) > 1
    mine = next(
        (
            place
            for place, line in enumerate(lines)
            if line.method == method and (not several or line.candidate == BASE)
        ),
        None,
    )
    for place, line in enumerate(lines):
        against = references.get(line.candidate, next(iter(references.values()), None))
        if line.method != reference and against is not None:
            yield place, against
    for place, line in enumerate(lines):
        if mine is None or place == mine or line.method == reference:
            continue
        if not several:
            yield mine, place
        elif line.method == method:
            yield place, mine


def _data(run: Run) -> list[dict[str, Any]]:
    """Return users and examples of each category."""
    if run.freshness(run.plan.ingest).state != "fresh":
        return []
    stats = run.artifact(run.plan.ingest).manifest.stats
    return [
        {"category": name, "users": part["users"], "examples": dict(part["examples"])}
        for name, part in stats["per_category"].items()
    ]


def _settings(config: Config) -> dict[str, str]:
    """Return the settings that a reader asks for first, in words."""
    train, weights, name = config.train, config.weights, config.model.name_or_path
    return {
        "base model": TINY if name == TINY else base_name(name, config.model.revision).name,
        "history": f"up to {config.prompt.max_history} newest reviews in {config.prompt.max_prompt_tokens} tokens",
        "answers": f"up to {config.prompt.max_target_tokens} tokens are trained on and measured; generated texts have "
        f"up to {config.evaluate.max_new_tokens}",
        "weights": f"δ = {weights.delta:g}, λ = {weights.high:g}, ε = {weights.low:g} ({weights.policy})",
        "loss": f"α = {train.alpha:g}, normalised by {train.normalization}",
        "training": f"epochs: {train.epochs}, examples in a step: {train.global_batch}, learning rate "
        f"{train.learning_rate:g}, LoRA r = {train.lora.r}",
    }


def _steps(cells: Sequence[Cell]) -> dict[str, list[int]]:
    """Return the numbers of optimizer steps of each trained method; one number where all trainings are equally long."""
    found: dict[str, set[int]] = {}
    for cell in cells:
        for method, step in cell.run.plan.train.items():
            if method in cell.methods:
                found.setdefault(method, set()).add(int(cell.run.artifact(step).manifest.stats["steps"]))
    return {method: sorted(steps) for method, steps in found.items()}


def _described(study: Study, name: str, chosen: Mapping[str, Chosen]) -> dict[str, Any]:
    choice = study.choice(name)
    rule = {"by": choice.by, "not_below": list(choice.not_below), "seeds": choice.seeds}
    return {"choice": name, **rule, "methods": {method: asdict(found) for method, found in chosen.items()}}


def _effects(study: Study, base: Run, cells: Sequence[Cell]) -> Iterator[dict[str, Any]]:
    """Yield the rows of question 1 for the base and for the further models of a study that are measured."""
    if EFFECTS not in study.questions:
        return
    for name, run in {BASE: base, **{cell.candidate: cell.run for cell in cells}}.items():
        if run.freshness(run.plan.effects).state == "fresh":
            yield from ({"setting": name, **row} for row in effect_rows(run))


def _notes(cells: Sequence[Cell]) -> Iterator[str]:
    """Yield what the evaluations say a reader must know, and what they chose on val themselves, each once."""
    seen: dict[str, None] = {}
    for cell in cells:
        if cell.split == "test":
            results = read_results(cell.run.artifact(cell.run.plan.evaluate))
            chosen = (f"Seed {cell.seed}: {note}" for note in chosen_notes(results.chosen_on_val))
            seen |= dict.fromkeys((*results.cautions, *chosen))
    yield from seen


def write_files(document: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write results.json, RESULTS.md and the figures into a folder, and return their paths.

    Args:
        document: The content of results.json.
        folder: The folder; files of these names are replaced.
    """
    files = document_files(document)
    with user_path(folder, "name a folder that you can write to"):
        for name, content in files.items():
            with atomic_path(folder / name) as temporary:
                temporary.write_bytes(content)
    return [folder / name for name in files]
