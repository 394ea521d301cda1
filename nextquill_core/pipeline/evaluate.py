"""The stage `evaluate`: metrics with intervals and tests, figures and the report, from stored predictions.

The second half reads the results back from `metrics.json` and shows them as tables.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from nextquill_core.evaluation.forms import EvaluationDocument, TruthRow
from nextquill_core.methods.registry import METHODS as KNOWN_METHODS
from nextquill_core.pipeline.evaluation_plan import SANE, Key, steering_choice
from nextquill_core.pipeline.methods import measured_examples, resampled_users
from nextquill_core.pipeline.predict import CONTROLS, PREDICTED, chosen
from nextquill_core.pipeline.run import Run
from nextquill_core.pipeline.score import effects_source
from nextquill_core.pipeline.step import Step
from nextquill_core.progress import Progress
from nextquill_core.schemas import METRICS, SLICES, Example, column_by_example
from storage import Artifact, Staging, UserError, write_json, write_text
from storage.stored_json import expect_form, read_checked
from storage.tables import read_table

if TYPE_CHECKING:
    from nextquill_core.analysis.report import Picture
    from nextquill_core.analysis.result_tables import Pivot
    from nextquill_core.evaluation.metrics import ExampleScores
    from nextquill_core.evaluation.significance import Floats
    from nextquill_core.evaluation.tables import Row
    from nextquill_core.evaluation.text_metrics import Letters
    from nextquill_core.pipeline.author import RunAuthor
    from nextquill_core.pipeline.score import Effects

METRICS_FILE, STATISTICS_FILE, TRUTH_FILE = "metrics.json", "statistics.parquet", "truth.json"

Texts = Mapping[Key, Mapping[str, str] | None]
"""Generated texts, by method and preset and then by example; None for a method that only has likelihoods."""


def build_evaluation(run: Run, step: Step, staging: Staging, progress: Progress) -> dict[str, Any]:
    """Write metrics, tests, figures and the report; nothing is generated.

    Args:
        run: The run; all steps of `Plan.evaluation` are in its store.
        step: `Plan.evaluate`.
        staging: Folder of the new artifact.
        progress: Receives the texts that are scored.
    """
    from nextquill_core.analysis.report import render
    from nextquill_core.evaluation import metrics, slices, tables
    from nextquill_core.pipeline.judge import judged
    from nextquill_core.pipeline.report.against_truth import against_truth
    from nextquill_core.pipeline.report.example import gather
    from nextquill_core.pipeline.report.page import Measured, figures_of, report_of, verdict_of
    from nextquill_core.pipeline.report.paper_pictures import paper_pictures
    from nextquill_core.pipeline.score import read_effects

    plan, settings, delta = run.plan.evaluation, run.config.evaluate, run.config.weights.delta
    texts = {key: _adopted(run, one.step, PREDICTED, staging) for key, one in plan.predictions.items()}
    control_texts = {key: _adopted(run, one.step, CONTROLS, staging) for key, one in plan.controls.items()}
    examples, repeated = measured_examples(run)
    effects = read_effects(run.artifact(run.plan.score).folder, examples)
    scorer = _Scorer(run, examples, effects, progress, len(texts) + len(control_texts))
    last = settings.decoding[-1] if settings.decoding else tables.NO_TEXTS
    others = {metrics.PERSONAL_GAIN: plan.control_likelihoods, metrics.HISTORY_GAIN: plan.bare_likelihoods}
    judgements, judge = judged(run, examples) if plan.judged else ({}, None)
    scores = scorer(texts or _without_texts(plan.likelihoods, last), plan.likelihoods, others, judgements)
    controls = scorer(control_texts or _without_texts(plan.control_likelihoods, last), plan.control_likelihoods, {})
    users = resampled_users(examples)
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
    sliced = slices.slice_rows(scores, users, categories, labels, **resampling)
    sliced += slices.control_rows(scores, controls, users, categories, **resampling)
    how = metrics.metric_settings(
        delta=delta,
        effects=effects_source(run.plan.effects),
        preferences={
            tokens: effects_source(_crossfit(run, tokens) or run.plan.effects) for tokens in settings.preference_tokens
        },
        bertscore=scorer.bertscore,
        author=scorer.author.settings() if scorer.author else None,
        judge=judge,
        letters=letters,
        added=settings.metrics,
    )
    if plan.relevance and (retrieval := run.artifact(plan.relevance).manifest.stats.get("retrieval")):
        how["contriever"] = retrieval
    how["repeated_targets"] = {"examples": repeated, "counted": settings.repeated_targets == "keep"}
    choices = {name: chosen(run, name) for name in plan.choices}
    cautions = list(_cautions(how))
    notes = list(chosen_notes(choices))
    measured = Measured(rows, comparisons, sliced, how, examples, effects, texts, control_texts, cautions, notes)
    sentences = verdict_of(run, measured)
    document = {"settings": how, "rows": rows, "comparisons": comparisons, "chosen_on_val": choices}
    write_json(staging.path(METRICS_FILE), document | {"cautions": cautions, "verdict": list(sentences)})
    staging.write_table("metrics.parquet", pa.Table.from_pylist(rows, schema=METRICS))
    staging.write_table("slices.parquet", pa.Table.from_pylist(sliced, schema=SLICES))
    ids = [example.example_id for example in examples]
    staging.write_table("examples.parquet", tables.example_table(scores, ids))
    staging.write_table(STATISTICS_FILE, tables.statistics_table(scores, ids))
    progress(0, 0, phase="drawing the report")
    explained = list(gather(run, examples, effects))
    pictures, truth = figures_of(run, measured), against_truth(run, measured)
    paper = paper_pictures(run, explained, users=users)
    for name, picture in pictures.items():
        write_picture(staging, name, picture)
    for name, picture in truth.pictures.items() if truth else ():
        write_picture(staging, name, picture, log=True)  # the ground truth is no input of the step
    if truth:
        write_json(staging.path(TRUTH_FILE), list(truth.rows))
        staging.finish(TRUTH_FILE, log=True)
    for group in paper:
        for name, picture in group.pictures.items():
            write_picture(staging, name, picture, log=not group.input)
    page = report_of(run, measured, pictures, explained, truth, sentences=sentences, paper=paper)
    write_json(staging.path("costs.json"), list(page.costs))
    write_text(staging.path("report.html"), render(page))
    for log in ("costs.json", "report.html"):
        staging.finish(log, log=True)  # they contain times and paths
    return {"examples": len(examples), "methods": list(settings.methods), "decoding": list(settings.decoding)}


def write_picture(staging: Staging, name: str, picture: Picture, *, log: bool = False) -> None:
    """Write a figure as PNG, and its numbers as Parquet beside it.

    Args:
        staging: Folder of the new artifact.
        name: Name of the files without suffix.
        picture: The figure.
        log: Whether the files only describe the run and are not part of the content.
    """
    staging.path(f"figures/{name}.png").write_bytes(picture.png)
    staging.write_table(f"figures/{name}.parquet", pa.Table.from_pylist([dict(row) for row in picture.data]))
    for suffix in ("png", "parquet") if log else ():
        staging.finish(f"figures/{name}.{suffix}", log=True)


def _without_texts(likelihoods: Mapping[str, Step], decoding: str) -> Texts:
    return {(method, decoding): None for method in likelihoods}


def _adopted(run: Run, step: Step, folder: str, staging: Staging) -> dict[str, str]:
    """Take the texts of a step into the evaluation's artifact, and return them by example."""
    source = run.artifact(step)
    staging.adopt(source.folder, source.shards(f"{folder}/"))
    return column_by_example(source.folder / folder, "text")


