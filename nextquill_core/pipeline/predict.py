"""What methods write, how likely they find what was written, and what is chosen on val."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, fields
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nextquill_core.errors import UserError
from nextquill_core.evaluation.forms import Choice
from nextquill_core.generation.decoding import DECODINGS, Decoding
from nextquill_core.generation.engines import Engine, Request, Usage
from nextquill_core.generation.journal import Journal
from nextquill_core.methods.registry import METHODS, Method
from nextquill_core.pipeline import Step, Writing
from nextquill_core.pipeline.evaluation_plan import OWN, SANE, STEERING
from nextquill_core.pipeline.method_models import Part, make_engine, method_encoder, parts, server_engine, shard_names
from nextquill_core.pipeline.run import Run
from nextquill_core.pipeline.shown_history import by_example, shown_examples, split_examples
from nextquill_core.progress import Progress
from nextquill_core.schemas import LIKELIHOODS, PREDICTIONS
from nextquill_core.tokens import PairEncoder
from storage import Staging, write_json
from storage.documents import read_checked
from storage.tables import read_table

CHOICE = "choice.json"
AGAIN = "run `nextquill evaluate --force`"
FALLBACK = "rouge1_unicode"
"""The metric that decides where the configured one is 0 for every candidate."""
PREDICTED, CONTROLS = "predictions", "controls"
"""Folders of texts: those with the users' own past, and those with a stranger's."""


def predictions(run: Run, writing: Writing, staging: Staging, progress: Progress) -> dict[str, Any]:
    """What one method writes for every example of a split, shard by shard."""
    method = METHODS[writing.method]
    examples = shown_examples(run, method, writing.split, writing.past)
    encoder = method_encoder(run, method)
    decoding = DECODINGS[writing.sampler or choice(run, SANE)]
    strength = _strength(run, method, writing)
    folder = PREDICTED if writing.past == OWN else CONTROLS

    def path(name: str) -> str:
        return f"{folder}/{writing.method}-{writing.decoding}-{name}.parquet"

    names = shard_names(run, method, examples)
    finished = sum(_rows(staging, path(name)) for name in names if staging.has(path(name)))

    def advance(count: int) -> None:
        nonlocal finished
        finished += count
        progress(finished, len(examples))

    if finished < len(examples):
        progress(0, 0, phase="loading the model")
    for part in _answered(run, method, examples, lambda name: not staging.has(path(name))):
        engine = _engine(run, method, part, encoder, decoding, writing.limit, strength)
        pairs = encoder.encode(part.examples)
        requests = [
            Request(
                pair.example_id,
                pair.factual,
                pair.counterfactual if strength is not None and pair.has_history else None,
                part.adapters.get(pair.example_id),
            )
            for pair in pairs
        ]
        journal = Journal(staging.scratch / f"answers-{part.name}.jsonl")
        missing = journal.missing(requests)
        advance(len(requests) - len(missing))
        engine.generate(missing, advance, keep=journal.keep)
        answers = journal.answers(requests)
        write_json(staging.scratch / f"usage-{part.name}.json", asdict(engine.usage))
        columns = {
            "example_id": [pair.example_id for pair in pairs],
            "method": [writing.method] * len(pairs),
            "decoding": [writing.decoding] * len(pairs),
            "text": [answer.text for answer in answers],
            "n_tokens": [answer.n_tokens for answer in answers],
            "finish_reason": [answer.finish_reason for answer in answers],
        }
        staging.write_table(path(part.name), pa.table(columns, schema=PREDICTIONS))
    ended = [
        reason
        for name in names
        for reason in read_table(staging.path(path(name)), columns=["finish_reason"])["finish_reason"].to_pylist()
    ]
    return {
        "examples": len(examples),
        "stopped": ended.count("stop"),
        "sampler": decoding.name,
        **({} if strength is None else {"strength": strength}),
        "truncation": dict(encoder.truncation),
        "usage": asdict(_total(staging, names)),
    }


def likelihood(run: Run, step: Step, staging: Staging, progress: Progress) -> dict[str, Any]:
    """Log p of every token of the true reviews under a method's model and prompts."""
    from nextquill_core.evaluation.likelihood import answer_logps, personal_logps, steered_logps

    method = METHODS[step.settings["method"]]
    examples = shown_examples(run, method, step.settings["split"], step.settings["past"])
    encoder = method_encoder(run, method)
    batch_tokens = run.config.score.batch_tokens

    def path(name: str) -> str:
        return f"likelihoods/{name}.parquet"

    finished = 0
    progress(0, 0, phase="loading the model")
    for part in parts(run, method, examples, lambda name: not staging.has(path(name))):
        progress(finished, len(examples))
        pairs = encoder.encode(part.examples)
        if method.steered:
            logps = steered_logps(part.model, pairs, float(choice(run, STEERING)), batch_tokens)
        elif part.adapters:
            adapters = [part.adapters[pair.example_id] for pair in pairs]
            logps = personal_logps(part.model, pairs, adapters, batch_tokens)
        else:
            logps = answer_logps(part.model, pairs, batch_tokens)
        columns = {"example_id": [pair.example_id for pair in pairs], "logp": [logp.numpy() for logp in logps]}
        staging.write_table(path(part.name), pa.table(columns, schema=LIKELIHOODS))
        finished += len(pairs)
        progress(finished, len(examples))
    return {"examples": len(examples)}


