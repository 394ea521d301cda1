"""Predictions: the texts that methods generate, the likelihood of the true reviews, and what is chosen on val."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nextquill_core.errors import UserError
from nextquill_core.evaluation.forms import Choice
from nextquill_core.generation.decoding import COPE, DECODINGS, Contrast, steering
from nextquill_core.generation.engines import BASE, STOPPED, Journal, Request, Usage
from nextquill_core.methods.registry import METHODS, Method, Style
from nextquill_core.pipeline.evaluation_plan import LIKELIHOOD, OWN, SANE, steering_choice
from nextquill_core.pipeline.methods import (
    local_engine,
    method_encoder,
    missing_shards,
    server_engine,
    shard_names,
    shown_examples,
    split_examples,
)
from nextquill_core.pipeline.run import Run
from nextquill_core.pipeline.shard_counts import ShardCounts
from nextquill_core.pipeline.step import Step
from nextquill_core.progress import Progress, advancing
from nextquill_core.records import Example
from nextquill_core.schemas import LIKELIHOODS, PREDICTIONS, column_by_example
from nextquill_core.tokens import TokenPair
from storage import Staging, write_json
from storage.files import read_json
from storage.stored_json import read_checked
from storage.tables import read_table

CHOICE = "choice.json"
REMEDY = "run `nextquill evaluate --force`"
FALLBACK = "rouge1_unicode"
"""The metric that decides where the configured one is 0 for every candidate."""
PREDICTED, CONTROLS = "predictions", "controls"
"""Folders of texts: those with the users' own history, and those with a stranger's."""


def build_predictions(run: Run, step: Step, staging: Staging, progress: Progress) -> dict[str, Any]:
    """Write what one method generates for every example of a split, shard by shard.

    Args:
        run: The run; what the method needs is in its store.
        step: The step of a `PredictionSet` of the plan.
        staging: Folder of the new artifact.
        progress: Receives the examples that are done.
    """
    from nextquill_core.methods.individual_model import IndividualModel

    planned = run.plan.evaluation.prediction_set(step)
    method = METHODS[planned.method]
    examples = shown_examples(run, method, planned.split, planned.history)
    encoder = method_encoder(run, method)
    decoding = DECODINGS[planned.sampler or choice(run, SANE)]
    strength, style = planned.strength, planned.style
    if method.steered and strength is None:
        strength = chosen_strength(run, method)
    if method.styles and style is None:
        style = chosen_style(run, method)
    contrast = _contrast(method, strength)
    folder = PREDICTED if planned.history == OWN else CONTROLS

    def path(name: str) -> str:
        return f"{folder}/{planned.method}-{planned.decoding}-{name}.parquet"

    names = shard_names(run, method, examples)
    counts = ShardCounts(staging)
    made = {name for name in names if staging.has(path(name)) and counts.restore(name)}
    finished = sum(_rows(staging, path(name)) for name in made)
    advance = advancing(progress, len(examples), finished)
    if finished < len(examples):
        progress(0, 0, phase="loading the model")
    served = run.config.evaluate.engine == "openai"
    shards = missing_shards(
        run, method, examples, lambda name: name not in made, served=served, style=style, history=planned.history
    )
    for shard in shards:
        if served:
            engine = server_engine(run, method, encoder, decoding, planned.limit)
        else:
            engine = local_engine(run, shard.model, encoder, decoding, planned.limit, contrast)
        encoder.truncation.clear()
        pairs = encoder.encode(shard.examples)
        counts.add(shard.name, encoder.truncation)
        if isinstance(shard.model, IndividualModel):
            pairs = [shard.model.prepared(pair) for pair in pairs]
        requests = [_request(pair, method, shard.adapters.get(pair.example_id)) for pair in pairs]
        journal = Journal(staging.scratch / f"answers-{shard.name}.jsonl")
        missing = journal.missing(requests)
        advance(len(requests) - len(missing))
        engine.generate(missing, advance, keep=journal.keep)
        answers = journal.answers(requests)
        write_json(staging.scratch / f"usage-{shard.name}.json", asdict(engine.usage))
        columns = {
            "example_id": [pair.example_id for pair in pairs],
            "method": [planned.method] * len(pairs),
            "decoding": [planned.decoding] * len(pairs),
            "text": [answer.text for answer in answers],
            "n_tokens": [answer.n_tokens for answer in answers],
            "finish_reason": [answer.finish_reason for answer in answers],
        }
        staging.write_table(path(shard.name), pa.table(columns, schema=PREDICTIONS))
    reasons = [
        reason
        for name in names
        for reason in read_table(staging.path(path(name)), columns=["finish_reason"])["finish_reason"].to_pylist()
    ]
    return {
        "examples": len(examples),
        "stopped": reasons.count(STOPPED),
        "sampler": decoding.name,
        **({} if strength is None else {"strength": strength}),
        **({} if style is None else {"style": asdict(style)}),
        "truncation": dict(counts.total),
        "usage": asdict(_total_usage(staging, names)),
    }


def build_likelihoods(run: Run, step: Step, staging: Staging, progress: Progress) -> dict[str, Any]:
    """Write the log-probability of every token of the true reviews under a method's model and prompts.

    Args:
        run: The run; what the method needs is in its store.
        step: One of `EvaluationPlan.likelihoods`, `control_likelihoods` or `bare_likelihoods`.
        staging: Folder of the new artifact.
        progress: Receives the examples that are done.
    """
    from nextquill_core.evaluation.likelihood import (
        answer_logps,
        contrasted_logps,
        individual_logps,
        personal_logps,
        steered_logps,
    )
    from nextquill_core.methods.individual_model import IndividualModel

    method = METHODS[step.settings["method"]]
    examples = shown_examples(run, method, step.settings["split"], step.settings["past"])
    encoder = method_encoder(run, method)
    batch_tokens = run.config.score.batch_tokens
    strength = chosen_strength(run, method) if method.steered else 0.0
    style = chosen_style(run, method) if method.styles else None

    def path(name: str) -> str:
        return f"likelihoods/{name}.parquet"

    names = shard_names(run, method, examples)
    finished = sum(_rows(staging, path(name)) for name in names if staging.has(path(name)))
    advance = advancing(progress, len(examples), finished)
    progress(0, 0, phase="loading the model")
    shards = missing_shards(
        run, method, examples, lambda name: not staging.has(path(name)), style=style, history=step.settings["past"]
    )
    for shard in shards:
        advance(0)
        pairs = encoder.encode(shard.examples)
        adapters = [shard.adapters[pair.example_id] for pair in pairs] if shard.adapters else []
        if strength:
            logps = [found[0] for found in steered_logps(shard.model, pairs, [strength], batch_tokens, advance)]
        elif isinstance(shard.model, IndividualModel):
            individual = [shard.model.prepared(pair) for pair in pairs]
            logps = individual_logps(shard.model, individual, batch_tokens, advance)
        elif adapters and method.contrasted:
            logps = contrasted_logps(shard.model, pairs, adapters, COPE, batch_tokens, advance)
        elif adapters:
            logps = personal_logps(shard.model, pairs, adapters, batch_tokens, advance)
        else:
            logps = answer_logps(shard.model, pairs, batch_tokens, advance)
        columns = {"example_id": [pair.example_id for pair in pairs], "logp": [logp.numpy() for logp in logps]}
        staging.write_table(path(shard.name), pa.table(columns, schema=LIKELIHOODS))
    return {"examples": len(examples)}


def _contrast(method: Method, strength: float | None) -> Contrast | None:
    """Return how the two branches of a method become one; None for a method with one branch."""
    if strength is not None:
        return steering(strength)
    return COPE if method.contrasted else None


def _request(pair: TokenPair, method: Method, adapter: str | None) -> Request:
    """Return what an engine is asked for an example.

    The second branch of a steered method has the prompt without history, that of a contrasted one no user's adapter.
    """
    if method.contrasted:
        return Request(pair.example_id, pair.factual, pair.factual, adapter, counterfactual_adapter=BASE)
    steered = method.steered and pair.has_history
    return Request(pair.example_id, pair.factual, pair.counterfactual if steered else None, adapter)


def build_choice(run: Run, step: Step, staging: Staging, progress: Progress) -> dict[str, Any]:
    """Write which candidate does best on val; of equal ones, the first.

    Where the configured metric ignores too many letters of the reference reviews, its form for every script decides.
    Where that is 0 for all candidates, `rouge1_unicode` decides. The artifact says which metric decided, and why.

    Args:
        run: The run; the candidates' predictions are in its store.
        step: One of `EvaluationPlan.choices`.
        staging: Folder of the new artifact.
        progress: Receives the examples that are done, of a choice by likelihood.
    """
    examples = split_examples(run, "val")
    if step.settings["by"] == LIKELIHOOD:
        measured = _by_likelihood(run, step, staging, progress)
    else:
        measured = _by_texts(run, step, examples)
    values = measured["values"]
    found = {"chosen": max(values, key=lambda candidate: values[candidate]), **measured}
    write_json(staging.path(CHOICE), found)
    return found | {"examples": len(examples)}


def _by_texts(run: Run, step: Step, examples: Sequence[Example]) -> dict[str, Any]:
    """Return the value of each candidate's texts in a metric of texts, and why it is this metric."""
    from nextquill_core.evaluation.metrics import choosing_metric, score_examples
    from nextquill_core.evaluation.text_metrics import count_letters

    asked = run.config.evaluate.choose_by
    references = [example.target.text for example in examples]
    letters = count_letters(references)
    name = next(name for name, known in run.plan.evaluation.choices.items() if known.name == step.name)
    scores = {}
    for candidate, planned in run.plan.evaluation.candidates[name].items():
        texts = column_by_example(run.artifact(planned.step).folder / PREDICTED, "text")
        scores[candidate] = score_examples([texts[example.example_id] for example in examples], references)
    by, why = choosing_metric(asked, letters), ""
    if by != asked:
        why = f"{asked} ignores {letters.ignored_share:.1%} of the letters and digits of the val reviews"
    if not any(found.value(by) for found in scores.values()):
        by, why = FALLBACK, f"{by} is 0 for every candidate"
    values = {candidate: found.value(by) for candidate, found in scores.items()}
    if len(values) > 1 and len(set(values.values())) == 1:
        why = f"{why}; " * bool(why) + "all candidates are equal, and the first is taken"
    return {"by": by, "asked": asked, "why": why, "values": values}


