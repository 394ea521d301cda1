"""What Prefect's UI shows: tags of flow runs, the rows, effects and results of stages, and decisions.

The UI keeps a history for each key of an artifact, so runs on other data have other keys.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.logging import get_run_logger

from nextquill_core.config import Config
from nextquill_core.ingest.account import account_rows, cleaning_summary
from nextquill_core.pipeline import score
from nextquill_core.pipeline.evaluate import read_results, result_markdown, result_tables
from nextquill_core.pipeline.run import Outcome, Run
from nextquill_core.registry.promote import Verdict, decide
from nextquill_core.studies import reproduce
from storage import Artifact
from storage.stored_json import expect_form
from tasks.definition import our_task
from tasks.progress import artifact_key

LONGEST = 60
MOST_FIGURES_BYTES = 1_000_000
PAGES = {"ingest": "ingest-account", "model": "model", "score": "effects", "train": "training", "evaluate": "report"}
"""By stage, the name of the artifact that shows what came out of it."""
OPEN_REPORT = (
    "This page cannot open the report. Copy its path into the address bar of a browser on the machine that has the "
    "file, or print the path with `nextquill report --config FILE`."
)


def tag_run(*tags: str) -> None:
    """Add tags to the current flow run; if the server refuses, the run continues without them."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return
    run = context.flow_run
    run.tags = list(dict.fromkeys([*run.tags, *tags]))
    try:
        with get_client(sync_client=True) as client:
            client.update_flow_run(run.id, tags=run.tags)
    except Exception as error:
        logging.getLogger(__name__).warning("flow run %s was not tagged: %s", run.name, error)


def data_key(name: str, config: Config) -> str:
    """Return the key of an artifact about one configuration's data: `report-books`, or `report-books-cds`.

    Args:
        name: Name of the artifact.
        config: The configuration; its categories become part of the key.
    """
    return artifact_key(name, _slug([raw.category for raw in config.ingest.inputs]))


def _slug(categories: Sequence[str]) -> str:
    """Return the categories in the letters of a key, with a digest where two could look the same."""
    words = [artifact_key(category) for category in categories]
    text = "-".join(words)
    if len(text) <= LONGEST and all(map(_same_letters, words, categories)):
        return text
    digest = hashlib.sha256("\n".join(categories).encode()).hexdigest()[:8]
    return f"{text[:LONGEST].strip('-')}-{digest}".strip("-")


def _same_letters(word: str, category: str) -> bool:
    return word.replace("-", "") == "".join(filter(str.isalnum, category.lower()))


@our_task()
def publish_account(run: Run, outcome: Outcome) -> None:
    """Publish a table of what became of every row, and log what a user should know about the data."""
    stats = outcome.artifact.manifest.stats
    logger, rows = get_run_logger(), account_rows(stats)
    for note in stats.get("notes", []):
        logger.warning(note)
    for line in cleaning_summary(stats):
        logger.info(line)
    for row in rows if not outcome.reused else ():
        if row["example"] and row["share"] is not None:
            logger.info(f"{row['category']}: {row['rows']:,} {row['what']} {row['outcome']}, first {row['example']}")
    create_table_artifact(
        key=data_key(PAGES["ingest"], run.config),
        table=rows,
        description=f"{cohort_summary(stats)} What became of every row read ({outcome.artifact.manifest.fingerprint}):",
    )


def cohort_summary(stats: Mapping[str, Any]) -> str:
    """Return a sentence for each category: its users, and how many of the reviews and items that were read are kept.

    Args:
        stats: The stats of an ingest artifact.
    """
    return " ".join(
        f"{name}: {part['users']:,} users, {part['reviews']['kept']:,} of {part['reviews']['read']:,} reviews and "
        f"{part['items']['kept']:,} of {part['items']['read']:,} items kept."
        for name, part in stats["per_category"].items()
    )


@our_task()
def publish_model(run: Run, outcome: Outcome) -> None:
    """Show in the UI what the base model is that was trained or converted here."""
    create_markdown_artifact(
        key=data_key(PAGES["model"], run.config),
        markdown=model_markdown(run, outcome.artifact),
        description="The base model",
    )