class _Scorer:
    """Scores sets of texts against the true reviews of the same examples, and reports its progress."""

    def __init__(self, run: Run, examples: Sequence[Example], effects: Effects, progress: Progress, sets: int) -> None:
        self.run = run
        self.examples = examples
        self.progress = progress
        self.total = sets * len(examples)
        self.done = 0
        self.references = [example.target.text for example in examples]
        self.bertscore: dict[str, Any] | None = None
        delta = float(np.float32(run.config.weights.delta))  # as the weights compare it
        self.preferred = {
            tokens: [[effect > delta for effect in found] for found in _choosing(run, tokens, examples, effects)]
            for tokens in run.config.evaluate.preference_tokens
        }
        self._encoder: Any = None
        retrieval = run.config.evaluate.retrieval
        if retrieval.bertscore is not None:
            from nextquill_core.evaluation.bertscore import load_bert_encoder

            self._encoder = load_bert_encoder(retrieval.bertscore, retrieval.bertscore_revision)
            self.bertscore = dict(self._encoder.settings)
        self.author: RunAuthor | None = None
        if retrieval.author is not None:
            from nextquill_core.pipeline.author import RunAuthor

            self.author = RunAuthor(run, examples)

    def __call__(
        self,
        texts: Texts,
        likelihoods: Mapping[str, Step],
        others: Mapping[str, Mapping[str, Step]],
        judgements: Mapping[Key, Floats] = MappingProxyType({}),
    ) -> dict[Key, ExampleScores]:
        """Return the scores of sets of texts, with the log-likelihoods and gains of their methods.

        Args:
            texts: The sets.
            likelihoods: The likelihoods of each method with the history that its texts were generated with.
            others: By gain, the likelihoods with the history that it compares with, of the methods that have them.
            judgements: Statistics of the judge metric of the sets that were judged.
        """
        from nextquill_core.evaluation import metrics

        measured = {
            method: self._likelihoods(
                likelihoods[method], {gain: steps[method] for gain, steps in others.items() if method in steps}
            )
            for method in dict.fromkeys(method for method, _ in texts)
        }
        nothing = metrics.ExampleScores({})
        return {
            key: (nothing if written is None else self._scores(written))
            .plus({metrics.JUDGE: judgements[key]} if key in judgements else {})
            .plus(measured[key[0]])
            for key, written in texts.items()
        }

    def _likelihoods(self, step: Step, others: Mapping[str, Step]) -> dict[str, Floats]:
        """Return the statistics of a method's log-likelihoods and gains, on all tokens and on each preference set."""
        from nextquill_core.evaluation import metrics

        own, compared = self._logps(step), {gain: self._logps(other) for gain, other in others.items()}

        def sums(preferred: Sequence[Sequence[bool]] | None) -> dict[str, Floats]:
            mine = metrics.likelihood_sums(own, preferred)
            gains = {gain: metrics.likelihood_sums(logps, preferred) for gain, logps in compared.items()}
            return {metrics.LIKELIHOOD: mine} | {key: metrics.gain_sums(mine, other) for key, other in gains.items()}

        found = sums(None)
        for tokens, preferred in self.preferred.items():
            found |= {metrics.preference_key(key, tokens): rows for key, rows in sums(preferred).items()}
        return found

    def _logps(self, step: Step) -> list[Sequence[float]]:
        found = column_by_example(self.run.artifact(step).folder / "likelihoods", "logp")
        return [found[example.example_id] for example in self.examples]

    def _scores(self, text: Mapping[str, str]) -> ExampleScores:
        from nextquill_core.evaluation import metrics
        from nextquill_core.evaluation.bertscore import bert_f1

        written = [text[example.example_id] for example in self.examples]
        before = self.done

        def shown(done: float, total: float, note: str = "", *, phase: str = "") -> None:
            self.progress(before + done, self.total, note, phase=phase)

        added = self.run.config.evaluate.metrics
        scores = metrics.score_examples(written, self.references, shown, added=added)
        self.done += len(written)
        if self._encoder:
            scores = scores.plus({metrics.BERTSCORE: bert_f1(written, self.references, self._encoder)})
        return scores.plus({metrics.AUTHOR: self.author.score(written)}) if self.author else scores


