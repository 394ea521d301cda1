"""Evaluation: predictions by method and preset, each an artifact of its own, then everything that follows from them."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nextquill_core.causal.shards import in_shards
from nextquill_core.evaluation.methods import METHODS
from nextquill_core.ingest.reader import read_examples
from nextquill_core.model.identity import ModelSpec
from nextquill_core.progress import Progress
from nextquill_core.schemas import METRICS, PREDICTIONS, Example
from nextquill_core.stages.run import Outcome, Run
from storage import Artifact, Staging, write_json, write_text


def predictions(run: Run, method: str, decoding: str, progress: Progress, *, force: bool = False) -> Outcome:
    """What one method writes under one decoding preset, for every example of the split."""

    def build(staging: Staging) -> dict[str, Any]:
        return _generate(run, method, decoding, staging, progress)

    return run.make(run.plan.predictions[method, decoding], build, force=force)


def _generate(run: Run, method: str, decoding: str, staging: Staging, progress: Progress) -> dict[str, Any]:
    from nextquill_core.evaluation.generate import DECODINGS, generate
    from nextquill_core.model.loading import load_tokenizer
    from nextquill_core.tokens import encoder_for

    settings = run.config.evaluate
    tokenizer = load_tokenizer(run.model_spec)
    limits = run.prompt_settings | ({} if METHODS[method].history else {"max_history": 0})
    encoder = encoder_for(run.model_spec, tokenizer, **limits)
    examples = _examples(run)
    adapter = run.artifact(run.plan.train[method]).folder / "adapter" if method in run.plan.train else None
    finished, stopped = 0, 0

    def advance(count: int) -> None:
        nonlocal finished
        finished += count
        progress(finished, len(examples))

    with _adapted(_base_model(run.model_spec), adapter) as model:
        for number, part in in_shards(examples):
            name = f"predictions/{method}-{decoding}-{number}.parquet"
            if not staging.has(name):
                answers = generate(
                    model,
                    tokenizer,
                    [pair.factual for pair in encoder.encode(part)],
                    DECODINGS[decoding],
                    max_new_tokens=settings.max_new_tokens,
                    batch_tokens=settings.batch_tokens,
                    advance=advance,
                )
                columns = {
                    "example_id": [example.example_id for example in part],
                    "method": [method] * len(part),
                    "decoding": [decoding] * len(part),
                    "text": [answer.text for answer in answers],
                    "n_tokens": [answer.n_tokens for answer in answers],
                    "finish_reason": [answer.finish_reason for answer in answers],
                }
                staging.write_table(name, pa.table(columns, schema=PREDICTIONS))
            reasons = pq.read_table(staging.path(name), columns=["finish_reason"])["finish_reason"]
            stopped += reasons.to_pylist().count("stop")
    return {"examples": len(examples), "stopped": stopped, "truncation": dict(encoder.truncation)}


def _examples(run: Run) -> list[Example]:
    return list(read_examples(run.artifact(run.plan.ingest).folder, (run.config.evaluate.split,)))


@functools.lru_cache(maxsize=1)
def _base_model(spec: ModelSpec) -> Any:
    from nextquill_core.model.loading import load_model

    return load_model(spec)


@contextmanager
def _adapted(base: Any, adapter: Path | None) -> Iterator[Any]:
    """The base model with an adapter on it for the length of the block; the base is loaded once for all methods."""
    if adapter is None:
        yield base
        return
    from peft import PeftModel

    model = PeftModel.from_pretrained(base, str(adapter))
    try:
        yield model.eval()
    finally:
        model.unload()


def evaluation(run: Run, progress: Progress, *, force: bool = False) -> Outcome:
    """Metrics with intervals and tests, figures and the report, from stored predictions; never generates."""

    def build(staging: Staging) -> dict[str, Any]:
        return _measure(run, staging, progress)

    return run.make(run.plan.evaluate, build, force=force)


def _measure(run: Run, staging: Staging, progress: Progress) -> dict[str, Any]:
    from nextquill_core.analysis.report import render
    from nextquill_core.evaluation import metrics, tables
    from nextquill_core.stages.reporting import figures_of, report_of

    for step in run.plan.predictions.values():
        source = run.artifact(step)
        staging.adopt(source.folder, source.shards("predictions/"))
    written_by = read_predictions(staging.folder)
    texts = {key: written_by[key] for key in run.plan.predictions}  # in the config's order
    examples = _examples(run)
    references = [example.target.text for example in examples]
    total = len(texts) * len(examples)
    scores = {}
    for number, (key, by_example) in enumerate(texts.items()):
        written = [by_example[example.example_id] for example in examples]
        before = number * len(examples)
        scores[key] = metrics.score_examples(
            written, references, lambda done, _, note="", before=before: progress(before + done, total, note)
        )
    users = [f"{example.category}/{example.user_id}" for example in examples]
    categories = [example.category for example in examples]
    settings = run.config.evaluate
    resampling = {"samples": settings.bootstrap_samples, "seed": run.config.seed}
    rows = tables.metric_rows(scores, users, categories, **resampling)
    ours = "nextquill" if "nextquill" in settings.methods else None
    comparisons = tables.comparison_rows(scores, users, categories, reference=ours, **resampling)
    write_json(staging.path("metrics.json"), tables.to_document(metrics.settings(), rows, comparisons))
    staging.write_table("metrics.parquet", pa.Table.from_pylist(rows, schema=METRICS))
    pictures = figures_of(run, rows)
    for name, picture in pictures.items():
        staging.path(f"figures/{name}.png").write_bytes(picture.png)
    page = report_of(run, rows, comparisons, metrics.settings(), pictures, examples, texts)
    write_text(staging.path("report.html"), render(page))
    staging.finish("report.html", log=True)  # tells times and paths too
    return {"examples": len(examples), "methods": list(settings.methods), "decoding": list(settings.decoding)}


def read_predictions(folder: Path) -> dict[tuple[str, str], dict[str, str]]:
    """By (method, decoding): the text written for each example."""
    texts: dict[tuple[str, str], dict[str, str]] = {}
    for shard in sorted((folder / "predictions").glob("*.parquet")):
        for row in pq.read_table(shard).to_pylist():
            texts.setdefault((row["method"], row["decoding"]), {})[row["example_id"]] = row["text"]
    return texts


def result_tables(artifact: Artifact, *, intervals: bool = True) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """(title, a row a method) for each decoding preset and category, for people."""
    from nextquill_core.evaluation.tables import from_document, pivot

    path = artifact.folder / "metrics.json"
    _, rows, _ = from_document(json.loads(path.read_text(encoding="utf-8")), str(path))
    for decoding, category in dict.fromkeys((row["decoding"], row["category"]) for row in rows):
        table = pivot(rows, decoding, category)
        names = [metric.name for metric in table.metrics]
        cells = [
            {
                "method": method,
                **{name: str(cell) if intervals else cell.value for name, cell in zip(names, line, strict=True)},
            }
            for method, line in table.lines
        ]
        yield f"{category}, {decoding} decoding, n = {table.n}", cells


def result_cells(artifact: Artifact) -> list[dict[str, str]]:
    """The same as one table."""
    return [{"table": title, **row} for title, rows in result_tables(artifact) for row in rows]