def model_markdown(run: Run, artifact: Artifact) -> str:
    """Return the facts about a base model that was made here, with a link to why it was made or reused.

    Args:
        run: The run.
        artifact: The base model.
    """
    facts = [(name.replace("_", " "), value) for name, value in artifact.manifest.stats.items()]
    lines = [f"| {name} | {_shown(value)} |" for name, value in facts if isinstance(value, str | int | float)]
    table = "\n".join(["| | |", "| --- | --- |", *lines, f"| folder | `{artifact.location}` |"])
    return "\n\n".join(["# Base model", table, why_link(run, "model")]) + "\n"


@our_task()
def publish_training(run: Run, outcomes: Mapping[str, Outcome]) -> None:
    """Show in the UI how the training of each adapter ended, with its curves.

    Args:
        run: The run.
        outcomes: By name of the adapter.
    """
    create_markdown_artifact(
        key=data_key(PAGES["train"], run.config),
        markdown=training_markdown(run, {name: outcome.artifact for name, outcome in outcomes.items()}),
        description="Losses and curves of the trained adapters",
    )


def training_markdown(run: Run, adapters: Mapping[str, Artifact]) -> str:
    """Return how the training of each adapter ended, their curves as a picture, and where the adapters are.

    Args:
        run: The run.
        adapters: The adapters by name.

    Raises:
        UserError: A curve or a manifest is damaged.
    """
    from nextquill_core.analysis import figures
    from nextquill_core.training import curves

    lines = [
        "| adapter | steps | loss | normal | causal | loss on val | folder |",
        "| --- |" + " ---: |" * 5 + " --- |",
    ]
    for name, artifact in adapters.items():
        with expect_form(artifact.location, "run `nextquill train --force`"):
            stats = artifact.manifest.stats
            losses = [stats["final"][key] for key in ("loss", "normal", "causal")]
            losses.append(stats.get("validation", {}).get("loss"))
            shown = " | ".join("–" if loss is None else f"{loss:.3f}" for loss in losses)
            lines.append(f"| {name} | {stats['steps']:,} | {shown} | `{artifact.location}` |")
    drawn = figures.training_curves(
        {name: curves.read(artifact.folder / curves.METRICS) for name, artifact in adapters.items()}
    )
    explained = "Losses in nats at the last step. *Normal* and *causal* are the two parts of the loss."
    parts = ["# Training", "\n".join(lines), explained, inline_picture("training", figures.png(drawn))]
    return "\n\n".join([*parts, why_link(run, "train")]) + "\n"


def why_link(run: Run, stage: str) -> str:
    """Return a link to the page that says why the artifacts of a stage were made or reused.

    It is relative to an artifact's page, so that it works in both versions of the UI, through a tunnel and a proxy.

    Args:
        run: The run.
        stage: Name of the stage.
    """
    return f"[Why it was made or reused](../key/{data_key(f'why-{stage}', run.config)})"


def inline_picture(name: str, png: bytes) -> str:
    """Return a picture for Markdown; it is inlined, because a server's page cannot show files.

    Args:
        name: What it shows.
        png: The picture.
    """
    return f"![{name}](data:image/png;base64,{b64encode(png).decode()})"


def _shown(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:,.4g}" if isinstance(value, float) else f"{value:,}"


@our_task()
def publish_effects(run: Run, outcome: Outcome) -> None:
    """Show in the UI how many tokens carry preference, and what the effects look like."""
    create_table_artifact(
        key=data_key("score-effects", run.config),
        table=score.effect_rows(outcome.artifact),
        description=f"Causal effects of history on ground-truth tokens ({outcome.artifact.manifest.fingerprint})",
    )
    folder = outcome.artifact.folder
    create_markdown_artifact(
        key=data_key(PAGES["score"], run.config),
        markdown=f"In colours: `{folder / score.PAGE}`. {why_link(run, 'score')}.\n\n"
        + (folder / score.MARKDOWN).read_text(encoding="utf-8"),
        description="Histogram, strongest tokens and ten answers",
    )


