"""The table of metrics, the scores of predictions against the reviews that users wrote, and how they are made.

ROUGE-1 and ROUGE-L are the F-measures of `rouge-score` without stemming (the defaults of Hugging Face evaluate). They
count a to z and 0 to 9 only, so a second pair counts the words of every script (`text_metrics`). METEOR is NLTK's and
BLEU sacreBLEU's, both with their defaults. ROUGE and METEOR run from 0 to 1 and are averaged over examples; BLEU runs
from 0 to 100 and is one number for all examples together. METEOR and the length ratio use the words of NLTK's
tokenizer; in scripts without spaces between words each character is a word.

Some metrics exist only where their inputs were measured: BERTScore and the author metric (an encoder each, see
`bertscore` and `author`), the judge metric (a model behind a server, see `judge`), and the log-likelihood of the review
that the user wrote, of all its tokens and of its preference tokens alone (nats per token, a micro average, so long
reviews count more). The log-likelihoods measure what a method expects and not what it generates, so they are the same
under every decoding preset.

The gains are differences of two log-likelihoods of the same tokens y under one method, with own history h, a stranger's
history h' and no history ∅:

    personal gain = 1/N Σ_examples Σ_t [ log p(y_t | x, h, y_<t) − log p(y_t | x, h', y_<t) ]
    history gain  = 1/N Σ_examples Σ_t [ log p(y_t | x, h, y_<t) − log p(y_t | x, ∅, y_<t) ]

N counts the tokens of all examples, or the preference tokens. A set of preference tokens other than the stored effects'
has its name at the end of the metric's key.

The length-controlled metrics are ROUGE-1, ROUGE-L and METEOR of an answer that is cut to as many words as the true
review has. A longer answer otherwise gains or loses by its length alone.

A new metric is a function in one file and a row of `METRICS`, or an entry point of the group `nextquill.metrics` in
another package; see docs/how-to/extend.md.
"""

from __future__ import annotations

import functools
import importlib.metadata
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nextquill_core.errors import ModelError, UserError
from nextquill_core.evaluation.significance import Floats, Statistic, difference_of_ratios, ratio_of_sums
from nextquill_core.evaluation.text_metrics import (
    BLEU_STATISTICS,
    METEOR_PARAMETERS,
    STANDARD,
    UNICODE,
    Letters,
    bleu_of_sums,
    bleu_signature,
    bleu_statistics,
    load_wordnet,
    meteor,
    rouge,
    rouge_of_tokens,
    sacrebleu_score,
    tokenizer_name,
    words,
)
from nextquill_core.plugins import Plugins
from nextquill_core.progress import Progress, silent

T = TypeVar("T")

