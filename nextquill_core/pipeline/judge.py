"""The judge of a run: the rubrics of users, the scores of texts, and their settings; all questions are stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from nextquill_core.causal.shard_queue import split_into_shards
from nextquill_core.evaluation.ceilings import TRUE_REVIEW, ceiling
from nextquill_core.evaluation.judge import Ask, Aspect, ask_rubrics, ask_scores, judged_statistics
from nextquill_core.evaluation.metrics import JUDGE
from nextquill_core.evaluation.significance import Floats
from nextquill_core.generation.engines import Generation, Journal
from nextquill_core.generation.openai_chat import ChatEngine, ChatRequest
from nextquill_core.pipeline.evaluation_plan import Key
from nextquill_core.pipeline.methods import planned, resampled_users, split_examples
from nextquill_core.pipeline.predict import PREDICTED
from nextquill_core.pipeline.run import Run
from nextquill_core.pipeline.shard_counts import ShardCounts
from nextquill_core.pipeline.step import Step
from nextquill_core.progress import Progress, advancing
from nextquill_core.prompts import WORDINGS
from nextquill_core.schemas import JUDGED, RUBRICS, Example, column_by_example
from storage import Staging
from storage.tables import read_table

FOLDER_OF_RUBRICS, FOLDER_OF_SCORES = "rubrics", "judged"


def _asking(run: Run, journal: Journal) -> Ask:
    """Return what asks the judge; an answer in the journal is not paid for again.

    Args:
        run: The run.
        journal: The answers of this and earlier processes.
    """
    settings = run.config.evaluate.judge
    engine = ChatEngine(settings, str(settings.model), max_tokens=settings.max_tokens, seed=run.config.seed)

    def ask(questions: Sequence[ChatRequest]) -> list[Generation]:
        engine.generate(journal.missing(questions), keep=journal.keep)
        return journal.answers(questions)

    return ask


def build_rubrics(run: Run, step: Step, staging: Staging, progress: Progress) -> dict[str, Any]:
    """Write a rubric for the user of each example, as the judge makes it from past reviews.

    Args:
        run: The run; the sequences are in its store.
        step: `EvaluationPlan.rubrics`.
        staging: Folder of the new artifact.
        progress: Receives the examples that are done.
    """
    settings, wording = run.config.evaluate.judge, WORDINGS[run.plan.writes]
    examples = split_examples(run, run.config.evaluate.split)
    advance = advancing(progress, len(examples))
    counts = ShardCounts(staging, "without_rubric")
    for number, part in split_into_shards(examples):
        name = f"{FOLDER_OF_RUBRICS}/{number}.parquet"
        if staging.has(name) and counts.restore(number):
            advance(len(part))
            continue
        ask = _asking(run, Journal(staging.scratch / f"rubrics-{number}.jsonl"))
        asked, rubrics = ask_rubrics(part, ask, reviews=settings.reviews, count=settings.aspects, wording=wording)
        by_example = {one.example_id: one for one in asked}
        counts.add(number, {"without_rubric": sum(not rubric for rubric in rubrics)})
        rows = [
            {
                "example_id": example.example_id,
                "aspects": [asdict(aspect) for aspect in rubric],
                "prompt": by_example[example.example_id].prompt if example.example_id in by_example else "",
                "answer": by_example[example.example_id].answer if example.example_id in by_example else "",
            }
            for example, rubric in zip(part, rubrics, strict=True)
        ]
        staging.write_table(name, pa.Table.from_pylist(rows, schema=RUBRICS))
        advance(len(part))
    return {"examples": len(examples), **counts.total, "judge": settings.model}


def build_judged(run: Run, step: Step, staging: Staging, progress: Progress) -> dict[str, Any]:
    """Write the judge's scores of one set of texts, or of the true reviews, on each aspect of their users' rubrics.

    Args:
        run: The run; rubrics and texts are in its store.
        step: One of `EvaluationPlan.judged`.
        staging: Folder of the new artifact.
        progress: Receives the texts that are done.
    """
    plan = run.plan.evaluation
    key = next(key for key, known in plan.judged.items() if known.fingerprint == step.fingerprint)
    examples = split_examples(run, run.config.evaluate.split)
    texts = {example.example_id: example.target.text for example in examples}
    if key != TRUE_REVIEW:
        texts = column_by_example(run.artifact(plan.predictions[key].step).folder / PREDICTED, "text")
    rubrics, wording = _rubrics(run), WORDINGS[run.plan.writes]
    advance = advancing(progress, len(examples))
    counts = ShardCounts(staging, "scores", "unread")
    for number, part in split_into_shards(examples):
        name = f"{FOLDER_OF_SCORES}/{number}.parquet"
        if staging.has(name) and counts.restore(number):
            advance(len(part))
            continue
        ask = _asking(run, Journal(staging.scratch / f"judged-{number}.jsonl"))
        ids = [example.example_id for example in part]
        asked = ask_scores(part, [texts[one] for one in ids], [rubrics[one] for one in ids], ask, wording)
        counts.add(number, {"scores": len(asked), "unread": sum(one.score is None for one in asked)})
        staging.write_table(name, pa.Table.from_pylist([asdict(one) for one in asked], schema=JUDGED))
        advance(len(part))
    return {"examples": len(examples), **counts.total}


def _rubrics(run: Run) -> dict[str, list[Aspect]]:
    """Return the aspects of each example's user."""
    step = planned(run.plan.evaluation.rubrics, "rubrics")
    found = column_by_example(run.artifact(step).folder / FOLDER_OF_RUBRICS, "aspects")
    return {example: [Aspect(**aspect) for aspect in aspects] for example, aspects in found.items()}


def _scores(run: Run, step: Step) -> list[tuple[str, int | None]]:
    tables = [read_table(path, columns=["example_id", "score"]) for path in run.artifact(step).files(FOLDER_OF_SCORES)]
    return [(row["example_id"], row["score"]) for table in tables for row in table.to_pylist()]


def judged(run: Run, examples: Sequence[Example]) -> tuple[dict[Key, Floats], dict[str, Any]]:
    """Return the statistics of the judge metric, and how it is computed.

    Args:
        run: The run; the judge's scores are in its store.
        examples: The measured examples.

    Returns:
        The statistics by method and preset, and of the true reviews; and the settings, with the value of the true
        reviews by category and its interval.
    """
    settings, steps = run.config.evaluate.judge, run.plan.evaluation.judged
    ids = [example.example_id for example in examples]
    statistics = {key: judged_statistics(ids, _scores(run, step)) for key, step in steps.items()}
    unread = sum(run.artifact(step).manifest.stats.get("unread", 0) for step in steps.values())
    return statistics, {
        "by": settings.model,
        "aspects": settings.aspects,
        "reviews": settings.reviews,
        "unread": unread,
        "ceiling": ceiling(
            JUDGE,
            statistics[TRUE_REVIEW],
            resampled_users(examples),
            [example.category for example in examples],
            samples=run.config.evaluate.bootstrap_samples,
            seed=run.config.seed,
        ),
    }