def _by_likelihood(run: Run, step: Step, staging: Staging, progress: Progress) -> dict[str, Any]:
    """Return the mean log-likelihood of the true reviews of val under each strength of steering.

    All strengths are measured in one pass. Finished shards of an interrupted run are kept.
    """
    from nextquill_core.evaluation.likelihood import steered_logps

    method = METHODS[step.settings["method"]]
    strengths = method.strengths
    examples = shown_examples(run, method, "val", OWN)
    encoder = method_encoder(run, method)
    names = shard_names(run, method, examples)

    def sums(name: str) -> Path:
        return staging.scratch / f"sums-{name}.json"

    def measured() -> list[dict[str, Any]]:
        return [read_json(sums(name)) for name in names if sums(name).is_file()]

    advance = advancing(progress, len(examples), sum(part["examples"] for part in measured()))
    progress(0, 0, phase="loading the model")
    for shard in missing_shards(run, method, examples, lambda name: not sums(name).is_file()):
        advance(0)
        pairs = encoder.encode(shard.examples)
        found = steered_logps(shard.model, pairs, strengths, run.config.score.batch_tokens, advance)
        totals = [sum(parts) for parts in zip(*(logps.double().sum(dim=1).tolist() for logps in found), strict=True)]
        tokens = sum(len(pair.target) for pair in pairs)
        write_json(sums(shard.name), {"sums": totals, "tokens": tokens, "examples": len(pairs)})
    parts = measured()
    tokens = sum(part["tokens"] for part in parts)
    values = {
        candidate: sum(part["sums"][place] for part in parts) / tokens
        for place, candidate in enumerate(step.settings["candidates"])
    }
    return {"by": LIKELIHOOD, "asked": LIKELIHOOD, "why": "", "values": values}


