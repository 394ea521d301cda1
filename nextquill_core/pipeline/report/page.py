"""The content of the report and its figures, collected from the artifacts of a run."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePath
from typing import Any

from matplotlib.figure import Figure

from nextquill_core.analysis import figures, report_figures
from nextquill_core.analysis.effects_page import parts_of
from nextquill_core.analysis.example_view import ExplainedExample, people_of
from nextquill_core.analysis.paper_differences import setting_differences
from nextquill_core.analysis.published import beside_published
from nextquill_core.analysis.report import (
    Cohort,
    Download,
    Picture,
    PictureGroup,
    Report,
    RowCount,
    Stage,
    TokenEffect,
    Training,
    draw,
)
from nextquill_core.analysis.result_tables import TITLES, histories, preset_order, widest
from nextquill_core.analysis.verdict import (
    Difference,
    differences,
    reference_order,
    shown_differences,
    verdict,
)
from nextquill_core.config import EvaluateConfig
from nextquill_core.evaluation.metrics import HISTORY_GAIN, METRICS, PERSONAL_GAIN
from nextquill_core.evaluation.slices import BUCKETS
from nextquill_core.evaluation.tables import ALL, Row, answer_rows, cost_rows
from nextquill_core.generation.decoding import DECODINGS, PAPER, SANE_CANDIDATES
from nextquill_core.methods.registry import METHODS
from nextquill_core.model.loading import load_tokenizer
from nextquill_core.pipeline.methods import resampled_users
from nextquill_core.pipeline.model_card import base_source
from nextquill_core.pipeline.report.against_truth import AgainstTruth
from nextquill_core.pipeline.run import Run
from nextquill_core.pipeline.score import Effects, stored_summary
from nextquill_core.pipeline.step import Step
from nextquill_core.schemas import Example
from nextquill_core.training import curves
from storage import Artifact, UserError, provenance
from storage.stored_json import expect_form, read_lines
from storage.tables import read_table


@dataclass(frozen=True)
class Measured:
    """What an evaluation measured, and what the report shows of it.

    Attributes:
        rows: Rows of the schema `METRICS`.
        comparisons: Rows of `tables.comparison_rows`.
        slices: Rows of the schema `SLICES`.
        settings: How the metrics are computed.
        examples: The measured examples.
        effects: Their stored effects.
        texts: Generated texts, by method and preset and then by example.
        control_texts: The same with another user's history.
        cautions: What else a reader must know.
        chosen: What was chosen on val, a sentence each.
    """

    rows: Sequence[Row]
    comparisons: Sequence[Row]
    slices: Sequence[Row]
    settings: Mapping[str, Any]
    examples: Sequence[Example]
    effects: Effects
    texts: Mapping[tuple[str, str], Mapping[str, str]]
    control_texts: Mapping[tuple[str, str], Mapping[str, str]]
    cautions: Sequence[str] = ()
    chosen: Sequence[str] = ()

    @property
    def users(self) -> list[str]:
        """The user of each example."""
        return resampled_users(self.examples)

    def differences(self, method: str) -> list[Difference]:
        """Return the differences of a method to every other one."""
        return differences(self.comparisons, method, len(set(self.users)))


def verdict_of(run: Run, measured: Measured) -> tuple[str, ...]:
    """Return the verdict on the configured method, at most three sentences."""
    method = run.config.train.method
    evaluated = run.config.evaluate.methods
    return verdict(measured.differences(method), method, len(set(measured.users)), evaluated)


def figures_of(run: Run, measured: Measured) -> dict[str, Picture]:
    """Draw the figures of a run.

    Args:
        run: The run; everything but the evaluation is in its store.
        measured: What was measured.

    Returns:
        The figures, by file name without suffix.
    """
    pictures: dict[str, Picture] = {}
    rows, category = measured.rows, widest(measured.rows)

    def add(name: str, figure: Figure, title: str, alt: str, caption: str, data: Sequence[Row]) -> None:
        pictures[name] = draw(name, figure, title, alt, caption, data)

    method = run.config.train.method
    found = measured.differences(method)
    for decoding in preset_order(one.decoding for one in found):
        shown = [one for one in found if one.decoding == decoding]
        add(
            f"differences-{decoding}", report_figures.forest_plot(shown),
            f"{method} minus each reference, {decoding} decoding",
            f"Forest plot of the differences of {method} to each reference, {decoding} decoding, with their numbers",
            "", list(shown_differences(shown)),
        )  # fmt: skip
    for decoding in preset_order(run.config.evaluate.decoding):
        chosen = [row for row in rows if (row["decoding"], row["category"]) == (decoding, category)]
        add(
            f"metrics-{decoding}", figures.metric_bars(rows, decoding, category, highlight=method),
            f"Metrics, {decoding} decoding",
            f"Bars of each metric by method with 95 % intervals, {decoding} decoding, {category}",
            "Lines are 95 % bootstrap intervals over users.", chosen,
        )  # fmt: skip
    pictures |= dict(_history_pictures(measured, category, method))
    summary = stored_summary(run.artifact(run.plan.score))
    counts = {part.category: part.histogram for part in parts_of(summary)}
    add(
        "effects", figures.effect_panels(counts, summary.edges, summary.delta), "Causal effects of history",
        "Histogram of the causal effect of history on each ground-truth token",
        "p(token | query, history) − p(token | query), every token of every split; the line is δ.",
        [
            {"category": name, "above": low, "up_to": high, "tokens": count}
            for name, histogram in counts.items()
            for low, high, count in zip(summary.edges, summary.edges[1:], histogram, strict=False)
        ],
    )  # fmt: skip
    trained = {name: _curve(run.artifact(step)) for name, step in run.plan.train.items()}
    if trained:
        add(
            "training", figures.training_curves(trained), "Training", "Loss by step for each trained method", "",
            [
                {"method": name, **{key: line.get(key) for key in ("step", "loss", "normal", "causal")}}
                for name, curve in trained.items()
                for line in curve
            ],
        )  # fmt: skip
    return pictures


def _history_pictures(measured: Measured, category: str, method: str) -> Iterator[tuple[str, Picture]]:
    """Yield the figures on what the history adds, by name: gains, and gains by group where there are two groups."""
    compared = {PERSONAL_GAIN: "own minus a stranger's", HISTORY_GAIN: "own minus no history"}
    rows = [row for row in measured.rows if row["category"] == category and row["metric"] in compared]
    first = next(iter(preset_order(row["decoding"] for row in rows)), "")
    rows = [row for row in rows if row["decoding"] == first]
    known = {key: label for key, label in compared.items() if any(row["metric"] == key for row in rows)}
    if not known:
        return
    yield (
        "history",
        draw(
            "history", report_figures.gain_plot(rows, known), "What the history adds",
            "Personal and history gain of each method with 95 % intervals; the table below has the log-likelihoods",
            "How much likelier each token of the true review is. Lines are 95 % intervals over users.", rows,
        ),
    )  # fmt: skip
    key = next(iter(known))
    methods = reference_order([method, *(row["method"] for row in rows)])
    methods = [method, *(name for name in methods if name != method)]
    panels = []
    for name, title in TITLES.items():
        of_slice = [
            row
            for row in measured.slices
            if (row["slice"], row["metric"], row["category"], row["decoding"]) == (name, key, category, first)
        ]
        groups = [group for group in BUCKETS[name] if any(row["bucket"] == group for row in of_slice)]
        found = {
            one: {row["bucket"]: row for row in of_slice if row["method"] == one}
            for one in methods
            if any(row["method"] == one for row in of_slice)
        }
        if len(groups) > 1:
            panels.append((title, groups, found))
    if panels:
        data = [row for _, _, found in panels for of_method in found.values() for row in of_method.values()]
        figure = report_figures.bucket_plot(panels, f"{METRICS[key].name.lower()}, nats")
        title = f"{METRICS[key].name} by group"
        alt = f"{METRICS[key].name} of each method by length of history and by age of the last review"
        caption = "Lines are 95 % intervals over the users of a group."
        yield "history-groups", draw("history-groups", figure, title, alt, caption, data)


def report_of(
    run: Run,
    measured: Measured,
    pictures: Mapping[str, Picture],
    explained: Sequence[ExplainedExample],
    truth: AgainstTruth | None = None,
    *,
    sentences: Sequence[str] = (),
    paper: Sequence[PictureGroup] = (),
) -> Report:
    """Return the content of the report of a run.

    Args:
        run: The run; everything but the evaluation is in its store.
        measured: What was measured.
        pictures: Figures by file name, as `figures_of` returns them.
        explained: The measured examples with all that is known about them.
        truth: As `against_truth` returns it.
        paper: The paper's pictures, as `paper_pictures` returns them.
        sentences: The verdict, as `verdict_of` returns it.
    """
    config, rows, examples = run.config, measured.rows, measured.examples
    users = Counter(example.category for example in examples)
    sequences, weights = run.artifact(run.plan.ingest), run.artifact(run.plan.score)
    with expect_form(weights.location, "run `nextquill score --force`"):
        scored = weights.manifest.stats["per_category"].values()
        tokens, above = (sum(part[key] for part in scored) for key in ("tokens", "preference_tokens"))
        preferred = f"{above / tokens:.1%}"
    with expect_form(sequences.location, "run `nextquill ingest --force`"):
        stats = sequences.manifest.stats
        counts = [
            RowCount(table, part["read"], part["kept"], part["dropped"], part.get("cleaned", {}))
            for table, part in (("reviews", stats["reviews"]), ("items", stats["items"]))
        ]
        cohorts = [
            Cohort(name, part["users"], part["items"]["kept"], part["reviews"]["kept"], part["examples"])
            for name, part in stats["per_category"].items()
        ]
    record = provenance(datetime.now(UTC), ())
    return Report(
        title=f"NextQuill on {', '.join(raw.category for raw in config.ingest.inputs)}",
        verdict=sentences,
        about=list(_about(run, measured, record)),
        facts=[
            *_headline(rows, config.train.method),
            ("tokens scored", f"{tokens:,}"),
            ("preference tokens", preferred),
        ],
        forests=[picture for name, picture in pictures.items() if name.startswith("differences-")],
        downloads=_downloads(measured, config.train.method),
        histories=list(histories(rows)),
        history_figures=[picture for name, picture in pictures.items() if name.startswith("history")],
        truth_figures=list(truth.pictures.values()) if truth else [],
        truth_facts=truth.facts if truth else [],
        truth_rows=truth.rows if truth else [],
        config=_settings(run),
        stages=[_stage(run.artifact(step), step.name) for step in run.plan.stages if step.kind != "evaluate"],
        counts=counts,
        cohorts=cohorts,
        rows=rows,
        comparisons=measured.comparisons,
        slices=measured.slices,
        published=beside_published(rows),
        differences=setting_differences(config.model_dump(mode="json"), template=run.template.name, users=users),
        costs=costs_of(run),
        answers=answers_of(run),
        settings=measured.settings,
        scores_figures=[picture for name, picture in pictures.items() if name.startswith("metrics-")],
        effect_figures=[pictures["effects"]],
        tokens=_strongest_tokens(run),
        training=[_training(run.artifact(step), name) for name, step in run.plan.train.items()],
        training_figures=[pictures["training"]] if "training" in pictures else [],
        person=people_of(explained, (config.train.method, *reference_order(config.evaluate.methods))),
        paper=paper,
        notes=[*_notes(run), *measured.cautions, *measured.chosen],
        commands=[_command(record["command"])],
    )


def _about(run: Run, measured: Measured, record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what the page is about, label and value.

    Args:
        run: The run.
        measured: What was measured.
        record: Provenance of this process, as of `storage.provenance`.
    """
    config = run.config
    changed = ", with changes" if record["dirty"] else ""
    yield "date", f"{datetime.fromisoformat(record['end']):%Y-%m-%d %H:%M} UTC"
    yield "version", f"{record['code_version'][:12]}{changed}"
    yield "machine", f"{record['host']}, {os.cpu_count()} CPU cores, {record['platform']}"
    yield "base model", f"{config.model.name_or_path} ({config.model.dtype})"
    yield "users", f"{len(set(measured.users)):,}"
    yield f"{config.evaluate.split} reviews", f"{len(measured.examples):,}"
    yield "training seeds", f"1 (seed {config.seed})"