BLEU, LENGTH_RATIO, BERTSCORE, AUTHOR, JUDGE = "bleu", "length_ratio", "bertscore", "author", "judge"
LIKELIHOOD = "log_likelihood"
PERSONAL_GAIN, HISTORY_GAIN = "personal_gain", "history_gain"
MAIN, GAIN, LENGTH = "main", "gain", "length"
"""Tables of metrics: texts and log-likelihoods, gains by history, and metrics of texts that are cut to one length."""
STORED, CROSSFIT, EXACT = "initial", "crossfit", "exact"
PREFERENCE_SETS: Mapping[str, str] = {STORED: "", CROSSFIT: " (cross-fitted)", EXACT: " (exact)"}
"""Sets of preference tokens, the values of `evaluate.preference_tokens`, with what names of metrics add for each."""
CUT_FORMS: Mapping[str, str] = {"rouge1": "rouge1_cut", "rougeL": "rougeL_cut", "meteor": "meteor_cut"}
"""The metric of the answer cut to the length of the true review, by the metric of the whole answer."""
UNICODE_FORMS: Mapping[str, str] = {"rouge1": "rouge1_unicode", "rougeL": "rougeL_unicode"}
"""The metric that counts the words of every script, by the standard one."""
SHOWN_ABOVE = 0.005
"""Share of the references' letters that the standard ROUGE ignores, above which tables show the Unicode forms."""
CHOSEN_BY_ABOVE = 0.05
"""The same share, above which choices on val use the Unicode forms."""
METEOR_VARIANT = (
    "NLTK's, with the parameters of Banerjee and Lavie 2005; on real reviews the same matches give about 0.06 less "
    "with those of METEOR 1.5 (0.85, 0.2, 0.6) and about 0.06 more with those of Lavie and Agarwal 2007 (0.81, 0.83, "
    "0.28), so compare with NLTK's values only"
)
PREFERENCE_NOTE = (
    "measured on tokens that the effects of history under {effects} chose; training with preference weights raises the "
    "weight of such tokens, so this favours methods that train with them (nextquill, norm-only) and is no independent "
    "evidence"
)
INDEPENDENT_NOTE = (
    "measured on tokens that the effects of history under {effects} chose, which weighted no training here; each token "
    "was chosen because history made it more likely, which raises the gains of all methods, so compare methods with "
    "each other and not with 0"
)
AUTHOR_NOTE = (
    "share of pairs in which the text is nearer to another review of its user than to another user's review of the "
    "same item; read it beside the value of the true reviews, its ceiling"
)
JUDGE_NOTE = "share of the points that a language model gives on a rubric of what matters to the user"
CUT_NOTE = "of the answer's first words, as many as the true review has"
EXACT_NOTE = "measured on tokens of words that the synthetic world drew by the user's taste; no model chose them"


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of the table.

    Attributes:
        key: Value in the column `metric`.
        name: Name that tables show.
        decimals: Number of digits after the point that tables show.
        higher_is_better: None where neither direction is better.
        statistic: From sums over examples, shape (…, K), to the value, shape (…).
        judges_text: Whether it judges the generated text; otherwise no decoding preset changes it.
        table: `main`, `gain` or `length`: the table that shows it, whose comparisons are corrected together.
        note: What a reader must know, in a few words; "" where the name says it.
        score: (predictions, references) to one value per example, shape (n,), of which the metric is the mean, or to
            what `statistic` sums, shape (n, K). None for metrics that `score_examples` computes or the caller adds.
    """

    key: str
    name: str
    decimals: int
    higher_is_better: bool | None
    statistic: Statistic = ratio_of_sums
    judges_text: bool = True
    table: str = MAIN
    note: str = ""
    score: Callable[[Sequence[str], Sequence[str]], ArrayLike] | None = None

    @property
    def direction(self) -> str:
        """Which direction is better, in words."""
        words = {True: "higher is better", False: "lower is better", None: "neither direction is better"}
        return words[self.higher_is_better]

    @property
    def summary(self) -> str:
        """Name, direction and note in one line."""
        return f"{self.name}, {self.direction}" + (f"; {self.note}" if self.note else "")

    def text(self, value: float) -> str:
        """Return a value as tables show it, with a real minus."""
        return f"{value:.{self.decimals}f}".replace("-", "\N{MINUS SIGN}")


def _wrong(key: str, found: Any) -> str:
    """Return what is wrong with a metric of another package, or ""."""
    if not isinstance(found, Metric):
        return "is not a Metric"
    if found.key != key:
        return f"is registered under this name but has the key `{found.key}`"
    return "" if found.score else "has no `score`"


def preference_key(key: str, tokens: str) -> str:
    """Return the key of a log-likelihood or gain on preference tokens alone.

    Args:
        key: The metric on all tokens.
        tokens: A key of `PREFERENCE_SETS`.
    """
    return f"preference_{key}" + ("" if tokens == STORED else f"_{tokens}")


_SET_NOTES = {
    STORED: "on tokens that stored effects chose and training weighted: no independent evidence",
    CROSSFIT: "on tokens chosen by adapters that were trained without the user",
    EXACT: "on words that the synthetic world drew by the user's taste",
}


def _gain(key: str, name: str, other: str) -> Metric:
    note = f"own history minus {other}, nats per token of the true review"
    return Metric(key, name, 4, True, difference_of_ratios, judges_text=False, table=GAIN, note=note)


def _of_tokens(*metrics: Metric) -> Iterator[Metric]:
    """Yield metrics of all tokens of the true reviews, then the same on each set of preference tokens."""
    yield from metrics
    for tokens, ending in PREFERENCE_SETS.items():
        for metric in metrics:
            name = f"Preference {metric.name.lower()}{ending}"
            note = f"{metric.note}, {_SET_NOTES[tokens]}" if metric.note else _SET_NOTES[tokens]
            yield replace(metric, key=preference_key(metric.key, tokens), name=name, note=note)


METRICS = Plugins[Metric](
    "metric",
    "nextquill.metrics",
    "evaluate.metrics",
    {
        metric.key: metric
        for metric in (
            Metric("rouge1", "ROUGE-1", 4, True, note="rouge-score: a to z and 0 to 9 only"),
            Metric("rougeL", "ROUGE-L", 4, True, note="rouge-score: a to z and 0 to 9 only"),
            Metric("rouge1_unicode", "ROUGE-1 (Unicode)", 4, True, note="words of every script"),
            Metric("rougeL_unicode", "ROUGE-L (Unicode)", 4, True, note="words of every script"),
            Metric("meteor", "METEOR", 4, True, note="NLTK's implementation; others give other values"),
            Metric(BLEU, "BLEU", 2, True, bleu_of_sums, note="sacreBLEU's corpus score"),
            Metric(BERTSCORE, "BERTScore", 4, True),
            Metric(AUTHOR, "Author", 4, True, note=AUTHOR_NOTE),
            Metric(JUDGE, "Judge", 4, True, note=JUDGE_NOTE),
            *_of_tokens(Metric(LIKELIHOOD, "Log-likelihood", 4, True, judges_text=False)),
            *_of_tokens(
                _gain(PERSONAL_GAIN, "Personal gain", "a stranger's"), _gain(HISTORY_GAIN, "History gain", "none")
            ),
            *(
                Metric(key, f"{name} (cut)", 4, True, table=LENGTH, note=CUT_NOTE)
                for key, name in zip(CUT_FORMS.values(), ("ROUGE-1", "ROUGE-L", "METEOR"), strict=True)
            ),
            Metric(LENGTH_RATIO, "Length ratio", 2, None),
        )
    },
    check=_wrong,
)


def known_metrics(keys: Iterable[str]) -> tuple[Metric, ...]:
    """Return the metrics with these keys in the order of the keys; those of packages that are gone are left out."""
    return tuple(METRICS[key] for key in dict.fromkeys(keys) if key in METRICS)


def on_same_tokens(key: str, counts: ArrayLike, other: ArrayLike) -> bool:
    """Return whether two measurements of a metric can be compared: on the same tokens, or of generated texts.

    Args:
        key: The metric.
        counts: Statistics of the first measurement, one row per example or user, shape (…, K).
        other: Statistics of the second one, of the same examples or users.
    """
    if METRICS[key].judges_text:
        return True
    return np.array_equal(np.asarray(counts)[..., -1], np.asarray(other)[..., -1])


_MEANS: Mapping[Statistic, int] = {ratio_of_sums: 2, difference_of_ratios: 3}
"""Statistics that divide by the last sum, which is 0 where there is nothing to measure, and their number of sums."""


@dataclass(frozen=True, slots=True)
class ExampleScores:
    """The scores of n predictions, or of n true reviews where no texts were generated.

    Attributes:
        statistics: By metric, one row per example, shape (n, K); the metric is its `statistic` of the sum of the rows.
            For a mean a row is (value, 1).
        hidden: Metrics that tables leave out: the Unicode forms of ROUGE, which equal the standard ones on ASCII text
            (`with_unicode` shows them), and what `without` and `only` leave out. Every further comparison makes the
            correction for multiple tests harsher.
    """

    statistics: Mapping[str, Floats]
    hidden: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return len(next(iter(self.statistics.values()), ()))

    @property
    def keys(self) -> tuple[str, ...]:
        """The metrics that tables show; one that has nothing to measure in any example is not among them."""
        return tuple(key for key in METRICS if key in self.statistics and key not in self.hidden and self._counts(key))

    def _counts(self, key: str) -> bool:
        return METRICS[key].statistic not in _MEANS or bool(self.statistics[key][:, -1].any())

    def plus(self, further: Mapping[str, ArrayLike]) -> ExampleScores:
        """Return these scores and further ones of the same examples.

        Args:
            further: By metric, one value per example, shape (n,), or statistics of shape (n, K), such as those of
                `likelihood_sums`.

        Raises:
            ValueError: A metric is unknown, or the values are not of n examples.
        """
        found = dict(self.statistics)
        for key, values in further.items():
            rows = np.asarray(values, dtype=np.float64)
            expected = len(next(iter(found.values()), rows))
            if key not in METRICS or rows.shape[:1] != (expected,) or rows.ndim > 2:
                raise ValueError(f"{key}: values of shape {rows.shape}; a known metric of {expected} examples expected")
            found[key] = rows if rows.ndim == 2 else np.stack([rows, np.ones(len(rows))], axis=1)
        return replace(self, statistics=found)

    def with_unicode(self) -> ExampleScores:
        """Return these scores with the Unicode forms of ROUGE shown in tables."""
        return replace(self, hidden=self.hidden.difference(UNICODE_FORMS.values()))

    def without(self, *tables: str) -> ExampleScores:
        """Return these scores with the metrics of some tables hidden."""
        return self.only(key for key in self.statistics if METRICS[key].table not in tables)

    def only(self, keys: Iterable[str]) -> ExampleScores:
        """Return these scores with all metrics hidden but these, and those that are hidden already."""
        return replace(self, hidden=self.hidden | (self.statistics.keys() - set(keys)))

    def take(self, rows: NDArray[np.intp]) -> ExampleScores:
        """Return the scores of some examples."""
        return replace(self, statistics={key: values[rows] for key, values in self.statistics.items()})

    def value(self, key: str) -> float:
        """Return the metric over all examples, the same to the last bit in whatever order they come.

        Raises:
            ValueError: There are no examples, or they have nothing that this metric measures.
        """
        if not len(self):
            raise ValueError("no examples, no score")
        sums = [math.fsum(column) for column in self.statistics[key].T]
        if key == BLEU:
            return sacrebleu_score(sums)
        if METRICS[key].statistic in _MEANS and not sums[-1]:
            raise ValueError(f"nothing to measure {key} on")
        return float(METRICS[key].statistic(np.array(sums)))


def score_examples(
    predictions: Sequence[str],
    references: Sequence[str],
    progress: Progress = silent,
    *,
    added: Sequence[str] = (),
) -> ExampleScores:
    """Score each prediction against its reference.

    An empty prediction scores 0 everywhere. The standard ROUGE counts a to z and 0 to 9 only (as published), so it is 0
    for other scripts; its Unicode forms count all. METEOR of a perfect match of m words is 1 - 0.5 / m³, not 1.

    A pair of reviews of 200 words takes about 6 ms on one core, 4 of them to find the words of the prediction (those
    of a reference are cached for the next method), 0.8 for METEOR, 0.4 for ROUGE, 1.4 for BLEU.

    Args:
        predictions: Generated texts.
        references: The texts that the users wrote, in the same order.
        progress: Receives the number of scored examples.
        added: Metrics of other packages to compute too.

    Raises:
        ValueError: Predictions and references differ in number.
        UserError: There is no WordNet, or an added metric is unknown or gives something else than its contract says.
    """
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions for {len(references)} references")
    meteor_of = meteor()
    total = len(predictions)
    means = {key: np.zeros(total) for key in (*UNICODE_FORMS.values(), *CUT_FORMS, *CUT_FORMS.values())}
    lengths, bleu = np.zeros((total, 2)), np.zeros((total, BLEU_STATISTICS))
    for row, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
        predicted, expected = words(prediction), _reference_words(reference)
        standard, cut = _whole_and_cut(rouge_of_tokens, STANDARD.tokenize(prediction), STANDARD.tokenize(reference))
        matched, cut_matched = _whole_and_cut(lambda one, other: meteor_of(other, one), predicted, expected)
        unicode = standard
        if not (prediction.isascii() and reference.isascii()):
            unicode = rouge(prediction, reference, UNICODE)
        found = {
            **dict(zip(UNICODE_FORMS.values(), unicode, strict=True)),
            **dict(zip(CUT_FORMS, (*standard, matched), strict=True)),
            **dict(zip(CUT_FORMS.values(), (*cut, cut_matched), strict=True)),
        }
        for key, value in found.items():
            means[key][row] = value
        lengths[row] = len(predicted), max(1, len(expected))
        bleu[row] = bleu_statistics(prediction, reference)
        progress(row + 1, total)
    scores = ExampleScores({BLEU: bleu, LENGTH_RATIO: lengths}, frozenset(UNICODE_FORMS.values())).plus(means)
    further = [*(metric.key for metric in METRICS.built_in.values() if metric.score), *added]
    return scores.plus({key: _scored(METRICS[key], predictions, references) for key in further})


def _whole_and_cut(
    score: Callable[[Sequence[str], Sequence[str]], T], predicted: Sequence[str], expected: Sequence[str]
) -> tuple[T, T]:
    """Return the score of an answer, and that of its first words, as many as the true review has.

    Args:
        score: (words of the answer, words of the true review) to a score.
        predicted: Words of the answer.
        expected: Words of the true review.
    """
    whole = score(predicted, expected)
    longer = len(predicted) > len(expected)
    return whole, score(predicted[: len(expected)], expected) if longer else whole


def _scored(metric: Metric, predictions: Sequence[str], references: Sequence[str]) -> Floats:
    """Compute a metric by its own `score` and check what it returns."""
    assert metric.score is not None  # noqa: S101 - METRICS checks it
    returned = metric.score(predictions, references)
    columns = _MEANS.get(metric.statistic)
    try:
        values = np.asarray(returned, dtype=np.float64)
        fits = values.shape[:1] == (len(predictions),) and values.ndim <= 2 and bool(np.isfinite(values).all())
        fits = fits and (values.ndim < 2 or columns in (None, values.shape[1]))
        found = f"values of shape {values.shape}"
    except (TypeError, ValueError):  # texts, or rows of different lengths
        fits, found = False, "values that are no table of numbers"
    if not fits:
        raise UserError(
            f"metric `{metric.key}` returned {found} for {len(predictions)} examples",
            "evaluate.metrics",
            f"fix its package: finite values of shape (n,) or (n, {columns or 'K'}) are expected",
        )
    return values


def likelihood_sums(logps: Sequence[Sequence[float]], chosen: Sequence[Sequence[bool]] | None = None) -> Floats:
    """Return the statistics of the log-likelihood metrics: per example the sum of log p(y_t) and the number of tokens.

    Args:
        logps: Per example, log p of the tokens that the user wrote, nats; lists, arrays or tensors on the CPU.
        chosen: Per example, which tokens count, such as preference tokens (effect above δ); None for all. An example
            without any contributes nothing.

    Returns:
        Shape (n, 2): nats, tokens.

    Raises:
        ValueError: An example's tokens and choices differ in number.
        ModelError: A log-probability is not finite.
    """
    sums = np.zeros((len(logps), 2))
    if chosen is not None and len(chosen) != len(logps):
        raise ValueError(f"choices for {len(chosen)} of {len(logps)} examples")
    for row, tokens in enumerate(logps):
        values = np.asarray(tokens, dtype=np.float64).reshape(-1)
        if chosen is not None:
            wanted = np.asarray(chosen[row], dtype=np.bool_).reshape(-1)
            if len(wanted) != len(values):
                raise ValueError(f"{len(wanted)} choices for {len(values)} tokens of example {row}")
            values = values[wanted]
        if not np.isfinite(values).all():
            raise ModelError(
                "the log-probability of a token is not finite", f"example {row}", "check model.dtype and the adapter"
            )
        sums[row] = math.fsum(values), len(values)
    return sums


def gain_sums(own: Floats, other: Floats) -> Floats:
    """Return the statistics of a gain: per example the sums of log p(y_t) under both histories, and the tokens.

    Args:
        own: `likelihood_sums` with the user's own history, shape (n, 2).
        other: The same with a stranger's history or none, of the same tokens.

    Returns:
        Shape (n, 3): nats with the own history, nats with the other, tokens.

    Raises:
        ValueError: The two do not count the same tokens.
    """
    if own.shape != other.shape or not np.array_equal(own[:, 1], other[:, 1]):
        raise ValueError("a gain compares log-likelihoods of the same tokens")
    return np.stack([own[:, 0], other[:, 0], own[:, 1]], axis=1)


def sentence_bleu(scores: ExampleScores) -> Floats:
    """Return sacreBLEU's sentence score of each example, 0 to 100, shape (n,)."""
    return np.array([sacrebleu_score(row, effective_order=True) for row in scores.statistics[BLEU]], dtype=np.float64)


