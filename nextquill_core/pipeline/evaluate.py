"""Evaluation: everything that methods need, write and find likely, each an artifact of its own; then what follows from
them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from nextquill_core.pipeline import Step
from nextquill_core.pipeline import method_inputs as preparing
from nextquill_core.pipeline import predict as writing
from nextquill_core.pipeline.evaluation_plan import SANE, STEERING
from nextquill_core.pipeline.predict import CONTROLS, PREDICTED
from nextquill_core.pipeline.run import Outcome, Run
from nextquill_core.pipeline.score import effects_source
from nextquill_core.pipeline.shown_history import by_example, measured_examples
from nextquill_core.progress import Progress
from nextquill_core.schemas import METRICS, SLICES, Example
from storage import Artifact, Staging, write_json, write_text

if TYPE_CHECKING:
    from nextquill_core.evaluation.metrics import ExampleScores
    from nextquill_core.evaluation.unicode_words import Letters

Key = tuple[str, str]
Texts = Mapping[Key, Mapping[str, str]]
"""By method and preset, then by example."""


def part(run: Run, step: Step, progress: Progress, *, force: bool = False) -> Outcome:
    """Make one of `EvaluationPlan.steps`; those before it are there."""

    def build(staging: Staging) -> dict[str, Any]:
        if step.kind == "relevance":
            return preparing.relevance(run, staging, progress)
        if step.kind == "summaries":
            return preparing.summaries(run, staging, progress)
        if step.kind == "personal":
            return preparing.personal(run, staging, progress)
        if step.kind == "choice":
            return writing.choose(run, step.name.partition(":")[2], staging)
        if step.kind == "likelihood":
            return writing.likelihood(run, step, staging, progress)
        written = next(found for found in run.plan.evaluation.writings if found.step is step)
        return writing.predictions(run, written, staging, progress)

    return run.make(step, build, force=force)


def evaluation(run: Run, progress: Progress, *, force: bool = False) -> Outcome:
    """Metrics with intervals and tests, figures and the report, from stored predictions; never generates."""

    def build(staging: Staging) -> dict[str, Any]:
        return _measure(run, staging, progress)

    return run.make(run.plan.evaluate, build, force=force)


def _measure(run: Run, staging: Staging, progress: Progress) -> dict[str, Any]:
    from nextquill_core.analysis.report import render
    from nextquill_core.evaluation import metrics, slices, tables
    from nextquill_core.evaluation.metric_notes import settings as metric_settings
    from nextquill_core.pipeline.report import figures_of, report_of

    plan, settings, delta = run.plan.evaluation, run.config.evaluate, run.config.weights.delta
    for folder, written in ((PREDICTED, plan.predictions), (CONTROLS, plan.controls)):
        for source in (run.artifact(found.step) for found in written.values()):
            staging.adopt(source.folder, source.shards(f"{folder}/"))
    texts = {key: _texts(run, found.step, PREDICTED) for key, found in plan.predictions.items()}
    control_texts = {key: _texts(run, found.step, CONTROLS) for key, found in plan.controls.items()}
    examples, repeated = measured_examples(run)
    measure = _Measure(run, examples, progress, len(texts) + len(control_texts))
    scores = measure(texts, plan.likelihoods)
    controls = measure(control_texts, plan.control_likelihoods)
    users = [f"{example.category}/{example.user_id}" for example in examples]
    categories = [example.category for example in examples]
    progress(0, 0, phase="intervals and tests")
    resampling: dict[str, Any] = {"samples": settings.bootstrap_samples, "seed": run.config.seed}
    letters = _letters(examples)
    if any(found.ignored_share > metrics.SHOWN_ABOVE for found in letters.values()):
        scores, controls = (
            {key: result.with_unicode() for key, result in measured.items()} for measured in (scores, controls)
        )
    rows = tables.metric_rows(scores, users, categories, **resampling)
    comparisons = tables.comparison_rows(scores, users, categories, **resampling)
    labels = slices.slice_labels(examples, dated=run.plan.source.dated)
    parts = slices.slice_rows(scores, users, categories, labels, **resampling)
    parts += slices.control_rows(scores, controls, users, categories, **resampling)
    how = metric_settings(
        delta=delta, effects=effects_source(run.plan.effects), bertscore=measure.bertscore, letters=letters
    )
    choices = {name: writing.chosen(run, name) for name in plan.choices}
    how["repeated_targets"] = {"examples": repeated, "counted": settings.repeated_targets == "keep"}
    cautions = list(_cautions(how))
    document = tables.to_document(how, rows, comparisons) | {"chosen_on_val": choices, "cautions": cautions}
    write_json(staging.path("metrics.json"), document)
    staging.write_table("metrics.parquet", pa.Table.from_pylist(rows, schema=METRICS))
    staging.write_table("slices.parquet", pa.Table.from_pylist(parts, schema=SLICES))
    ids = [example.example_id for example in examples]
    staging.write_table("examples.parquet", tables.example_table(scores, ids))
    progress(0, 0, phase="drawing the report")
    pictures = figures_of(run, rows)
    for name, picture in pictures.items():
        staging.path(f"figures/{name}.png").write_bytes(picture.png)
    page = report_of(
        run, rows, comparisons, how, pictures, examples, texts, slices=parts,
        notes=[*cautions, *_chosen_notes(choices)],
    )  # fmt: skip
    write_json(staging.path("costs.json"), list(page.costs))
    write_text(staging.path("report.html"), render(page))
    for log in ("costs.json", "report.html"):
        staging.finish(log, log=True)  # tells times and paths too
    return {"examples": len(examples), "methods": list(settings.methods), "decoding": list(settings.decoding)}


class _Measure:
    """Scores sets of texts of the same examples against the same references, telling how far it is."""

    def __init__(self, run: Run, examples: Sequence[Example], progress: Progress, sets: int) -> None:
        self.run = run
        self.examples = examples
        self.progress = progress
        self.total = sets * len(examples)
        self.done = 0
        self.references = [example.target.text for example in examples]
        self.bertscore: dict[str, Any] | None = None
        effects = by_example(run.artifact(run.plan.score).folder / "effects", "effect")
        delta = float(np.float32(run.config.weights.delta))  # as the weights compare it
        self.preferred = [[effect > delta for effect in effects[example.example_id]] for example in examples]
        self._encoder: Any = None
        retrieval = run.config.evaluate.retrieval
        if retrieval.bertscore is not None:
            from nextquill_core.evaluation.bertscore import load_bert_encoder

            self._encoder = load_bert_encoder(retrieval.bertscore, retrieval.bertscore_revision)
            self.bertscore = dict(self._encoder.settings)

    def __call__(self, texts: Texts, likelihoods: Mapping[str, Step]) -> dict[Key, ExampleScores]:
        return {key: self._scores(written, likelihoods[key[0]]) for key, written in texts.items()}

    def _scores(self, text: Mapping[str, str], step: Step) -> ExampleScores:
        from nextquill_core.evaluation import metrics
        from nextquill_core.evaluation.bertscore import bert_f1

        written = [text[example.example_id] for example in self.examples]
        before = self.done

        def shown(done: float, total: float, note: str = "", *, phase: str = "") -> None:
            self.progress(before + done, self.total, note, phase=phase)

        scores = metrics.score_examples(written, self.references, shown)
        self.done += len(written)
        found = by_example(self.run.artifact(step).folder / "likelihoods", "logp")
        logps = [found[example.example_id] for example in self.examples]
        sums = {
            metrics.LIKELIHOOD: metrics.likelihood_sums(logps),
            metrics.PREFERENCE_LIKELIHOOD: metrics.likelihood_sums(logps, self.preferred),
        }
        means = {metrics.BERTSCORE: bert_f1(written, self.references, self._encoder)} if self._encoder else {}
        return scores.plus(means=means, sums=sums)


def _texts(run: Run, step: Step, folder: str) -> dict[str, str]:
    return by_example(run.artifact(step).folder / folder, "text")


def _letters(examples: Sequence[Example]) -> dict[str, Letters]:
    """Count the letters of the reference reviews of each category."""
    from nextquill_core.evaluation.unicode_words import count_letters

    texts: dict[str, list[str]] = {}
    for example in examples:
        texts.setdefault(example.category, []).append(example.target.text)
    return {category: count_letters(found) for category, found in sorted(texts.items())}


def _cautions(how: Mapping[str, Any]) -> Iterator[str]:
    """What a reader must know to read the numbers right; shown with every table of them."""
    from nextquill_core.evaluation.metric_notes import letters_note
    from nextquill_core.evaluation.metrics import METRICS as KNOWN
    from nextquill_core.evaluation.metrics import PREFERENCE_LIKELIHOOD

    if note := letters_note(how["rouge"]["ignored_letters"], how["rouge_unicode"]["unspaced_letters"]):
        yield note
    repeated = how["repeated_targets"]
    if repeated["examples"] and repeated["counted"]:
        yield (
            f"{repeated['examples']} of the target reviews stand word for word in an earlier review of the same user; "
            "set evaluate.repeated_targets to leave_out to measure without them."
        )
    elif repeated["examples"]:
        yield (
            f"{repeated['examples']} target reviews that stand word for word in an earlier review of the same user are "
            "left out of n and of every metric (evaluate.repeated_targets)."
        )
    if PREFERENCE_LIKELIHOOD in how:
        yield f"{KNOWN[PREFERENCE_LIKELIHOOD].name}: {how[PREFERENCE_LIKELIHOOD]['caution']}."


def _chosen_notes(choices: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """What was chosen on val, for readers."""
    named = {SANE: "the preset sane", STEERING: "the strength λ of cos"}
    for name, choice in choices.items():
        values = ", ".join(f"{candidate} {value:.4f}" for candidate, value in choice["values"].items())
        why = f", because {choice['why']}" if choice.get("why") else ""
        yield f"On val, {choice['by']} chose {choice['chosen']} as {named[name]} ({values}){why}."


def result_cautions(artifact: Artifact) -> list[str]:
    """What a reader must know to read the tables of an evaluation right."""
    from nextquill_core.evaluation.tables import read_document

    found: list[str] = read_document(artifact.folder / "metrics.json").get("cautions", [])
    return found


def result_tables(artifact: Artifact, *, intervals: bool = True) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """(title, a row a method) for each decoding preset and category, for people."""
    from nextquill_core.evaluation.tables import from_document, read_document

    path = artifact.folder / "metrics.json"
    _, rows, _ = from_document(read_document(path), str(path))
    yield from shown_tables(rows, intervals=intervals)


def shown_tables(
    rows: Sequence[Mapping[str, Any]], *, intervals: bool = True
) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """The same from the rows of a metrics file."""
    from nextquill_core.evaluation.tables import pivot

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


def result_markdown(artifact: Artifact) -> str:
    """The report in short: a table of methods by metrics for each preset and category, what was chosen on val, and
    where the whole of it is."""
    from nextquill_core.evaluation.tables import from_document, markdown_table, read_document

    path = artifact.folder / "metrics.json"
    document = read_document(path)
    _, rows, _ = from_document(document, str(path))
    parts = ["# Evaluation"]
    for decoding, category in dict.fromkeys((row["decoding"], row["category"]) for row in rows):
        n = max(row["n"] for row in rows if (row["decoding"], row["category"]) == (decoding, category))
        parts += [f"## {category}, {decoding} decoding, n = {n}", markdown_table(rows, decoding, category)]
    parts.append("The best of each metric is bold. In brackets: 95 % bootstrap intervals over users.")
    parts += document.get("cautions", [])
    parts += _chosen_notes(document.get("chosen_on_val", {}))
    parts.append(f"Figures, tests between methods, examples and costs: `{artifact.folder / 'report.html'}`")
    return "\n\n".join(parts) + "\n"


def result_cells(artifact: Artifact) -> list[dict[str, str]]:
    """The same as one table."""
    return [{"table": title, **row} for title, rows in result_tables(artifact) for row in rows]
