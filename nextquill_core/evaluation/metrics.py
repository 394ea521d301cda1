"""How close a generated review is to the one the user wrote, as the field computes it.

ROUGE-1 and ROUGE-L are the F-measures of `rouge-score` without stemming (the defaults of Hugging Face evaluate). They
count a to z and 0 to 9 and nothing else, so a second pair counts the words of every script (`unicode_words`). METEOR is
NLTK's with its defaults, BLEU is sacreBLEU's corpus score with its defaults. ROUGE and METEOR run from 0 to 1 and are
averaged over examples; BLEU runs from 0 to 100 and is one number for all examples together.

METEOR and the length ratio take the words of NLTK's tokenizer; in scripts without spaces between words each character
is a word. On a review in one of these scripts NLTK would otherwise see a single word.

Three more metrics exist where their inputs were measured: BERTScore (an encoder, see `bertscore`), and the
log-likelihood of the review that the user wrote, of all its tokens and of its preference tokens alone (nats a token, a
micro average, so long reviews count more). The last two ask what a method expects and not what it writes, so they are
the same under every decoding preset.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import numpy as np
from nltk.stem.porter import PorterStemmer
from nltk.translate.meteor_score import single_meteor_score
from numpy.typing import ArrayLike, NDArray
from sacrebleu.metrics import BLEU

from nextquill_core.errors import ModelError
from nextquill_core.evaluation.rouge import UNICODE, rouge
from nextquill_core.evaluation.significance import Floats, Statistic, ratio_of_sums
from nextquill_core.evaluation.unicode_words import Letters, spaced_words
from nextquill_core.evaluation.wordnet import load_wordnet, word_tokenize
from nextquill_core.progress import Progress, silent

METEOR_ALPHA, METEOR_BETA, METEOR_GAMMA = 0.9, 3.0, 0.5  # Banerjee and Lavie 2005; NLTK's defaults
NGRAMS = 4
LIKELIHOOD, PREFERENCE_LIKELIHOOD = "log_likelihood", "preference_log_likelihood"
BERTSCORE = "bertscore"
FOR_ALL_SCRIPTS: Mapping[str, str] = {"rouge1": "rouge1_unicode", "rougeL": "rougeL_unicode"}
"""The metric that counts the words of every script, by the standard one."""
SHOWN_ABOVE = 0.005
"""Share of the references' letters that the standard ROUGE ignores, above which the other one is in the tables."""
CHOSEN_BY_ABOVE = 0.05
"""The same, above which choices on val use the other one."""

_bleu = BLEU()
_segment_bleu = BLEU(effective_order=True)  # the same counts; without the warning about single sentences


def bleu_of_sums(sums: Floats) -> Floats:
    """Corpus BLEU, 0 to 100, from summed statistics of shape (…, 10): `BLEU.compute_bleu` for many corpora at once.

    Papineni et al. 2002 with the exponential smoothing of mteval-v13a: the k-th order without a match counts 1 / 2^k
    matches.
    """
    correct, total = sums[..., :NGRAMS], sums[..., NGRAMS : 2 * NGRAMS]
    predicted, reference = sums[..., -2], sums[..., -1]
    missed = correct == 0
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        precisions = 100 * np.where(missed, 0.5 ** np.cumsum(missed, axis=-1), correct) / total
        brevity = np.where(predicted < reference, np.exp(1 - reference / predicted), 1.0)
        scores = brevity * np.exp(np.log(precisions).mean(axis=-1))
    scored: Floats = np.where(~missed.all(axis=-1) & (total > 0).all(axis=-1), scores, 0.0)
    return scored


@dataclass(frozen=True, slots=True)
class Metric:
    """What a table needs to know of a metric.

    Attributes:
        key: Its name in the column `metric`.
        decimals: Digits shown.
        higher_is_better: None where neither direction is.
        statistic: From sums over examples to the value.
        written: Whether it judges what a method wrote; otherwise no decoding preset changes it.
        note: What a reader of its column must know, in a few words; "" where the name says it.
    """

    key: str
    name: str
    decimals: int
    higher_is_better: bool | None
    statistic: Statistic = ratio_of_sums
    written: bool = True
    note: str = ""

    def text(self, value: float) -> str:
        """The value as shown, with a real minus."""
        return f"{value:.{self.decimals}f}".replace("-", "\N{MINUS SIGN}")