def _command(command: str) -> str:
    """Return a command without the folder of its program."""
    program, *arguments = command.split(" ", 1)
    return " ".join([PurePath(program).name, *arguments])


def _downloads(measured: Measured, method: str) -> list[Download]:
    """Return the tables that the page offers as files: all scores, all comparisons, and those of the forest plots."""
    tables: dict[str, tuple[str, Sequence[Row]]] = {
        "differences.csv": ("These differences", list(shown_differences(measured.differences(method)))),
        "scores.csv": ("All scores", measured.rows),
        "comparisons.csv": ("All comparisons", measured.comparisons),
        "slices.csv": ("Scores by group", measured.slices),
    }
    return [Download(name, title, _csv(rows)) for name, (title, rows) in tables.items() if rows]


def _csv(rows: Sequence[Row]) -> str:
    """Return rows as CSV; a text that a spreadsheet would take for a formula begins with an apostrophe."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for row in rows:
        writer.writerow(
            {
                key: f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t") else value
                for key, value in row.items()
            }
        )
    return buffer.getvalue()


def _headline(rows: Sequence[Row], method: str) -> Iterator[tuple[str, str]]:
    """Yield the personal gain of a method over all categories, if it was measured.

    Args:
        rows: Rows of the schema `METRICS`.
        method: Name of the method.
    """
    found = {row["category"]: row for row in rows if (row["method"], row["metric"]) == (method, PERSONAL_GAIN)}
    if row := found.get(ALL) or next(iter(found.values()), None):
        yield f"personal gain of {method}, nats a token", METRICS[PERSONAL_GAIN].text(row["value"])


def answers_of(run: Run) -> list[dict[str, Any]]:
    """Return how the answers of each method and preset ended, as rows of `tables.answer_rows`."""
    columns = ["method", "decoding", "text", "n_tokens", "finish_reason"]
    artifacts = [run.artifact(one.step) for one in run.plan.evaluation.predictions.values()]
    shards = [path for artifact in artifacts for path in artifact.files("predictions/")]
    return answer_rows(row for path in shards for row in read_table(path, columns=columns).to_pylist())


def costs_of(run: Run) -> list[dict[str, Any]]:
    """Return the costs of each method and preset that manifests record, as rows of `tables.cost_rows`."""
    plan = run.plan.evaluation
    usages = {key: run.artifact(one.step).manifest.stats.get("usage") for key, one in plan.predictions.items()}
    seconds = {name: _training(run.artifact(step), name).seconds for name, step in run.plan.train.items()}
    adapters = {name: METHODS[name].trained_as for name in run.config.evaluate.methods}
    training = {name: seconds[adapter] for name, adapter in adapters.items() if adapter in seconds}
    return cost_rows(usages, training, {name: dict(_preparation(run, name)) for name in run.config.evaluate.methods})


def _preparation(run: Run, name: str) -> Iterator[tuple[str, float | None]]:
    """Yield what else a method needed before it could train or generate, and the seconds that it took."""
    plan, method = run.plan.evaluation, METHODS[name]
    trained = run.plan.train.get(method.trained_as)
    weighted = trained is not None and any(source.kind == "score" for source in trained.inputs)
    steps: list[tuple[object, str, Step | None]] = [  # whether the method needs it, its name, and its step
        (weighted, "effects of history", run.plan.effects),
        (method.shown == "contriever", "vectors", plan.relevance),
        (method.shown == "summary", "summaries", plan.summaries),
        *((method.personal, f"adapter {task}", step) for task, step in plan.tasks.items()),
        (method.personal, "personal adapters", plan.personal),
        (True, "profiles", plan.profiles.get(method.shown)),
        (method.soft, "vectors of reviews", plan.peers),
        (method.soft, "soft tokens", plan.soft),
        (method.styles, "style vectors", plan.style),
    ]
    for needed, what, step in steps:
        if needed and step:
            yield what, run.artifact(step).manifest.seconds


def _settings(run: Run) -> list[tuple[str, str]]:
    config = run.config
    train = config.train
    targets = train.lora.targets
    layers = targets if isinstance(targets, str) else ", ".join(targets)
    return [
        ("base model θ0", f"{config.model.name_or_path} ({config.model.dtype})"),
        *base_source(run),
        ("template of the prompts", f"{run.template.name}, because {run.template.reason}"),
        ("protocol", config.ingest.protocol.name),
        ("HTML in texts", config.ingest.clean.html),
        ("history", f"up to {config.prompt.max_history} newest reviews, {config.prompt.max_prompt_tokens} tokens"),
        ("weights", ", ".join(f"{name} {value}" for name, value in run.plan.score.settings["weights"].items())),
        ("loss", f"α = {train.alpha:g}, normalised by {train.normalization}"),
        ("training", f"{train.epochs} epochs, lr {train.learning_rate:g}, batch {train.global_batch}"),
        ("LoRA", f"r {train.lora.r}, alpha {train.lora.alpha}, dropout {train.lora.dropout:g}, {layers}"),
        *((f"method {name}", METHODS[name].summary) for name in config.evaluate.methods),
        *((f"decoding {name}", _decoding(config.evaluate, name)) for name in config.evaluate.decoding),
        ("seed", str(config.seed)),
    ]


def _notes(run: Run) -> list[str]:
    if run.config.model.name_or_path != "tiny":
        return []
    return [
        "The base model is the small offline one, pretrained on the base profiles of these users. The numbers show "
        "that the pipeline works; they say nothing about large models."
    ]


def _decoding(settings: EvaluateConfig, name: str) -> str:
    limit = settings.paper_max_new_tokens if name == PAPER.name else settings.max_new_tokens
    chosen = f"{' or '.join(SANE_CANDIDATES)}, whichever does better on val"
    summary = DECODINGS[name].summary if name in DECODINGS else chosen
    return f"{summary}; up to {limit:,} tokens"


def _stage(artifact: Artifact, name: str) -> Stage:
    manifest = artifact.manifest
    return Stage(name, manifest.fingerprint, artifact.location, manifest.rows, manifest.bytes, manifest.seconds)


def _training(artifact: Artifact, name: str) -> Training:
    curve = _curve(artifact)
    tail = curve[-max(1, len(curve) // 10) :]
    mean = {key: sum(line[key] for line in tail) / len(tail) for key in ("loss", "normal", "causal")}
    seconds = sum(line["seconds"] for line in curve)
    causal = mean["causal"] if any(line["causal"] for line in curve) else None
    return Training(
        name, len(curve), int(sum(line["tokens"] for line in curve)), seconds, mean["loss"], mean["normal"], causal
    )


def _curve(artifact: Artifact) -> list[dict[str, Any]]:
    """Return the metrics of each optimizer step of a training.

    Raises:
        UserError: The file is damaged, or has no line.
    """
    path, remedy = artifact.folder / curves.METRICS, "run `nextquill train --force`"
    lines: list[dict[str, Any]] = read_lines(path, curves.Step, remedy)
    if not lines:
        raise UserError("the file has no line", str(path), remedy)
    return lines


def _strongest_tokens(run: Run) -> list[TokenEffect]:
    """Return the tokens with the highest mean effect among those that were scored a few times at least."""
    tokenizer = load_tokenizer(run.model)
    top = stored_summary(run.artifact(run.plan.score)).top_tokens
    return [TokenEffect(tokenizer.decode([token.token_id]), token.mean_effect, token.count) for token in top]