def choose(run: Run, name: str, staging: Staging) -> dict[str, Any]:
    """Choose the candidate that does best on val; of equals, the first.

    Where the configured metric sees too little of the reference reviews, its form for every script decides; where it is
    0 for all candidates, so does `rouge1_unicode`. What decided, and why, is in the artifact.
    """
    from nextquill_core.evaluation.metrics import choosing_metric, score_examples
    from nextquill_core.evaluation.unicode_words import count_letters

    asked = run.config.evaluate.choose_by
    examples = split_examples(run, "val")
    references = [example.target.text for example in examples]
    letters = count_letters(references)
    scores = {}
    for candidate, writing in run.plan.evaluation.candidates[name].items():
        texts = by_example(run.artifact(writing.step).folder / PREDICTED, "text")
        scores[candidate] = score_examples([texts[example.example_id] for example in examples], references)
    by, why = choosing_metric(asked, letters), ""
    if by != asked:
        why = f"{asked} ignores {letters.ignored_share:.1%} of the letters and digits of the val reviews"
    if not any(found.value(by) for found in scores.values()):
        by, why = FALLBACK, f"{by} is 0 for every candidate"
    values = {candidate: found.value(by) for candidate, found in scores.items()}
    if len(values) > 1 and len(set(values.values())) == 1:
        why = f"{why}; " * bool(why) + "all candidates are equal, and the first is taken"
    found = {
        "chosen": max(values, key=lambda candidate: values[candidate]),
        "by": by,
        "asked": asked,
        "why": why,
        "values": values,
    }
    write_json(staging.path(CHOICE), found)
    return found | {"examples": len(examples)}


def chosen(run: Run, name: str) -> dict[str, Any]:
    """What `choose` left: the candidate, by which metric, and every candidate's value."""
    path = run.artifact(run.plan.evaluation.choices[name]).folder / CHOICE
    found: dict[str, Any] = read_checked(path, Choice, AGAIN)
    if found["chosen"] not in run.plan.evaluation.candidates[name]:
        raise UserError(f"{found['chosen']!r} is none of its candidates", str(path), AGAIN)
    return found


def choice(run: Run, name: str) -> str:
    """What was chosen on val: how `sane` decodes, or how strongly `cos` steers."""
    return str(chosen(run, name)["chosen"])


def _strength(run: Run, method: Method, writing: Writing) -> float | None:
    if not method.steered:
        return None
    return writing.strength if writing.strength is not None else float(choice(run, STEERING))


def _answered(run: Run, method: Method, examples: Any, missing: Any) -> Iterator[Part]:
    """As `parts`, without a model of this process where a server answers."""
    if run.config.evaluate.engine == "transformers" or method.personal:
        yield from parts(run, method, examples, missing)
        return
    from nextquill_core.causal.shard_queue import in_shards

    for name, part in in_shards(examples):
        if missing(name):
            yield Part(name, part, None)


def _engine(
    run: Run,
    method: Method,
    part: Part,
    encoder: PairEncoder,
    decoding: Decoding,
    limit: int,
    strength: float | None,
) -> Engine:
    if run.config.evaluate.engine == "openai":
        return server_engine(run, method, encoder, decoding, limit)
    return make_engine(run, method, part.model, encoder, decoding, limit, strength)


def _rows(staging: Staging, name: str) -> int:
    rows: int = pq.read_metadata(staging.path(name)).num_rows
    return rows


def _total(staging: Staging, names: list[str]) -> Usage:
    """What all shards have cost, those of runs that were killed included; memory at its highest."""
    paths = [staging.scratch / f"usage-{name}.json" for name in names]
    usages = [asdict(read_checked(path, Usage, AGAIN)) for path in paths if path.is_file()]
    summed = {field.name: sum(usage[field.name] for usage in usages) for field in fields(Usage)}
    return Usage(**summed | {"peak_bytes": max((usage["peak_bytes"] for usage in usages), default=0)})