def choosing_metric(metric: str, letters: Letters) -> str:
    """Return the metric that a choice on val uses: the configured one, or its form for every script.

    Args:
        metric: A key of `METRICS`.
        letters: Of the reference reviews that the choice is made on.
    """
    return UNICODE_FORMS.get(metric, metric) if letters.ignored_share > CHOSEN_BY_ABOVE else metric


_reference_words = functools.lru_cache(maxsize=4096)(words)  # every method is scored against the same references


def metric_settings(
    *,
    delta: float | None = None,
    effects: str = "the initial model",
    preferences: Mapping[str, str] | None = None,
    bertscore: Mapping[str, Any] | None = None,
    author: Mapping[str, Any] | None = None,
    judge: Mapping[str, Any] | None = None,
    letters: Mapping[str, Letters] | None = None,
    added: Sequence[str] = (),
) -> dict[str, Any]:
    """Return how the numbers are made, as JSON values, to print with every table.

    Args:
        delta: δ of the preference tokens, where likelihoods were measured.
        effects: The model whose effects of history weight the training, in words.
        preferences: By set of preference tokens (`PREFERENCE_SETS`), the model whose effects choose it, in words; None
            for the set of the effects that weight the training.
        bertscore: The encoder, where there was one: `bertscore.BertEncoder.settings`.
        author: The encoder of the author metric, where there was one, and its `ceilings.ceiling`.
        judge: The judge and its rubrics, where there was one, and its `ceilings.ceiling`.
        letters: Letters of the reference reviews, by category.
        added: Metrics of other packages.

    Raises:
        WordNetError: There is no WordNet.
    """
    measured = (
        (BERTSCORE, "F1 of greedy matching, mean over examples, no idf, no rescaling", bertscore),
        (AUTHOR, AUTHOR_NOTE, author),
        (JUDGE, JUDGE_NOTE, judge),
    )
    optional: dict[str, Any] = {key: {"value": value, **how} for key, value, how in measured if how is not None}
    if delta is not None:
        optional[LIKELIHOOD] = {"value": "nats a token of the true review, its stop token among them"}
        other = {PERSONAL_GAIN: "a stranger's history", HISTORY_GAIN: "no history"}
        for key, shown in other.items():
            optional[key] = {"value": f"{LIKELIHOOD} with the user's own history minus {LIKELIHOOD} with {shown}"}
        for tokens, model in (preferences or {STORED: effects}).items():
            optional[preference_key(LIKELIHOOD, tokens)] = _preference_settings(tokens, model, delta, effects)
    ignored, unspaced = (
        {category: round(getattr(found, share), 6) for category, found in (letters or {}).items()}
        for share in ("ignored_share", "unspaced_share")
    )
    return {
        "rouge": {
            "package": _version("rouge-score"),
            "value": "F-measure, mean over examples, 0 to 1",
            "use_stemmer": False,
            "tokens": "[a-z0-9]+ of the lower-cased text",
            **({"ignored_letters": ignored} if letters else {}),
        },
        "rouge_unicode": {
            "value": "as rouge, with tokens of every script; in metrics.json where rouge ignores more than "
            f"{SHOWN_ABOVE:.1%} of the letters and digits, in examples.parquet always",
            "tokens": "runs of letters, digits and marks after NFKC and case folding; one character in scripts "
            "without spaces between words",
            **({"unspaced_letters": unspaced} if letters else {}),
        },
        "meteor": {
            "package": _version("nltk"),
            "value": "mean over examples, 0 to 1",
            "implementation": METEOR_VARIANT,
            **METEOR_PARAMETERS,
            "wordnet": load_wordnet().get_version(),
            "tokenizer": tokenizer_name(),
        },
        "bleu": {
            "package": _version("sacrebleu"),
            "value": "corpus score, 0 to 100",
            "signature": bleu_signature(),
        },
        "length_ratio": {
            "value": "words of all predictions over words of all references",
            "tokenizer": tokenizer_name(),
            "scripts without spaces": "one word a character, for METEOR too",
        },
        **optional,
        **{key: _added(key) for key in added},
    }


