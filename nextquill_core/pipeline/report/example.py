"""One example explained, from the artifacts of a run: past reviews, effects of its tokens, and the methods' texts."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from nextquill_core.analysis.example_view import ExplainedExample, TargetToken, boilerplate
from nextquill_core.analysis.result_tables import preset_order
from nextquill_core.analysis.token_colours import Unit, units_of
from nextquill_core.causal.summary import ScoredAnswer
from nextquill_core.ingest.reader import read_examples
from nextquill_core.model.loading import load_tokenizer
from nextquill_core.pipeline.run import Run
from nextquill_core.pipeline.score import Effects, read_effects
from nextquill_core.pipeline.step import Step
from nextquill_core.schemas import Example, column_by_example
from nextquill_core.tokens import token_texts
from storage import UserError
from storage.tables import read_batches, read_table

NEAR = 3
USERS = 1024  # users of a batch


def find_examples(run: Run, user: str, item: str | None = None) -> list[Example]:
    """Return the examples of a user: those of the measured split, or those of one item in any split.

    Args:
        run: The run; sequences are in its store.
        user: Id of the user, as in the store or, with pseudonyms, as in the raw data.
        item: Id or title of an item, or the id of an example.

    Raises:
        UserError: There is no such user or item; the message has near names.
    """
    found = list(read_examples(run.artifact(run.plan.ingest).folder))
    users = dict.fromkeys(example.user_id for example in found)
    user = next((known for known in run.privacy.stored_ids(user) if known in users), user)
    if user not in users:
        raise UserError(f"no user {user!r} in this run", "--user", _near(user, users))
    mine = [example for example in found if example.user_id == user]
    if item is None:
        measured = [example for example in mine if example.split == run.config.evaluate.split]
        return measured or mine[-1:]
    ids = item_ids(run)
    named = [one for one in mine if item in (ids[one.example_id], one.target.item.title, one.example_id)]
    if not named:
        names = [name for one in mine for name in (ids[one.example_id], one.target.item.title) if name]
        raise UserError(f"the user {user!r} has no example of the item {item!r}", "--item", _near(item, names))
    return named


def gather(run: Run, examples: Sequence[Example], effects: Effects | None = None) -> Iterator[ExplainedExample]:
    """Yield what the artifacts of a run say about examples.

    Args:
        run: The run; the stage score is in its store and, for examples of the measured split, the predictions.
        examples: The examples.
        effects: Their stored effects, where the caller has read them.

    Raises:
        UserError: An artifact is missing; the message names the command that makes it.
    """
    score = run.artifact(run.plan.score).folder
    effects = read_effects(score, examples) if effects is None else effects
    split = run.config.evaluate.split
    measured = any(example.split == split for example in examples)
    decoding = next(iter(preset_order(run.config.evaluate.decoding)), "") if measured else ""
    texts = _texts(run, decoding) if decoding else {}
    logps = {method: _logps(run, step) for method, step in run.plan.evaluation.likelihoods.items()} if measured else {}
    gains = _gains(run, logps) if measured else {}
    weights = column_by_example(score / "weights", "weight")
    ids = item_ids(run)
    common = boilerplate([one.target.text for one in read_examples(run.artifact(run.plan.ingest).folder, [split])])
    tokenizer, delta, shown = load_tokenizer(run.model), run.config.weights.delta, run.config.prompt.max_history
    for example in examples:
        key, answer = example.example_id, effects[example.example_id]
        pieces = token_texts(tokenizer, answer.target_ids)
        mean_gain = sum(answer.logp_factual) - sum(answer.logp_counterfactual)
        yield ExplainedExample(
            example=example,
            item_id=ids[key],
            history=tuple(reversed(example.history[-shown:])),
            units=tuple(units_of(answer, delta, pieces, weights[key])),
            tokens=tuple(_tokens(answer, delta, pieces, weights[key])),
            texts={method: found[key] for method, found in texts.items() if key in found},
            log_likelihoods={m: sum(found[key]) / len(found[key]) for m, found in logps.items() if key in found},
            gain=gains.get(key, mean_gain / max(1, len(answer.effect))),
            boilerplate=common,
            decoding=decoding,
        )


def scored_units(run: Run, answer: ScoredAnswer) -> tuple[Unit, ...]:
    """Return a true review as it is coloured by effect; the base model is in the run's store."""
    pieces = token_texts(load_tokenizer(run.model), answer.target_ids)
    return tuple(units_of(answer, run.config.weights.delta, pieces))


def item_ids(run: Run) -> dict[str, str]:
    """Return the item that each example's true review is about, by example."""
    folder = run.artifact(run.plan.ingest).folder
    found: dict[str, str] = {}
    for path in sorted((folder / "sequences").glob("*.parquet")):
        batches = read_batches(path, USERS, ["user_id", "category", "reviews.list.element.item_id"])  # and no texts
        rows = [row for batch in batches for row in batch.to_pylist()]
        reviews = {(row["category"], row["user_id"]): row["reviews"] for row in rows}
        columns = ["example_id", "user_id", "category", "target"]
        for row in read_table(folder / "examples" / path.name, columns=columns).to_pylist():
            found[row["example_id"]] = reviews[row["category"], row["user_id"]][row["target"]]["item_id"]
    return found


def _tokens(
    answer: ScoredAnswer, delta: float, texts: Sequence[str], weights: Sequence[float]
) -> Iterator[TargetToken]:
    threshold = float(np.float32(delta))  # as the weights compare it
    columns = texts, answer.logp_factual, answer.logp_counterfactual, answer.effect, weights
    for text, factual, counterfactual, effect, weight in zip(*columns, strict=True):
        yield TargetToken(text, math.exp(factual), math.exp(counterfactual), effect, weight, effect > threshold)


def _texts(run: Run, decoding: str) -> dict[str, dict[str, str]]:
    """Return the generated texts under a decoding preset, by method and then by example."""
    return {
        method: column_by_example(run.artifact(one.step).folder / "predictions", "text")
        for (method, preset), one in run.plan.evaluation.predictions.items()
        if preset == decoding
    }


def _logps(run: Run, step: Step | None) -> Mapping[str, Sequence[float]]:
    """Return the log-probabilities of a likelihood step by example; empty if it was not made."""
    found = run.store.find(step.kind, step.fingerprint) if step else None
    return column_by_example(found.folder / "likelihoods", "logp") if found else {}


def _gains(run: Run, logps: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, float]:
    """Return the gain of the trained method by example: over another user's history, or else over none, in nats."""
    plan, method = run.plan.evaluation, run.config.train.method
    other = _logps(run, plan.control_likelihoods.get(method) or plan.bare_likelihoods.get(method))
    own = logps.get(method, {})
    return {key: (sum(own[key]) - sum(other[key])) / len(own[key]) for key in own if key in other}


def _near(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, list(known), NEAR, cutoff=0.0)
    return f"use one of this run, for instance {', '.join(map(repr, near))}"