def chosen(run: Run, name: str) -> dict[str, Any]:
    """Return what was chosen on val, by which metric, and the value of every candidate.

    Args:
        run: The run; the choice is in its store.
        name: A key of `EvaluationPlan.choices`.

    Raises:
        UserError: The file is damaged.
    """
    path = run.artifact(run.plan.evaluation.choices[name]).folder / CHOICE
    found: dict[str, Any] = read_checked(path, Choice, REMEDY)
    if found["chosen"] not in run.plan.evaluation.choices[name].settings["candidates"]:
        raise UserError(f"{found['chosen']!r} is none of its candidates", str(path), REMEDY)
    return found


def choice(run: Run, name: str) -> str:
    """Return what was chosen on val: how `sane` decodes, or how strongly a method steers."""
    return str(chosen(run, name)["chosen"])


def chosen_strength(run: Run, method: Method) -> float:
    """Return the strength λ of a steered method that was chosen on val."""
    return float(choice(run, steering_choice(method.name)))


def chosen_style(run: Run, method: Method) -> Style:
    """Return where and how strongly the style vectors of a method are added, as val has chosen."""
    name = choice(run, steering_choice(method.name))
    return next(style for style in method.styles if style.label == name)


def _rows(staging: Staging, name: str) -> int:
    rows: int = pq.read_metadata(staging.path(name)).num_rows
    return rows


def _total_usage(staging: Staging, names: list[str]) -> Usage:
    """Return the usage of all shards, those of earlier processes included; of memory, the highest.

    A shard that was interrupted has the usage of the process that finished it.
    """
    paths = [staging.scratch / f"usage-{name}.json" for name in names]
    usages = [asdict(read_checked(path, Usage, REMEDY)) for path in paths if path.is_file()]
    summed = {field.name: sum(usage[field.name] for usage in usages) for field in fields(Usage)}
    return Usage(**summed | {"peak_bytes": max((usage["peak_bytes"] for usage in usages), default=0)})
