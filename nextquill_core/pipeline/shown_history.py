"""What of the past each method shows: the examples of a split as a method's prompts are made from them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nextquill_core.errors import DataError
from nextquill_core.ingest.reader import read_examples
from nextquill_core.ingest.repeated import is_repeated
from nextquill_core.methods.registry import Method
from nextquill_core.pipeline import Step
from nextquill_core.pipeline.evaluation_plan import STRANGER
from nextquill_core.pipeline.run import Run
from nextquill_core.schemas import Example
from storage.tables import read_table


def split_examples(run: Run, split: str) -> list[Example]:
    """The examples of a split, with their whole histories.

    Raises:
        DataError: There is none.
    """
    folder = run.artifact(run.plan.ingest).folder
    examples = list(read_examples(folder, (split,)))
    if not examples:
        raise DataError(f"there is no {split} example", str(folder), "check ingest.protocol.n_targets")
    return examples


def measured_examples(run: Run) -> tuple[list[Example], int]:
    """Return the examples that are measured, and how many of the split repeat an earlier text of their user.

    Raises:
        DataError: All of them do, and are to be left out.
    """
    settings = run.config.evaluate
    examples = split_examples(run, settings.split)
    repeated = {
        example.example_id
        for example in examples
        if is_repeated(example.target.text, (review.text for review in example.history))
    }
    if settings.repeated_targets == "keep":
        return examples, len(repeated)
    kept = [example for example in examples if example.example_id not in repeated]
    if not kept:
        raise DataError(
            f"the text of every {settings.split} target stands in an earlier review of its user",
            "evaluate.repeated_targets",
            "set it to keep",
        )
    return kept, len(repeated)


def shown_examples(run: Run, method: Method, split: str, past: str) -> list[Example]:
    """The examples of a split with the past that a method shows, up to the limits of the prompt.

    Args:
        run: The configuration; the relevance or the summaries that the method needs are there.
        method: Whose prompts these are to be.
        split: `val` or `test`.
        past: The user's `own`, or a `stranger`'s.
    """
    from nextquill_core.methods.retrieval import bm25_scores, with_best
    from nextquill_core.methods.stranger_control import with_strangers_history
    from nextquill_core.methods.summaries import with_summary

    examples = split_examples(run, split)
    if past == STRANGER:
        examples = with_strangers_history(examples, run.config.seed)
    count = run.config.prompt.max_history
    if method.shown == "bm25":
        return [with_best(example, bm25_scores(example), count) for example in examples]
    if method.shown == "contriever":
        scores = _column(run, run.plan.evaluation.relevance, "relevance", "score")
        return [with_best(example, scores[example.example_id], count) for example in examples]
    if method.shown == "summary":
        summaries = _column(run, run.plan.evaluation.summaries, "summaries", "summary")
        newest = run.config.evaluate.summaries.newest
        return [with_summary(example, summaries[example.example_id], newest) for example in examples]
    return examples


def _column(run: Run, step: Step | None, table: str, column: str) -> Mapping[str, Any]:
    if step is None:
        raise ValueError(f"the plan has no {table}")
    return by_example(run.artifact(step).folder / table, column)


def by_example(folder: Path, column: str) -> dict[str, Any]:
    """A column of all Parquet shards of a folder, by example."""
    found: dict[str, Any] = {}
    for shard in sorted(folder.glob("*.parquet")):
        rows = read_table(shard, columns=["example_id", column])
        found.update(zip(rows["example_id"].to_pylist(), rows[column].to_pylist(), strict=True))
    return found
