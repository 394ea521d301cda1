"""The stored effects of history on the true reviews of some examples, and the exact ones of a synthetic world."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from nextquill_core.analysis.exact_effects import word_effects
from nextquill_core.causal.summary import ScoredAnswer
from nextquill_core.model.loading import load_tokenizer
from nextquill_core.pipeline.run import Run
from nextquill_core.schemas import EFFECTS, Example
from nextquill_core.synthetic.truth import TrueWord, Truth, exact_effects, truth_file
from nextquill_core.tokens import token_texts
from storage.tables import read_table

Effects = Mapping[str, ScoredAnswer]
"""The stored values of the tokens of true reviews, by example."""


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


def truths_of(run: Run) -> dict[str, Truth]:
    """Return the ground truth of each category of a synthetic world.

    Raises:
        DataError: There is none, or it cannot be read.
    """
    return {raw.category: Truth(truth_file(raw.category, raw.reviews)) for raw in run.plan.files}


def true_words(truths: Mapping[str, Truth], example: Example) -> tuple[TrueWord, ...]:
    """Return the words that taste drew for the true review of an example.

    Args:
        truths: As `truths_of` returns them.
        example: The example.

    Raises:
        DataError: The ground truth is not that of this review.
    """
    return truths[example.category].words(example.target.text, example.target.timestamp_ms)


def exact_token_effects(
    run: Run, examples: Sequence[Example], effects: Effects, truths: Mapping[str, Truth]
) -> list[list[float]]:
    """Return the exact effect of each token of the true reviews.

    Args:
        run: The run; the base model's tokenizer is in its store.
        examples: The examples.
        effects: As `read_effects` returns them.
        truths: As `truths_of` returns them.

    Raises:
        DataError: The ground truth is not that of these reviews.
    """
    tokenizer = load_tokenizer(run.model)
    return [
        exact_effects(
            true_words(truths, example),
            example.target.text,
            token_texts(tokenizer, effects[example.example_id].target_ids),
        )
        for example in examples
    ]


def exact_word_effects(
    run: Run, examples: Sequence[Example], effects: Effects, truths: Mapping[str, Truth]
) -> list[tuple[float, float]]:
    """Return the estimated and the exact effect of each word that taste drew.

    Args:
        run: As for `exact_token_effects`, as are the others.
        examples: The examples.
        effects: The stored effects.
        truths: The ground truth.

    Raises:
        DataError: The ground truth is not that of these reviews.
    """
    tokenizer = load_tokenizer(run.model)
    found: list[tuple[float, float]] = []
    for example in examples:
        answer = effects[example.example_id]
        tokens = token_texts(tokenizer, answer.target_ids)
        found += word_effects(true_words(truths, example), tokens, answer.logp_factual, answer.logp_counterfactual)
    return found
