"""What a synthetic world's exact effects say about a run: about estimated effects, gains and generated texts.

Measures of a method, fixed before any of them was run on the world `mixed`:

- **Calibration.** The effect of the history on each word that taste drew, under the method's model (probability with
  the own history minus probability without), beside the exact effect: correlation r, AUC for an exact effect above δ,
  and the slope of the exact on the estimated effects, which is 1 if they have the right size.
- **Personal gain**, which is measured on all data.
- **Words in the person's own style** in generated texts. The users' own share is the aim. More of them is no better:
  such a writer repeats what is likeliest.

`READER` is the most that a model can reach from the same reviews.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nextquill_core.analysis import report_figures
from nextquill_core.analysis.exact_effects import (
    CHANCE,
    agreement,
    calibration,
    own_style_share,
    slope,
    word_effects,
)
from nextquill_core.analysis.report import Picture, draw
from nextquill_core.analysis.result_tables import preset_order
from nextquill_core.errors import DataError
from nextquill_core.evaluation.tables import Row
from nextquill_core.methods.registry import METHODS
from nextquill_core.model.loading import load_tokenizer
from nextquill_core.pipeline.run import Run
from nextquill_core.pipeline.truths import Pairs, exact_word_effects, truths_of, words_of
from nextquill_core.schemas import Example, Review, column_by_example
from nextquill_core.synthetic.reader import ReadReview, read_words
from nextquill_core.synthetic.truth import Truth
from nextquill_core.synthetic.world import WORLDS
from nextquill_core.tokens import token_texts

if TYPE_CHECKING:
    from nextquill_core.pipeline.report.page import Measured

READER = "a perfect reader"
"""The row of the reader who knows the rules of the world and sees the reviews that the methods see."""
USERS = "the users"
"""The row of the true reviews."""
OWN, STRANGERS = "with what the method shows", "with a stranger's"
"""The histories of generated texts in the figure of styles."""


@dataclass(frozen=True)
class AgainstTruth:
    """What the exact effects say about the estimated ones and about the generated texts.

    Attributes:
        pictures: Figures by file name.
        facts: Numbers of the effects that weight the training, label and value.
        rows: For each method, for `READER` and for `USERS`: `method`; `pearson`, `auc` and `slope` of its effects (see
            `exact_effects`); `own_style` and `stranger_style`, the shares of taste words in the person's main style in
            texts with the own and with a stranger's history. None for what does not exist.
    """

    pictures: Mapping[str, Picture]
    facts: Sequence[tuple[str, str]]
    rows: Sequence[Row]


def against_truth(run: Run, measured: Measured) -> AgainstTruth | None:
    """Compare with the exact effects of a synthetic world, and draw it; None for data without exact effects.

    Args:
        run: The run; everything but the evaluation is in its store.
        measured: What was measured.
    """
    examples, delta = measured.examples, run.config.weights.delta
    try:
        truths = truths_of(run)
        by_word = exact_word_effects(run, examples, measured.effects, truths)
        by_method = dict(_method_pairs(run, measured, truths))
        styles = [next((word.style for word in words_of(truths, one)), "") for one in examples]
    except DataError:
        return None
    if not by_word:
        return None
    found, bins = agreement(by_word, delta), calibration(by_word)
    facts = [
        ("words that taste drew", f"{found['words']:,}"),
        ("correlation r of estimated and exact effects", f"{found['pearson']:.2f}"),
        (f"AUC for an exact effect above {delta:g}", f"{found['auc']:.2f}"),
    ]
    pictures = {
        "exact-effects": draw(
            "exact-effects", report_figures.calibration_plot(bins), "Estimated against exact effects",
            "Mean exact effect by mean estimated effect of groups of words, beside the line on which both are equal",
            "Words in ten groups of equal number by their estimated effect, under the model that weights the training. "
            "Points below the line: the estimate is too high.",
            [{"estimated": one, "exact": other, "words": count} for one, other, count in bins],
        )
    }  # fmt: skip
    shares = list(_style_shares(run, measured, styles))
    if picture := _style_picture(shares):
        pictures["own-style"] = picture
    return AgainstTruth(pictures, facts, list(_rows(run, by_method, shares, delta)))


def _rows(run: Run, by_method: Mapping[str, Pairs], shares: Sequence[Row], delta: float) -> Iterator[Row]:
    """Yield the rows of `AgainstTruth`."""
    styles = {(row["method"], row["history"]): row["value"] for row in shares}
    for method in (*run.config.evaluate.methods, READER, USERS):
        pairs = by_method.get(method)
        fit = agreement(pairs, delta) if pairs else {}
        yield {
            "method": method,
            "pearson": fit.get("pearson"),
            "auc": fit.get("auc"),
            "slope": slope(pairs) if pairs else None,
            "own_style": styles.get((method, OWN)),
            "stranger_style": styles.get((method, STRANGERS)),
        }


def _method_pairs(run: Run, measured: Measured, truths: Mapping[str, Truth]) -> Iterator[tuple[str, Pairs]]:
    """Yield the estimated and exact effects under each method that shows a history, and those of the perfect reader."""
    plan = run.plan.evaluation
    for method, step in plan.likelihoods.items():
        if bare := plan.bare_likelihoods.get(method):
            own, without = (column_by_example(run.artifact(one).folder / "likelihoods", "logp") for one in (step, bare))
            yield method, list(_word_pairs(run, measured, truths, own, without))
    if any(METHODS[method].controlled for method in plan.likelihoods):
        yield READER, list(_reader_pairs(run, measured.examples, truths))


def _word_pairs(
    run: Run,
    measured: Measured,
    truths: Mapping[str, Truth],
    own: Mapping[str, Sequence[float]],
    without: Mapping[str, Sequence[float]],
) -> Iterator[tuple[float, float]]:
    """Yield the estimated and the exact effect of each word, from log-probabilities of the tokens by example."""
    tokenizer = load_tokenizer(run.model)
    for example in measured.examples:
        name = example.example_id
        tokens = token_texts(tokenizer, measured.effects[name].target_ids)
        yield from word_effects(words_of(truths, example), tokens, own[name], without[name])


def _reader_pairs(run: Run, examples: Sequence[Example], truths: Mapping[str, Truth]) -> Iterator[tuple[float, float]]:
    """Yield the effect that the perfect reader expects and the exact one of each word."""
    worlds = {category: WORLDS[truth.world] for category, truth in truths.items()}
    for example in examples:
        truth = truths[example.category]
        shown = [_read(truth, past) for past in example.history[-run.config.prompt.max_history :]]
        target = _read(truth, example.target)
        expected = read_words(worlds[example.category], shown, target)
        yield from ((one.effect, word.effect) for one, word in zip(expected, target.words, strict=True))


def _read(truth: Truth, review: Review) -> ReadReview:
    return ReadReview(truth.words(review.text, review.timestamp_ms), round(review.rating or 0))


def _style_shares(run: Run, measured: Measured, styles: Sequence[str]) -> Iterator[Row]:
    """Yield the share of taste words in the person's main style in the texts of each method, then of the users.

    Args:
        run: The run.
        measured: What was measured.
        styles: The main style of each example's user.
    """
    resampling: dict[str, Any] = {"samples": run.config.evaluate.bootstrap_samples, "seed": run.config.seed}
    presets = preset_order(run.config.evaluate.decoding)
    for history, sets in ((OWN, measured.texts), (STRANGERS, measured.control_texts)):
        for (method, decoding), by_example in sets.items():
            texts = [by_example[one.example_id] for one in measured.examples]
            if decoding in presets[:1] and (found := own_style_share(texts, styles, measured.users, **resampling)):
                yield {"method": method, "history": history, "decoding": decoding, **found}
    if found := own_style_share([one.target.text for one in measured.examples], styles, measured.users, **resampling):
        yield {"method": USERS, "history": OWN, "decoding": "", **found}


def _style_picture(shares: Sequence[Row]) -> Picture | None:
    """Draw the shares; None where no generated text has a taste word."""
    rows = [row for row in shares if row["method"] != USERS]
    users = [row for row in shares if row["method"] == USERS]
    if not rows or not users:
        return None
    return draw(
        "own-style", report_figures.share_plot(rows, users[0]["value"], CHANCE), "Words in the person's own style",
        "Share of the taste words in generated texts that are of the person's own style, for each method",
        f"Of the words of taste in generated texts ({rows[0]['decoding']} decoding), the share in the style of the "
        f"person. The line is what the users themselves have, and more than it is too uniform; a writer who does not "
        f"know the person has {CHANCE:.0%}. Lines are 95 % intervals over users.",
        [*rows, {**users[0], "history": ""}],
    )  # fmt: skip
