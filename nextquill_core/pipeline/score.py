"""Scoring: effects under θ0, shard by shard; weights from stored effects."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from nextquill_core.causal.job import EXAMPLES_A_SHARD, ScoreJob
from nextquill_core.causal.shard_queue import Board
from nextquill_core.causal.summary import EffectsSummary, summarise
from nextquill_core.pipeline import Step
from nextquill_core.pipeline.run import Outcome, Run
from nextquill_core.pipeline.train import fold_adapters
from nextquill_core.progress import Progress
from nextquill_core.token_texts import token_texts
from nextquill_core.training.spec import PromptSpec
from storage import Artifact, Staging, write_json, write_text
from storage.documents import form_expected, read_checked
from storage.tables import read_table

SUMMARY, PAGE, MARKDOWN = "effects.json", "effects.html", "effects.md"

Launch = Callable[[Path, Progress], None]
"""Works on the job (`ScoreJob`) at the path until every shard is settled, by however many workers."""


def alone(job: Path, progress: Progress) -> None:
    """The plainest launch: this process is the only worker."""
    from nextquill_core.causal.worker import work_alone

    work_alone(job, progress)


def effects(run: Run, progress: Progress, launch: Launch = alone, *, force: bool = False) -> Outcome:
    """The causal effect of every ground-truth token of every split.

    Args:
        run: The configuration and its store.
        progress: Told the examples done, by all workers together.
        launch: Starts the workers and waits for them.
        force: Score anew even if the effects are fresh.

    Raises:
        ShardsFailed: Some shards could not be scored; the others are kept for the next run.
    """

    def build(staging: Staging) -> dict[str, Any]:
        return _score(run, staging, progress, launch)

    return run.make(run.plan.effects, build, force=force)


def _score(run: Run, staging: Staging, progress: Progress, launch: Launch) -> dict[str, Any]:
    job = score_job(run, staging.folder)
    order = staging.scratch / "job.json"
    job.save(order)
    board = Board.of(job)
    board.begin()
    progress(0, 0, phase="loading the model")  # until the first worker reports
    launch(order, progress)
    board.check()
    return {"examples": sum(map(len, board.shards.values())), "truncation": board.truncation()}


def score_job(run: Run, staging: Path) -> ScoreJob:
    """The workers' order for this configuration."""
    return ScoreJob(
        staging=str(staging),
        sequences=str(run.artifact(run.plan.ingest).folder),
        model=run.model_spec,
        prompt=PromptSpec(**run.prompt_settings),
        batch_tokens=run.config.score.batch_tokens,
        adapters=fold_adapters(run),
        shard_examples=EXAMPLES_A_SHARD,
    )


def weights(run: Run, policy: str | None = None, *, force: bool = False) -> Outcome:
    """Effects and the preference weights derived from them, side by side, and what the effects look like.

    Takes seconds and no model. The looks are logs: they show δ, also under a policy whose weights do not depend on it.

    Args:
        run: The configuration; the effects are there.
        policy: One of `Plan.weights`; None for the configured one.
        force: Derive anew even if the weights are fresh.
    """
    step = run.plan.score if policy is None else run.plan.weights[policy]

    def build(staging: Staging) -> dict[str, Any]:
        from nextquill_core.causal.weighting import weights_table

        source = run.artifact(run.plan.effects)
        shards = source.shards("effects/")
        staging.adopt(source.folder, shards)
        for shard in shards:
            derived = weights_table(read_table(source.folder / shard.path), **step.settings["weights"])
            staging.write_table(shard.path.replace("effects/", "weights/"), derived)
        category = categories(run.artifact(run.plan.ingest).folder)
        paths = [source.folder / shard.path for shard in shards]
        summary = summarise(paths, category, delta=run.config.weights.delta)
        _show(run, staging, summary)
        per_category = {
            part.category: {
                "tokens": part.tokens,
                "preference_tokens": part.preference_tokens,
                "mean_effect": part.mean_effect,
            }
            for part in summary.categories
        }
        return {**source.manifest.stats, "per_category": per_category, "preference_delta": summary.delta}

    return run.make(step, build, force=force)


def _show(run: Run, staging: Staging, summary: EffectsSummary) -> None:
    """Write the summary as JSON for later stages, as HTML for people, and as Markdown for the UI."""
    from nextquill_core.analysis.effects_page import effects_html, effects_markdown
    from nextquill_core.model.loading import load_tokenizer

    decode = partial(token_texts, load_tokenizer(run.model_spec))
    write_json(staging.path(SUMMARY), summary.to_json())
    write_text(staging.path(PAGE), effects_html(summary, decode, source=effects_source(run.plan.effects)))
    write_text(staging.path(MARKDOWN), effects_markdown(summary, decode))
    for name in (SUMMARY, PAGE, MARKDOWN):
        staging.finish(name, log=True)


def effects_source(effects: Step) -> str:
    """Name the model whose effects of history choose the preference tokens, as the plan has it."""
    source = effects.settings["score"]["effect_source"]
    named = {
        "initial": "the initial model",
        "adapter": "the initial model with a contextsft adapter that was trained without the user (cross-fitted)",
    }
    return named.get(source, f"the model of score.effect_source `{source}`")


def stored_summary(score: Artifact) -> EffectsSummary:
    """The summary that a score artifact holds."""
    found: EffectsSummary = read_checked(score.folder / SUMMARY, EffectsSummary, "run `nextquill score --force`")
    return found


def categories(sequences: Path) -> dict[str, str]:
    """The category of each example of an ingest artifact."""
    found: dict[str, str] = {}
    for shard in sorted((sequences / "examples").glob("*.parquet")):
        table = read_table(shard, columns=["example_id", "category"])
        found.update(zip(table["example_id"].to_pylist(), table["category"].to_pylist(), strict=True))
    return found


def effect_summary(score: Artifact) -> list[dict[str, Any]]:
    """A row a category for people: tokens, the share above δ, the mean effect."""
    with form_expected(score.location, "run `nextquill score --force`"):
        return [
            {
                "category": name,
                "tokens": f"{counts['tokens']:,}",
                "preference tokens": f"{counts['preference_tokens'] / counts['tokens']:.1%}",
                "mean effect": f"{counts['mean_effect']:+.4f}",
            }
            for name, counts in score.manifest.stats["per_category"].items()
        ]