def _crossfit(run: Run, tokens: str) -> Step | None:
    """Return the step that scored for a set of preference tokens alone; None where the score stage has its effects."""
    return run.plan.evaluation.crossfit if tokens == "crossfit" else None


def _choosing(run: Run, tokens: str, examples: Sequence[Example], effects: Effects) -> Sequence[Sequence[float]]:
    """Return the effect of each token of the true reviews that decides whether it is a preference token.

    Args:
        run: The run; the effects are in its store.
        tokens: A set of preference tokens, from `evaluate.preference_tokens`.
        examples: The measured examples.
        effects: Their effects from the score stage.

    Raises:
        DataError: There is no ground truth for `exact`, or it is not that of these reviews.
    """
    from nextquill_core.pipeline.score import read_effects
    from nextquill_core.pipeline.truths import exact_token_effects, truths_of

    if tokens == "exact":
        return exact_token_effects(run, examples, effects, truths_of(run))
    if crossfit := _crossfit(run, tokens):
        effects = read_effects(run.artifact(crossfit).folder, examples)
    return [effects[example.example_id].effect for example in examples]


def _letters(examples: Sequence[Example]) -> dict[str, Letters]:
    """Count the letters of the reference reviews of each category."""
    from nextquill_core.evaluation.text_metrics import count_letters

    texts: dict[str, list[str]] = {}
    for example in examples:
        texts.setdefault(example.category, []).append(example.target.text)
    return {category: count_letters(found) for category, found in sorted(texts.items())}


