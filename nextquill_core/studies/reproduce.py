"""Reproduction of the paper's table: every method on each configuration, our numbers beside the published ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from nextquill_core.config import Config
from nextquill_core.errors import UserError
from nextquill_core.generation.decoding import PAPER
from nextquill_core.methods.registry import METHODS
from nextquill_core.pipeline import Step
from nextquill_core.pipeline.run import Outcome, Run
from nextquill_core.progress import Progress
from storage import Artifact, Staging, write_json, write_text
from storage.stored_json import read_checked

DOCUMENT, TABLES = "published.json", "published.md"


def whole_table(config: Config) -> Config:
    """Return a configuration with every method of the paper's table, decoded as published too, on the test split.

    The objective of the official code is a row too, because the published numbers are most likely the code's.
    """
    from nextquill_core.analysis.published import OFFICIAL, PUBLISHED

    published = {number.method for number in PUBLISHED if number.ours} | {OFFICIAL}
    methods = [name for name in METHODS if name in published or name in config.evaluate.methods]
    presets = dict.fromkeys((PAPER.name, *config.evaluate.decoding))
    evaluate = {"methods": tuple(methods), "decoding": tuple(presets), "split": "test"}
    return config.model_copy(update={"evaluate": config.evaluate.model_copy(update=evaluate)})


def reproduction_step(runs: Sequence[Run]) -> Step:
    """Return the step of a reproduction, whose inputs are the evaluations of all runs."""
    inputs = tuple(replace(run.plan.evaluate, name=f"evaluate {number}") for number, run in enumerate(runs))
    return Step("reproduction", "reproduction", {}, inputs)


def collect(runs: Sequence[Run], *, force: bool = False) -> Outcome:
    """Make the artifact of a reproduction.

    Args:
        runs: The runs, all evaluated.
        force: Make it even if it is up to date.

    Raises:
        UserError: A run has not been evaluated, or the runs have different stores.
    """
    if len({str(run.store.root) for run in runs}) > 1:
        raise UserError("the configurations name different stores", "reproduce", "give all of them one by --store")
    return runs[0].make(reproduction_step(runs), force=force, runs=runs)


def build_reproduction(
    run: Run, step: Step, staging: Staging, progress: Progress, *, runs: Sequence[Run]
) -> dict[str, Any]:
    """Write our numbers, the published ones and what was done differently, as JSON and as Markdown.

    Args:
        run: The first of the runs.
        step: As from `reproduction_step`.
        staging: Folder of the new artifact.
        progress: Not used.
        runs: All runs; they have been evaluated.
    """
    from nextquill_core.analysis.published import published_markdown

    parts = [_beside(one) for one in runs]
    write_json(staging.path(DOCUMENT), parts)
    texts = [
        f"## {', '.join(part['categories'])}\n\n{_ours_alone(part)}\n"
        + published_markdown(part["rows"], part["differences"])
        + "".join(f"\n{caution}\n" for caution in part["cautions"])
        for part in parts
    ]
    write_text(staging.path(TABLES), "\n".join(texts))
    return {"categories": [name for part in parts for name in part["categories"]]}


def reproduced(artifact: Artifact) -> list[dict[str, Any]]:
    """Read what a reproduction holds: for each configuration its categories, joined rows and differences."""
    from nextquill_core.evaluation.forms import ReproductionPart

    parts: list[dict[str, Any]] = read_checked(
        artifact.folder / DOCUMENT, list[ReproductionPart], "run `nextquill reproduce --force`"
    )
    return parts


def _beside(run: Run) -> dict[str, Any]:
    from nextquill_core.analysis.paper_differences import setting_differences
    from nextquill_core.analysis.published import beside_published
    from nextquill_core.pipeline.evaluate import read_results
    from nextquill_core.pipeline.methods import split_examples

    results = read_results(run.artifact(run.plan.evaluate))
    users = Counter(example.category for example in split_examples(run, run.config.evaluate.split))
    return {
        "categories": [raw.category for raw in run.config.ingest.inputs],
        "ours": [dict(row) for row in results.rows if row["decoding"] == PAPER.name],
        "rows": beside_published(results.rows),
        "differences": setting_differences(run.config.model_dump(mode="json"), template=run.template.name, users=users),
        "cautions": results.cautions,
    }


def _ours_alone(part: dict[str, Any]) -> str:
    """Return our own table where the paper has none for these categories, else ""."""
    from nextquill_core.analysis.result_tables import pivot

    if part["rows"]:
        return ""
    tables = [pivot(part["ours"], PAPER.name, category).markdown for category in part["categories"]]
    return "The paper has no such category; these are our numbers alone.\n\n" + "\n".join(tables)
