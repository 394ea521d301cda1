"""The stage `score`: causal effects of history on every token of the true reviews, and weights from stored effects."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from nextquill_core.causal.shard_queue import ShardQueue
from nextquill_core.causal.summary import EffectsSummary, ScoredAnswer, summarise
from nextquill_core.ingest.reader import read_examples
from nextquill_core.orders import ScoreOrder
from nextquill_core.pipeline.run import Run
from nextquill_core.pipeline.step import Step
from nextquill_core.pipeline.train import fold_adapters
from nextquill_core.progress import Progress
from nextquill_core.records import Example, ShownAnswer
from nextquill_core.schemas import EFFECTS, column_by_example
from nextquill_core.tokens import PairEncoder, token_texts
from storage import Artifact, Staging, write_json, write_text
from storage.stored_json import expect_form, read_checked
from storage.tables import read_table

SUMMARY, PAGE, MARKDOWN = "effects.json", "effects.html", "effects.md"

Launch = Callable[[Path, Progress], None]
"""Runs workers on the order (`ScoreOrder`) at a path until every shard is scored or has failed."""

Effects = Mapping[str, ScoredAnswer]
"""The stored values of the tokens of true reviews, by example."""


def score_here(order: Path, progress: Progress) -> None:
    """Score an order in this process alone; the simplest `Launch`."""
    from nextquill_core.causal.worker import work_alone

    work_alone(order, progress)


def build_effects(
    run: Run, step: Step, staging: Staging, progress: Progress, *, launch: Launch = score_here
) -> dict[str, Any]:
    """Write the causal effect of history on every token of the true reviews of every split.

    Args:
        run: The run; sequences, base model and the adapters of folds are in its store.
        step: `Plan.effects`, or `EvaluationPlan.crossfit`, which scores the measured split alone.
        staging: Folder of the new artifact.
        progress: Receives the examples that all workers have done.
        launch: Starts the workers and waits for them.

    Raises:
        ShardsFailed: Some shards could not be scored; the others are kept for the next run.
    """
    order = score_order(run, step, staging.folder)
    path = staging.scratch / "order.json"
    order.save(path)
    queue = ShardQueue.of(order)
    queue.begin()
    progress(0, 0, phase="loading the model")  # until the first worker reports
    launch(path, progress)
    queue.check()
    return {"examples": sum(map(len, queue.shards.values())), "truncation": queue.truncation()}


def score_order(run: Run, step: Step, staging: Path) -> ScoreOrder:
    """Return the workers' order for a step of the kind `effects`.

    Args:
        run: The run; sequences, base model and the adapters of folds are in its store.
        step: The step.
        staging: Folder of the new artifact.
    """
    split = step.settings.get("split")
    return ScoreOrder(
        staging=staging,
        sequences=run.artifact(run.plan.ingest).folder,
        model=run.model,
        prompt=run.prompt,
        score=run.config.score,
        adapters=fold_adapters(run, step),
        splits=(split,) if split else None,
    )


def build_weights(run: Run, step: Step, staging: Staging, progress: Progress) -> dict[str, Any]:
    """Write the effects, the preference weights derived from them, and pages that show the effects.

    This takes seconds and no model. A policy that reads the history takes as long as encoding the prompts. The pages
    are logs: they show δ, which some weight policies do not depend on.

    Args:
        run: The run; sequences, the base model's tokenizer and the effects are in its store.
        step: `Plan.score`, or one of `Plan.weights`.
        staging: Folder of the new artifact.
        progress: Not used.
    """
    from nextquill_core.causal.weights import weights_table

    source = run.artifact(run.plan.effects)
    shards = source.shards("effects/")
    staging.adopt(source.folder, shards)
    look_up = answers_of(run)
    for shard in shards:
        derived = weights_table(read_table(source.folder / shard.path), look_up, **step.settings["weights"])
        staging.write_table(shard.path.replace("effects/", "weights/"), derived)
    categories = column_by_example(run.artifact(run.plan.ingest).folder / "examples", "category")
    paths = [source.folder / shard.path for shard in shards]
    summary = summarise(paths, categories, delta=run.config.weights.delta)
    _write_pages(run, staging, summary)
    per_category = {
        part.category: {
            "tokens": part.tokens,
            "preference_tokens": part.preference_tokens,
            "mean_effect": part.mean_effect,
        }
        for part in summary.categories
    }
    return {**source.manifest.stats, "per_category": per_category, "preference_delta": summary.delta}


def answers_of(run: Run) -> Callable[[Sequence[str]], list[ShownAnswer]]:
    """Return a function from ids of examples to their answers, with the history that the scored prompts showed.

    Examples and tokenizer are read at the first call, because most weight policies do not ask for them.

    Args:
        run: The run; sequences and the base model are in its store.
    """

    @cache
    def sources() -> tuple[dict[str, Example], PairEncoder]:
        from nextquill_core.model.loading import encoder_for, load_tokenizer

        examples = read_examples(run.artifact(run.plan.ingest).folder)
        encoder = encoder_for(run.model, run.prompt, load_tokenizer(run.model))
        return {example.example_id: example for example in examples}, encoder

    def look_up(example_ids: Sequence[str]) -> list[ShownAnswer]:
        examples, encoder = sources()
        return encoder.shown_answers([examples[example_id] for example_id in example_ids])

    return look_up


def _write_pages(run: Run, staging: Staging, summary: EffectsSummary) -> None:
    """Write the summary as JSON for later stages, as HTML for a browser, and as Markdown for the UI."""
    from nextquill_core.analysis.effects_page import effects_html, effects_markdown
    from nextquill_core.model.loading import load_tokenizer

    decode = partial(token_texts, load_tokenizer(run.model))
    write_json(staging.path(SUMMARY), summary.to_json())
    write_text(staging.path(PAGE), effects_html(summary, decode, source=effects_source(run.plan.effects)))
    write_text(staging.path(MARKDOWN), effects_markdown(summary, decode))
    for name in (SUMMARY, PAGE, MARKDOWN):
        staging.finish(name, log=True)


def effects_source(effects: Step) -> str:
    """Return the name of the model whose effects of history choose the preference tokens.

    Args:
        effects: A step of the kind `effects`.
    """
    source = effects.settings["score"]["effect_source"]
    named = {
        "initial": "the initial model",
        "adapter": "the initial model with a contextsft adapter that was trained without the user (cross-fitted)",
        "trained": "the initial model with a contextsft adapter that has seen these reviews (not cross-fitted)",
    }
    return named.get(source, f"the model of score.effect_source `{source}`")


def read_effects(folder: Path, examples: Sequence[Example]) -> dict[str, ScoredAnswer]:
    """Return the stored effects of examples.

    Args:
        folder: Folder of an artifact of the kind `effects` or `score`.
        examples: The examples; those of a split that was not scored are left out.

    Raises:
        Damaged: A file is damaged.
    """
    categories = {example.example_id: example.category for example in examples}
    wanted = pa.array(list(categories), pa.string())
    found: dict[str, ScoredAnswer] = {}
    for shard in sorted((folder / "effects").glob("*.parquet")):
        table = read_table(shard)
        for row in table.filter(pc.is_in(table["example_id"], value_set=wanted)).to_pylist():
            values = (tuple(row[name]) for name in EFFECTS.names[1:])
            found[row["example_id"]] = ScoredAnswer(row["example_id"], categories[row["example_id"]], *values)
    return found


def stored_summary(score: Artifact) -> EffectsSummary:
    """Read the summary of effects from a score artifact."""
    found: EffectsSummary = read_checked(score.folder / SUMMARY, EffectsSummary, "run `nextquill score --force`")
    return found


def effect_rows(score: Artifact) -> list[dict[str, Any]]:
    """Return a row for each category of a score artifact: tokens, the share of them above δ, and the mean effect."""
    with expect_form(score.location, "run `nextquill score --force`"):
        return [
            {
                "category": name,
                "tokens": f"{counts['tokens']:,}",
                "preference tokens": f"{counts['preference_tokens'] / counts['tokens']:.1%}",
                "mean effect": f"{counts['mean_effect']:+.4f}",
            }
            for name, counts in score.manifest.stats["per_category"].items()
        ]