def _cautions(how: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a reader must know to read the numbers right; it is shown with every table of them."""
    from nextquill_core.evaluation.ceilings import ceiling_note
    from nextquill_core.evaluation.metrics import (
        AUTHOR,
        JUDGE,
        LIKELIHOOD,
        PREFERENCE_SETS,
        letters_note,
        preference_key,
    )

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
    yield from (ceiling_note(metric, how[metric]) for metric in (AUTHOR, JUDGE) if metric in how)
    for tokens, ending in PREFERENCE_SETS.items():
        if (known := how.get(preference_key(LIKELIHOOD, tokens))) is not None:
            yield f"Preference log-likelihood and gains{ending}: {known['caution']}."


@dataclass(frozen=True)
class Results:
    """The content of a `metrics.json`.

    Attributes:
        settings: How the metrics are computed.
        rows: Rows of the schema `METRICS`.
        cautions: What a reader must know to read the numbers right.
        chosen_on_val: What was chosen on val, as `predict.chosen` returns it.
        verdict: At most three sentences on what the numbers show.
    """

    settings: Mapping[str, Any]
    rows: Sequence[Row]
    cautions: Sequence[str]
    chosen_on_val: Mapping[str, Mapping[str, Any]]
    verdict: Sequence[str] = ()


def read_results(evaluation: Artifact) -> Results:
    """Read the results of an evaluation.

    Raises:
        UserError: The file cannot be read, or it is damaged.
    """
    document = read_checked(evaluation.folder / METRICS_FILE, EvaluationDocument, "evaluate again")
    return Results(
        document["settings"],
        document["rows"],
        document.get("cautions", []),
        document.get("chosen_on_val", {}),
        document.get("verdict", []),
    )


def read_truth(evaluation: Artifact) -> list[dict[str, Any]]:
    """Return how each method compares with exact effects (`AgainstTruth.rows`); empty where there are none.

    Raises:
        UserError: The file is damaged.
    """
    path = evaluation.folder / TRUTH_FILE
    if not path.is_file():
        return []
    rows: list[dict[str, Any]] = read_checked(path, list[TruthRow], "evaluate again")
    return rows


def read_scores(evaluation: Artifact) -> tuple[list[str], dict[Key, ExampleScores]]:
    """Return the ids of the examples of an evaluation, and the scores of each method and decoding preset.

    Raises:
        UserError: An earlier version made the evaluation, or its file is damaged.
    """
    from nextquill_core.evaluation.tables import scores_of_statistics

    files = evaluation.files(STATISTICS_FILE)
    if not files:
        remedy = "run `nextquill evaluate --force` with its config, or remove it"
        raise UserError(
            "an earlier version made this evaluation, without the scores of examples", evaluation.location, remedy
        )
    with expect_form(evaluation.location, "evaluate again"):
        return scores_of_statistics(read_table(files[0]))


def result_tables(
    rows: Sequence[Mapping[str, Any]], *, intervals: bool = True
) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Yield tables, each with its title and a row for each method: those of the report, gains by history first.

    Args:
        rows: Rows of the schema `METRICS`.
        intervals: Whether the 95 % interval stands beside each value.
    """
    from nextquill_core.analysis.result_tables import shown_tables

    for title, table in shown_tables(rows):
        yield title, table_cells(table, intervals=intervals)


def table_cells(table: Pivot, *, intervals: bool = True) -> list[dict[str, str]]:
    """Return a row for each method of a table, with the text of each cell by the name of its metric."""
    names = [metric.name for metric in table.metrics]
    return [
        {
            "method": method,
            **{name: str(cell) if intervals else cell.value for name, cell in zip(names, line, strict=True)},
        }
        for method, line in table.lines
    ]


def result_markdown(results: Results, report: str) -> str:
    """Return the report in short: tables of methods by metrics, cautions, choices on val, and the path of the report.

    Args:
        results: The results.
        report: Path of the whole report.
    """
    from nextquill_core.analysis.result_tables import shown_tables

    parts = ["# Evaluation", *results.verdict]
    for title, table in shown_tables(results.rows):
        parts += [f"## {title}", table.markdown]
    parts.append("The best of each metric is bold. In brackets: 95 % bootstrap intervals over users.")
    parts += results.cautions
    parts += chosen_notes(results.chosen_on_val)
    parts.append(f"Figures, tests between methods, examples and costs: `{report}`")
    return "\n\n".join(parts) + "\n"


def chosen_notes(choices: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield a sentence for each choice that was made on val."""
    names = {SANE: "the preset sane"} | {steering_choice(name): f"the strength λ of {name}" for name in KNOWN_METHODS}
    for method in KNOWN_METHODS.built_in.values():
        if method.styles:
            names[steering_choice(method.name)] = f"the depth and strength of the style vectors of {method.name}"
    for name, choice in choices.items():
        values = ", ".join(f"{candidate} {value:.4f}" for candidate, value in choice["values"].items())
        why = f", because {choice['why']}" if choice.get("why") else ""
        yield f"On val, {choice['by']} chose {choice['chosen']} as {names.get(name, name)} ({values}){why}."