def _preference_settings(tokens: str, model: str, delta: float, weighting: str) -> dict[str, str]:
    """Return which tokens of a set are preferred, and what a reader must know of them.

    Args:
        tokens: The set, a key of `PREFERENCE_SETS`.
        model: The model whose effects choose it, in words.
        delta: δ.
        weighting: The model whose effects weight the training, in words.
    """
    if tokens == EXACT:
        chosen, caution = f"tokens of drawn words with an exact effect of the user's taste above {delta:g}", EXACT_NOTE
    else:
        chosen = f"effect of the newest reviews under {model} above {delta:g}"
        caution = (PREFERENCE_NOTE if model == weighting else INDEPENDENT_NOTE).format(effects=model)
    return {
        "value": "nats a token over preference tokens of the true review; for the gains on them too",
        "preference tokens": chosen,
        "caution": caution,
    }


def _added(key: str) -> dict[str, str]:
    """Return what is known of another package's metric: direction, note and package."""
    metric, point = METRICS[key], METRICS.added()[key]
    package = f"{point.dist.name} {point.dist.version}" if point.dist else point.value
    return {"package": package, "value": metric.name, "direction": metric.direction, "note": metric.note}


def _version(package: str) -> str:
    return f"{package} {importlib.metadata.version(package)}"


def letters_note(ignored: Mapping[str, float], unspaced: Mapping[str, float]) -> str:
    """Return a warning that the standard ROUGE ignores much of the reference reviews, or "".

    Args:
        ignored: Share of the letters and digits that it ignores, by category.
        unspaced: Share of the letters in scripts without spaces between words, by category.
    """
    shown = {category: share for category, share in ignored.items() if share > SHOWN_ABOVE}
    if not shown:
        return ""
    listed = ", ".join(f"{share:.1%} in {category}" for category, share in shown.items())
    note = (
        "ROUGE-1 and ROUGE-L as published count only the letters a to z and digits. Of the letters and digits of the "
        f"reference reviews they ignore {listed}. Read ROUGE-1 (Unicode) and ROUGE-L (Unicode), which count every "
        "script."
    )
    if any(share > CHOSEN_BY_ABOVE for share in unspaced.values()):
        note += (
            " BLEU's tokenizer (13a) takes a run of characters without spaces, as in Chinese, Japanese or Thai, for "
            "one word."
        )
    return note
