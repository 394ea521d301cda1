"""The paper's whole table: every method of it on each configuration, and our numbers beside the published ones."""

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
from storage import Artifact, Staging, write_json, write_text
from storage.documents import read_checked

DOCUMENT, TABLES = "published.json", "published.md"


def whole_table(config: Config) -> Config:
    """The same configuration with every method of the paper's table, decoded as published too, on the test split.

    The objective of the official code is a row too, because the published numbers are most likely the code's.
    """
    from nextquill_core.analysis.published import OFFICIAL, PUBLISHED

    published = {number.method for number in PUBLISHED if number.ours} | {OFFICIAL}
    methods = [name for name in METHODS if name in published or name in config.evaluate.methods]
    presets = dict.fromkeys((PAPER.name, *config.evaluate.decoding))
    evaluate = {"methods": tuple(methods), "decoding": tuple(presets), "split": "test"}
    return config.model_copy(update={"evaluate": config.evaluate.model_copy(update=evaluate)})


def reproduction_step(runs: Sequence[Run]) -> Step:
    """The artifact of a reproduction: made from the evaluations of all runs."""
    inputs = tuple(replace(run.plan.evaluate, name=f"evaluate {number}") for number, run in enumerate(runs))
    return Step("reproduction", "reproduction", {}, inputs)


def collect(runs: Sequence[Run], *, force: bool = False) -> Outcome:
    """published.json and published.md: our numbers, the published ones, and what was done differently.

    Raises:
        UserError: A run has not been evaluated, or runs lie in different stores.
    """
    if len({str(run.store.root) for run in runs}) > 1:
        raise UserError("the configurations name different stores", "reproduce", "give all of them one by --store")

    def build(staging: Staging) -> dict[str, Any]:
        from nextquill_core.analysis.published import published_markdown

        parts = [_beside(run) for run in runs]
        write_json(staging.path(DOCUMENT), parts)
        texts = [
            f"## {', '.join(part['categories'])}\n\n{_own(part)}\n"
            + published_markdown(part["rows"], part["differences"])
            + "".join(f"\n{caution}\n" for caution in part["cautions"])
            for part in parts
        ]
        write_text(staging.path(TABLES), "\n".join(texts))
        return {"categories": [name for part in parts for name in part["categories"]]}

    return runs[0].make(reproduction_step(runs), build, force=force)


def _beside(run: Run) -> dict[str, Any]:
    from nextquill_core.analysis.paper_differences import setting_differences
    from nextquill_core.analysis.published import beside_published
    from nextquill_core.evaluation.tables import from_document, read_document
    from nextquill_core.pipeline.shown_history import split_examples

    path = run.artifact(run.plan.evaluate).folder / "metrics.json"
    document = read_document(path)
    _, rows, _ = from_document(document, str(path))
    users = Counter(example.category for example in split_examples(run, run.config.evaluate.split))
    return {
        "categories": [raw.category for raw in run.config.ingest.inputs],
        "ours": [dict(row) for row in rows if row["decoding"] == PAPER.name],
        "rows": beside_published(rows),
        "differences": setting_differences(run.config.model_dump(mode="json"), users=users),
        "cautions": document.get("cautions", []),
    }


def _own(part: dict[str, Any]) -> str:
    """Our own table where there is nothing published to put it beside."""
    from nextquill_core.evaluation.tables import markdown_table

    if part["rows"]:
        return ""
    tables = [markdown_table(part["ours"], PAPER.name, category) for category in part["categories"]]
    return "The paper has no such category; these are our numbers alone.\n\n" + "\n".join(tables)


def reproduced(artifact: Artifact) -> list[dict[str, Any]]:
    """What `collect` left: for each configuration its categories, joined rows and differences."""
    from nextquill_core.evaluation.forms import ReproductionPart

    parts: list[dict[str, Any]] = read_checked(
        artifact.folder / DOCUMENT, list[ReproductionPart], "run `nextquill reproduce --force`"
    )
    return parts