METRICS: Mapping[str, Metric] = {
    metric.key: metric
    for metric in (
        Metric("rouge1", "ROUGE-1", 4, True, note="rouge-score: a to z and 0 to 9 only"),
        Metric("rougeL", "ROUGE-L", 4, True, note="rouge-score: a to z and 0 to 9 only"),
        Metric("rouge1_unicode", "ROUGE-1 (Unicode)", 4, True, note="words of every script"),
        Metric("rougeL_unicode", "ROUGE-L (Unicode)", 4, True, note="words of every script"),
        Metric("meteor", "METEOR", 4, True, note="NLTK's implementation; others give other values"),
        Metric("bleu", "BLEU", 2, True, bleu_of_sums, note="sacreBLEU's corpus score"),
        Metric(BERTSCORE, "BERTScore", 4, True),
        Metric(LIKELIHOOD, "Log-likelihood", 4, True, written=False),
        Metric(
            PREFERENCE_LIKELIHOOD,
            "Preference log-likelihood",
            4,
            True,
            written=False,
            note="on tokens that stored effects chose and training weighted: no independent evidence",
        ),
        Metric("length_ratio", "Length ratio", 2, None),
    )
}


@dataclass(frozen=True, slots=True)
class ExampleScores:
    """The scores of n predictions, one row an example.

    Attributes:
        means: For each metric that is a mean over examples, its values, shape (n,).
        lengths: Words of the prediction and of the reference, shape (n, 2); a reference has at least one.
        bleu: Matching and all n-grams of order 1 to 4, then length of prediction and reference, shape (n, 10).
        sums: For each metric that is a ratio of sums, such as the likelihoods (`likelihood_sums`), shape (n, 2).
        unicode: As `means`, for the metrics that see every script. They equal standard ones on ASCII text, so tables
            show them only where they differ (`with_unicode`): more comparisons make the correction for many harsher.
    """

    means: Mapping[str, Floats]
    lengths: NDArray[np.int64]
    bleu: NDArray[np.int64]
    sums: Mapping[str, Floats] = field(default_factory=dict)
    unicode: Mapping[str, Floats] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def keys(self) -> tuple[str, ...]:
        """The metrics there are values of; one whose sums count nothing in any example is not among them."""
        measured = {key for key, sums in self.sums.items() if sums[:, 1].any()}
        return tuple(key for key in METRICS if key in {"bleu", "length_ratio", *self.means, *measured})

    def plus(
        self, *, means: Mapping[str, ArrayLike] | None = None, sums: Mapping[str, ArrayLike] | None = None
    ) -> ExampleScores:
        """These scores and further ones of the same examples.

        Args:
            means: By metric, a value an example, shape (n,), such as `bertscore.bert_f1` gives them.
            sums: By metric, what is summed over examples, shape (n, 2), such as `likelihood_sums` gives it.

        Raises:
            ValueError: A metric is unknown, or the values are not of n examples.
        """
        averaged = {key: _shaped(key, values, (len(self),)) for key, values in (means or {}).items()}
        summed = {key: _shaped(key, values, (len(self), 2)) for key, values in (sums or {}).items()}
        return replace(self, means={**self.means, **averaged}, sums={**self.sums, **summed})

    def with_unicode(self) -> ExampleScores:
        """These scores with the metrics for every script among those that tables show."""
        return replace(self, means={**self.means, **self.unicode}, unicode={})

    def take(self, rows: NDArray[np.intp]) -> ExampleScores:
        """The scores of some examples."""
        return ExampleScores(
            {key: values[rows] for key, values in self.means.items()},
            self.lengths[rows],
            self.bleu[rows],
            {key: values[rows] for key, values in self.sums.items()},
            {key: values[rows] for key, values in self.unicode.items()},
        )

    def stats(self, key: str) -> Floats:
        """Of each example, what the metric's `statistic` needs the sum of, shape (n, K)."""
        if (values := self._mean_values(key)) is not None:
            return np.stack([values, np.ones(len(self))], axis=1)
        if key in self.sums:
            return self.sums[key]
        counts = {"bleu": self.bleu, "length_ratio": self.lengths}[key]
        return counts.astype(np.float64)

    def _mean_values(self, key: str) -> Floats | None:
        return self.means.get(key, self.unicode.get(key))

    def value(self, key: str) -> float:
        """The metric over all examples, the same to the last bit in whatever order they come.

        Raises:
            ValueError: There are none, or they have nothing that this metric measures.
        """
        if not len(self):
            raise ValueError("no examples, no score")
        if (values := self._mean_values(key)) is not None:
            return math.fsum(values) / len(self)
        if key == "bleu":
            return _bleu_score(self.bleu.sum(axis=0))
        above, below = (math.fsum(column) for column in self.stats(key).T)
        if not below:
            raise ValueError(f"nothing to measure {key} on")
        return above / below


def _shaped(key: str, values: ArrayLike, shape: tuple[int, ...]) -> Floats:
    found = np.asarray(values, dtype=np.float64)
    if key not in METRICS or found.shape != shape:
        raise ValueError(f"{key}: values of shape {found.shape}, a known metric of shape {shape} expected")
    return found


