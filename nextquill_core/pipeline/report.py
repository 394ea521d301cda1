"""The content of the report and its figures, collected from the artifacts of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nextquill_core.analysis import figures
from nextquill_core.analysis.effects_page import parts_of
from nextquill_core.analysis.paper_differences import setting_differences
from nextquill_core.analysis.published import beside_published
from nextquill_core.analysis.report import Case, Cohort, Picture, Report, RowCount, Stage, TokenEffect, Training
from nextquill_core.config import EvaluateConfig
from nextquill_core.evaluation.metrics import METRICS, PERSONAL_GAIN
from nextquill_core.evaluation.tables import ALL, Row, answer_rows, cost_rows
from nextquill_core.generation.decoding import DECODINGS, PAPER, SANE_CANDIDATES
from nextquill_core.methods.registry import METHODS
from nextquill_core.model.loading import load_tokenizer
from nextquill_core.pipeline.model_card import base_source
from nextquill_core.pipeline.run import Run
from nextquill_core.pipeline.score import stored_summary
from nextquill_core.pipeline.step import Step
from nextquill_core.schemas import Example, Review
from nextquill_core.training import curves
from storage import Artifact, UserError
from storage.stored_json import expect_form, read_lines
from storage.tables import read_table

CASES = 6


def figures_of(run: Run, rows: Sequence[Row]) -> dict[str, Picture]:
    """Draw the figures of a run.

    Args:
        run: The run; everything but the evaluation is in its store.
        rows: Rows of the schema `METRICS`.

    Returns:
        The figures, by file name without suffix.
    """
    pictures: dict[str, Picture] = {}
    categories = list(dict.fromkeys(row["category"] for row in rows))
    category = ALL if ALL in categories else categories[0]
    for decoding in run.config.evaluate.decoding:
        drawn = figures.metric_bars(rows, decoding, category, highlight="nextquill")
        pictures[f"metrics-{decoding}"] = Picture(
            f"Metrics, {decoding} decoding",
            f"Bars of each metric by method with 95 % intervals, {decoding} decoding, {category}",
            figures.png(drawn),
            "Lines are 95 % bootstrap intervals over users.",
        )
    summary = stored_summary(run.artifact(run.plan.score))
    counts = {part.category: part.histogram for part in parts_of(summary)}
    pictures["effects"] = Picture(
        "Causal effects of history",
        "Histogram of the causal effect of history on each ground-truth token",
        figures.png(figures.effect_panels(counts, summary.edges, summary.delta)),
        "p(token | query, history) − p(token | query), every token of every split; the line is δ.",
    )
    trained = {name: _curve(run.artifact(step)) for name, step in run.plan.train.items()}
    if trained:
        pictures["training"] = Picture(
            "Training", "Loss by step for each trained method", figures.png(figures.training_curves(trained))
        )
    return pictures


def report_of(
    run: Run,
    rows: Sequence[Row],
    comparisons: Sequence[Row],
    settings: Mapping[str, Any],
    pictures: Mapping[str, Picture],
    examples: Sequence[Example],
    texts: Mapping[tuple[str, str], Mapping[str, str]],
    *,
    slices: Sequence[Row] = (),
    notes: Sequence[str] = (),
) -> Report:
    """Return the content of the report of a run.

    Args:
        run: The run; everything but the evaluation is in its store.
        rows: Rows of the schema `METRICS`.
        comparisons: Rows of `tables.comparison_rows`.
        settings: How the metrics are computed.
        pictures: Figures by file name, as `figures_of` returns them.
        examples: The measured examples.
        texts: Generated texts, by method and preset and then by example.
        slices: Rows of the schema `SLICES`.
        notes: What else a reader must know, such as what was chosen on val.
    """
    config = run.config
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
        user_count = f"{stats['users']:,}"
    return Report(
        title=f"NextQuill on {', '.join(raw.category for raw in config.ingest.inputs)}",
        lead="What each method wrote for reviews it had never seen, held against what the users wrote.",
        facts=[
            ("users", user_count),
            (f"{config.evaluate.split} examples", f"{len(examples):,}"),
            ("tokens scored", f"{tokens:,}"),
            ("preference tokens", preferred),
            *_headline(rows, config.train.method),
        ],
        config=_settings(run),
        stages=[_stage(run.artifact(step), step.name) for step in run.plan.stages if step.kind != "evaluate"],
        counts=counts,
        cohorts=cohorts,
        rows=rows,
        comparisons=comparisons,
        slices=slices,
        published=beside_published(rows),
        differences=setting_differences(config.model_dump(mode="json"), template=run.template.name, users=users),
        costs=costs_of(run),
        answers=answers_of(run),
        settings=settings,
        scores_figures=[picture for name, picture in pictures.items() if name.startswith("metrics-")],
        effect_figures=[pictures["effects"]],
        tokens=_strongest_tokens(run),
        training=[_training(run.artifact(step), name) for name, step in run.plan.train.items()],
        training_figures=[pictures["training"]] if "training" in pictures else [],
        cases=_cases(run, examples, texts),
        notes=[*_notes(run), *notes],
        commands=[str(sequences.manifest.provenance.get("command", ""))],
    )


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
    needed: list[tuple[str, Step | None]] = []
    trained = run.plan.train.get(method.trained_as)
    if trained and any(source.kind == "score" for source in trained.inputs):
        needed.append(("effects of history", run.plan.effects))
    if method.shown == "contriever":
        needed.append(("vectors", plan.relevance))
    if method.shown == "summary":
        needed.append(("summaries", plan.summaries))
    if method.personal:
        needed += [
            *((f"adapter {task}", step) for task, step in plan.tasks.items()),
            ("personal adapters", plan.personal),
        ]
    for what, step in needed:
        if step:
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
    seconds = manifest.seconds
    return Stage(name, manifest.fingerprint, artifact.location, manifest.rows, manifest.bytes, seconds)


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


def _cases(run: Run, examples: Sequence[Example], texts: Mapping[tuple[str, str], Mapping[str, str]]) -> list[Case]:
    """Return a few examples spread evenly over the split, with the texts of the last decoding preset."""
    if not texts:
        return []
    decoding = run.config.evaluate.decoding[-1]
    chosen = examples[:: max(1, len(examples) // CASES)][:CASES]
    return [
        Case(
            title=example.example_id,
            request=" · ".join(_request(example.target)),
            reference=example.target.text,
            predictions={method: texts[method, decoding][example.example_id] for method in run.config.evaluate.methods},
        )
        for example in chosen
    ]


def _request(target: Review) -> Iterator[str]:
    """Yield what a prompt asked for: the item's title, the rating and the review's title, where the data have them."""
    if target.item.title:
        yield target.item.title
    if target.rating is not None:
        yield f"{target.rating:g} of 5"
    if target.title:
        yield target.title