@our_task()
def publish_results(run: Run, outcome: Outcome) -> None:
    """Show methods by metrics in the UI, as a table and as the report in short."""
    artifact = outcome.artifact
    results = read_results(artifact)
    shown = f"Methods by metrics, 95 % bootstrap intervals over users ({artifact.manifest.fingerprint})."
    create_table_artifact(
        key=data_key("evaluation", run.config),
        table=[{"table": title, **row} for title, rows in result_tables(results.rows) for row in rows],
        description=" ".join([shown, *results.cautions]),
    )
    create_markdown_artifact(
        key=data_key(PAGES["evaluate"], run.config),
        markdown=f"{report_markdown(artifact)}\n{why_link(run, 'evaluate')}\n",
        description=" ".join(results.verdict) or "Report",
    )


def publish_pipeline(run: Run, results: Sequence[Mapping[str, Any]]) -> None:
    """Show the stages and the report in short on the page of the pipeline's flow run.

    Args:
        run: The run; all its artifacts are in its store.
        results: The references that the stages returned, in order.
    """
    report = report_markdown(run.artifact(run.plan.evaluate))
    create_markdown_artifact(
        key=data_key("pipeline", run.config),
        markdown=f"{stages_markdown(run, results)}\n{report}",
        description=" ".join(read_results(run.artifact(run.plan.evaluate)).verdict) or "Stages and results",
    )


def stages_markdown(run: Run, results: Sequence[Mapping[str, Any]]) -> str:
    """Return a table of stages: a link to each one's run and to what it shows, and whether it was made or reused.

    Args:
        run: The run.
        results: The references that the stages returned, in order.
    """
    lines = ["# Stages", "", "| stage | shows | | artifact |", "| --- | --- | --- | --- |"]
    for found in results:
        # Relative to the artifact's page, so that it works in both versions of the UI, through a tunnel and a proxy.
        stage = f"[{found['stage']}](../../runs/flow-run/{found['flow_run']})"
        page = PAGES[found["stage"].split()[0]]
        shows = f"[{page}](../key/{data_key(page, run.config)})"
        lines.append(f"| {stage} | {shows} | {'reused' if found['reused'] else 'made'} | `{found['path']}` |")
    return "\n".join(lines) + "\n"


def report_markdown(artifact: Artifact) -> str:
    """Return the report in short, with its figures and how to open the whole report.

    The figures are inlined, because a browser follows no link from a server's page to a file and the UI removes such
    links. Those of differences come first, and as many are shown as are not too large together.
    """
    shards = [shard for shard in artifact.manifest.shards if PurePosixPath(shard.path).match("figures/*.png")]
    shards.sort(
        key=lambda shard: (not shard.path.startswith("figures/differences-sane"), "differences" not in shard.path)
    )
    sizes = itertools.accumulate(shard.bytes for shard in shards)
    figures = [shard for shard, size in zip(shards, sizes, strict=True) if size <= MOST_FIGURES_BYTES]
    pictures = [inline_picture(Path(shard.path).stem, (artifact.folder / shard.path).read_bytes()) for shard in figures]
    report = str(artifact.folder / "report.html")
    parts = [result_markdown(read_results(artifact), report).rstrip(), OPEN_REPORT, *pictures]
    return "\n\n".join(parts) + "\n"


@our_task()
def decide_promotion(run: Run, method: str, name: str, metric: str) -> Verdict:
    """Compare a candidate with the accepted adapter, and move the pointer if it is better beyond noise.

    Args:
        run: As for `registry.promote.decide`, as are the others.
        method: The method whose adapter is the candidate.
        name: Name of the pointer.
        metric: The metric that decides.
    """
    verdict = decide(run, method, name, metric)
    rows = [{"what": key, "value": "" if value is None else str(value)} for key, value in asdict(verdict).items()]
    create_table_artifact(key=data_key(f"promote-{name}", run.config), table=rows, description=verdict.reason)
    return verdict


@our_task()
def collect_numbers(runs: list[Run], force: bool) -> Outcome:
    """Make the tables of all categories, and show them in the UI."""
    outcome = reproduce.collect(runs, force=force)
    create_markdown_artifact(
        key="reproduction",
        markdown=(outcome.artifact.folder / reproduce.TABLES).read_text(encoding="utf-8"),
        description=f"Our numbers / the published ones ({outcome.artifact.manifest.fingerprint})",
    )
    return outcome