def likelihood_sums(logps: Sequence[Sequence[float]], chosen: Sequence[Sequence[bool]] | None = None) -> Floats:
    """What the log-likelihood metrics are made of: for each example the sum of log p(y_t) and the number of tokens.

    Args:
        logps: Of each example, log p of the tokens that the user wrote, nats; lists, arrays or tensors on the CPU.
        chosen: Of each example, which tokens count, such as preference tokens (effect above δ); None for all. An
            example without any contributes nothing.

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
                "the log-probability of a token is not finite", f"example {row}", "look at model.dtype and the adapter"
            )
        sums[row] = math.fsum(values), len(values)
    return sums


def sentence_bleu(scores: ExampleScores) -> Floats:
    """sacreBLEU's sentence score of each example, 0 to 100, shape (n,): orders that a text is too short for are left
    out.
    """
    found = [_bleu_score(counts, effective_order=True) for counts in scores.bleu]
    return np.array(found, dtype=np.float64)


def score_examples(predictions: Sequence[str], references: Sequence[str], progress: Progress = silent) -> ExampleScores:
    """Score each prediction against its reference.

    An empty prediction scores 0 everywhere. The standard ROUGE sees a to z and 0 to 9 only (as published), so it is 0
    for other scripts; `rouge1_unicode` and `rougeL_unicode` see all. METEOR of a perfect match of m words is
    1 - 0.5 / m³, not 1.

    A pair of reviews of 200 words takes about 6 ms on one core, 4 of them to find the words of the prediction (those
    of a reference are remembered for the next method), 0.8 for METEOR, 0.4 for ROUGE, 1.4 for BLEU.

    Raises:
        ValueError: Predictions and references differ in number.
        WordNetError: There is no WordNet.
    """
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions for {len(references)} references")
    meteor = _meteor()
    total = len(predictions)
    means = {key: np.zeros(total) for key in (*FOR_ALL_SCRIPTS, "meteor")}
    unicode = {key: np.zeros(total) for key in FOR_ALL_SCRIPTS.values()}
    lengths, bleu = np.zeros((total, 2), dtype=np.int64), np.zeros((total, 2 * NGRAMS + 2), dtype=np.int64)
    for row, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
        words, reference_words = _words(prediction), _reference_words(reference)
        found = standard = rouge(prediction, reference)
        if not (prediction.isascii() and reference.isascii()):
            found = rouge(prediction, reference, UNICODE)
        for position, (key, unicode_key) in enumerate(FOR_ALL_SCRIPTS.items()):
            means[key][row], unicode[unicode_key][row] = standard[position], found[position]
        means["meteor"][row] = meteor(reference_words, words)
        lengths[row] = len(words), max(1, len(reference_words))
        segment = _segment_bleu.sentence_score(prediction, [reference])
        bleu[row] = *segment.counts, *segment.totals, segment.sys_len, segment.ref_len
        progress(row + 1, total)
    return ExampleScores(means, lengths, bleu, unicode=unicode)


def _bleu_score(sums: NDArray[np.int64], *, effective_order: bool = False) -> float:
    """sacreBLEU's own score from summed statistics, 0 to 100."""
    counts = sums.tolist()
    score = BLEU.compute_bleu(
        counts[:NGRAMS],
        counts[NGRAMS : 2 * NGRAMS],
        sys_len=counts[-2],
        ref_len=counts[-1],
        smooth_method=_bleu.smooth_method,
        smooth_value=_bleu.smooth_value,
        effective_order=effective_order,
    )
    return float(score.score)


def choosing_metric(metric: str, letters: Letters) -> str:
    """Return the metric that a choice on val uses: the one asked for, or the same for every script.

    Args:
        metric: A key of `METRICS`.
        letters: Of the reference reviews that the choice is made on.
    """
    return FOR_ALL_SCRIPTS.get(metric, metric) if letters.ignored_share > CHOSEN_BY_ABOVE else metric


def _words(text: str) -> list[str]:
    return spaced_words(word_tokenize(text))


@functools.lru_cache(maxsize=4096)
def _reference_words(reference: str) -> tuple[str, ...]:
    return tuple(_words(reference))  # every method is scored against the same references


@functools.cache
def _meteor() -> Callable[[Sequence[str], Sequence[str]], float]:
    """METEOR of (reference words, predicted words).

    Each word is stemmed and looked up once: 0.8 ms instead of 6 for two reviews of 200 words.
    """
    cached = functools.lru_cache(maxsize=1 << 17)
    return functools.partial(
        single_meteor_score,
        stemmer=SimpleNamespace(stem=cached(PorterStemmer().stem)),
        wordnet=SimpleNamespace(synsets=cached(load_wordnet().synsets)),
        alpha=METEOR_ALPHA,
        beta=METEOR_BETA,
        gamma=METEOR_GAMMA,
    )
