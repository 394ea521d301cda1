"""ROUGE, BLEU and METEOR of single texts, and the words of any script that they count.

- Words: `rouge-score` counts runs of a to z and 0 to 9 and drops every other character, so a Russian or Chinese text
  has no tokens at all, and "café" is "caf". `UnicodeTokenizer` gives runs of letters, digits and their marks of any
  script. In scripts written without spaces between words (Chinese, Japanese, Thai, Khmer, Lao, Burmese and a few more)
  each character is a token, as is usual where no segmenter is to decide the score. On ASCII text both are the same.
- ROUGE is as published, in time that an endless text cannot make quadratic.
- BLEU is sacreBLEU's, from statistics per example that add up to the corpus score. Those of an example have shape
  (10,): matching n-grams of order 1 to 4, all n-grams of order 1 to 4, then the lengths of prediction and reference in
  tokens.
- METEOR is NLTK's, with WordNet 3.0 without a download. NLTK opens only real, singly linked files under its data
  roots, so Debian's WordNet files are copied once (36 MB) into a cache folder that is put on `nltk.data.path`; a
  symbolic or hard link to them would be refused.
"""

from __future__ import annotations

import functools
import os
import shutil
import threading
import unicodedata
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nltk
import numpy as np
import regex
from nltk.corpus import wordnet
from nltk.stem.porter import PorterStemmer
from nltk.tokenize import NLTKWordTokenizer, PunktSentenceTokenizer, punkt_model_available, sent_tokenize
from nltk.translate.meteor_score import single_meteor_score
from rouge_score.scoring import fmeasure
from rouge_score.tokenizers import DefaultTokenizer, Tokenizer
from sacrebleu.metrics import BLEU

from nextquill_core.errors import UserError
from nextquill_core.evaluation.significance import Floats

UNSPACED = "".join(
    rf"\p{{{script}}}"
    for script in (
        "Han", "Hiragana", "Katakana", "Bopomofo", "Yi", "Thai", "Lao", "Khmer", "Myanmar", "Tai_Le", "New_Tai_Lue",
        "Tai_Tham", "Tai_Viet", "Javanese", "Balinese",
    )
)  # fmt: skip
"""Scripts written without spaces between words, as a part of a character class."""
PIECE_CHARS = 20_000

# Signs without sound or meaning: joiners, soft hyphens, zero-width blanks, variation selectors, key caps, and the
# Arabic stroke that only widens a word.
_SILENT = regex.compile(r"[\p{Cf}\p{Variation_Selector}\p{Me}\u0640]+", regex.V1)
_CHARACTER = rf"[[{UNSPACED}\u30fc]&&[\p{{L}}\p{{N}}]]\p{{M}}*"
_RUN = rf"[[\p{{L}}\p{{N}}]--[{UNSPACED}\u30fc]][[\p{{L}}\p{{N}}\p{{M}}]--[{UNSPACED}\u30fc]]*"
_TOKEN = regex.compile(rf"{_CHARACTER}|{_RUN}", regex.V1)
_UNSPACED_LETTER = regex.compile(rf"[[{UNSPACED}\u30fc]&&[\p{{L}}\p{{N}}]]", regex.V1)
_COUNTED = regex.compile(r"[\p{L}\p{N}\p{M}]", regex.V1)
_SEEN_BY_ROUGE = regex.compile(r"[a-z0-9]")
_nltk = NLTKWordTokenizer()


class UnicodeTokenizer(Tokenizer):  # type: ignore[misc]
    """Tokens of any script, for `rouge_score.rouge_scorer.RougeScorer(tokenizer=…)`."""

    def tokenize(self, text: str) -> list[str]:
        """Return the tokens of a text, compatibility forms and case folded (NFKC, casefold)."""
        if text.isascii():
            return _TOKEN.findall(text.lower())  # type: ignore[no-any-return]
        folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
        return _TOKEN.findall(_SILENT.sub("", folded))  # type: ignore[no-any-return]


def words(text: str) -> tuple[str, ...]:
    """Return the words of a text for METEOR and the length ratio: NLTK's, one per character in unspaced scripts."""
    return tuple(spaced_words(word_tokenize(text)))


def spaced_words(tokens: Sequence[str]) -> list[str]:
    """Return the tokens of a tokenizer that splits at blanks, those in scripts without spaces cut into characters."""
    found: list[str] = []
    for token in tokens:
        if token.isascii() or not _UNSPACED_LETTER.search(token):
            found.append(token)
        else:
            found += _TOKEN.findall(_SILENT.sub("", unicodedata.normalize("NFKC", token)))
    return found


@functools.cache
def has_punkt() -> bool:
    """Return whether NLTK's trained English sentence splitter (its `punkt_tab` data) is installed."""
    return bool(punkt_model_available("english"))


def tokenizer_name() -> str:
    """Return which word tokenizer `word_tokenize` is, to print beside a score."""
    if has_punkt():
        return "nltk.word_tokenize with punkt_tab"
    return "NLTKWordTokenizer on sentences of untrained Punkt (punkt_tab is not installed)"


def word_tokenize(text: str) -> list[str]:
    """Return the words of a text as `nltk.word_tokenize` gives them.

    Without the `punkt_tab` data the sentences come from the same splitter without learned abbreviations, so "Mr." is
    two tokens instead of one. A text of more than 20,000 characters is first cut at white space: Punkt is quadratic on
    some texts, and NLTK raises `TimeoutError` after five seconds.
    """
    split = sent_tokenize if has_punkt() else PunktSentenceTokenizer().tokenize
    return [word for piece in _pieces(text) for sentence in split(piece) for word in _nltk.tokenize(sentence)]


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > PIECE_CHARS:
        blank = text.rfind(" ", start + 1, start + PIECE_CHARS)
        end = blank if blank > 0 else start + PIECE_CHARS
        yield text[start:end]
        start = end
    yield text[start:]


@dataclass(frozen=True, slots=True)
class Letters:
    """Number of letters and digits, with their marks, in some texts.

    Attributes:
        ignored: Those that the standard ROUGE ignores.
        unspaced: Those of scripts without spaces between words.
        total: All of them.
    """

    ignored: int = 0
    unspaced: int = 0
    total: int = 0

    @property
    def ignored_share(self) -> float:
        """Share that the standard ROUGE ignores, 0 to 1; 0 where there are no letters."""
        return self.ignored / self.total if self.total else 0.0

    @property
    def unspaced_share(self) -> float:
        """Share in scripts without spaces between words, 0 to 1."""
        return self.unspaced / self.total if self.total else 0.0


def count_letters(texts: Iterable[str]) -> Letters:
    """Count the letters and digits of texts, and those among them that the standard ROUGE ignores."""
    ignored = unspaced = total = 0
    for text in texts:
        if text.isascii():
            total += sum(map(str.isalnum, text))
            continue
        counted = "".join(_COUNTED.findall(_SILENT.sub("", text).lower()))
        total += len(counted)
        ignored += len(counted) - len(_SEEN_BY_ROUGE.findall(counted))
        unspaced += len(_UNSPACED_LETTER.findall(counted))
    return Letters(ignored, unspaced, total)


STANDARD, UNICODE = DefaultTokenizer(use_stemmer=False), UnicodeTokenizer()
"""Tokenizers: as published (a to z and 0 to 9), and for every script."""


def rouge(prediction: str, reference: str, tokenizer: Tokenizer = STANDARD) -> tuple[float, float]:
    """Return the F-measures of ROUGE-1 and ROUGE-L (Lin 2004), those of `rouge_score.RougeScorer`, 0 to 1.

    Only its table for the longest common subsequence is replaced: it takes 10 ms for two reviews of 200 words and
    grows with the product of their lengths, which a model that never stops makes large.

    Args:
        prediction: A generated text.
        reference: The text that the user wrote.
        tokenizer: `STANDARD` or `UNICODE`; on ASCII text both give the same values.
    """
    return rouge_of_tokens(tokenizer.tokenize(prediction), tokenizer.tokenize(reference))


def rouge_of_tokens(predicted: Sequence[str], expected: Sequence[str]) -> tuple[float, float]:
    """Return `rouge` of texts that are tokens already.

    Args:
        predicted: Tokens of the generated text.
        expected: Tokens of the text that the user wrote.
    """
    if not predicted or not expected:
        return 0.0, 0.0
    overlap = (Counter(predicted) & Counter(expected)).total()
    in_order = _common_subsequence(predicted, expected)
    unigram, longest = (fmeasure(hits / len(predicted), hits / len(expected)) for hits in (overlap, in_order))
    return float(unigram), float(longest)


def _common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the length of the longest common subsequence, one row of the table per integer's bits (Hyyrö 2004)."""
    across, down = sorted((first, second), key=len)  # the integers are as long as the shorter of the two
    places: dict[str, int] = defaultdict(int)
    for place, token in enumerate(across):
        places[token] |= 1 << place
    everywhere = (1 << len(across)) - 1
    row = everywhere
    for token in down:
        hits = row & places.get(token, 0)
        row = ((row + hits) | (row - hits)) & everywhere
    return len(across) - row.bit_count()


NGRAMS = 4
BLEU_STATISTICS = 2 * NGRAMS + 2
_bleu = BLEU()
_segment_bleu = BLEU(effective_order=True)  # the same counts; without the warning about single sentences


def bleu_statistics(prediction: str, reference: str) -> list[int]:
    """Return the statistics of one example."""
    segment = _segment_bleu.sentence_score(prediction, [reference])
    return [*segment.counts, *segment.totals, segment.sys_len, segment.ref_len]


def bleu_of_sums(sums: Floats) -> Floats:
    """Return the corpus BLEU, 0 to 100, of summed statistics of shape (…, 10): many corpora at once.

    Papineni et al. 2002 with the exponential smoothing of mteval-v13a: the k-th order without a match counts 1 / 2^k
    matches. It is `BLEU.compute_bleu`, vectorised.
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


def sacrebleu_score(sums: Sequence[float], *, effective_order: bool = False) -> float:
    """Return sacreBLEU's score of summed statistics, 0 to 100.

    Args:
        sums: The ten sums.
        effective_order: Leave out the orders that the text is too short for, as sacreBLEU does for one sentence.
    """
    counts = [int(count) for count in sums]
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


def bleu_signature() -> str:
    """Return sacreBLEU's signature, which names its version and settings."""
    bleu = BLEU()
    bleu.corpus_score(["a"], [["a"]])  # sacreBLEU has a signature only after a score
    return str(bleu.get_signature())


METEOR_PARAMETERS = {"alpha": 0.9, "beta": 3.0, "gamma": 0.5}  # Banerjee and Lavie 2005; NLTK's defaults
DEBIAN_WORDNET = Path("/usr/share/wordnet")
PACKAGED_FILES = (
    *(f"{kind}.{part}" for kind in ("index", "data") for part in ("adj", "adv", "noun", "verb")),
    *(f"{part}.exc" for part in ("adj", "adv", "noun", "verb")),
    "cntlist.rev",
    "index.sense",
)
# The lexicographer files in the order of their numbers, as lexnames(5WN) of WordNet 3.0 lists them, with the number of
# their syntactic category.
LEXICOGRAPHER_FILES = (
    ("adj", 3, "all pert"),
    ("adv", 4, "all"),
    (
        "noun",
        1,
        "Tops act animal artifact attribute body cognition communication event feeling food group location motive "
        "object person phenomenon plant possession process quantity relation shape state substance time",
    ),
    (
        "verb",
        2,
        "body change cognition communication competition consumption contact creation emotion motion perception "
        "possession social stative weather",
    ),
    ("adj", 3, "ppl"),
)

_loading = threading.Lock()


class WordNetError(UserError):
    """WordNet 3.0 is neither among NLTK's data nor on this system, or it cannot be prepared for NLTK."""


@functools.cache
def meteor() -> Callable[[Sequence[str], Sequence[str]], float]:
    """Return METEOR as a function of (reference words, predicted words), 0 to 1.

    Each word is stemmed and looked up once: 0.8 ms instead of 6 for two reviews of 200 words.

    Raises:
        WordNetError: There is no WordNet.
    """
    cached = functools.lru_cache(maxsize=1 << 17)
    return functools.partial(
        single_meteor_score,
        stemmer=SimpleNamespace(stem=cached(PorterStemmer().stem)),
        wordnet=SimpleNamespace(synsets=cached(load_wordnet().synsets)),
        **METEOR_PARAMETERS,
    )


def load_wordnet(cache: Path | None = None, source: Path = DEBIAN_WORDNET) -> Any:
    """Return NLTK's WordNet reader, loaded (about 4 s and 200 MB, once per process).

    Args:
        cache: NLTK data folder to build where NLTK finds no WordNet; `cache_folder()` by default.
        source: A folder with WordNet 3.0's database files.

    Raises:
        WordNetError: There is no WordNet, the cache cannot be written, or NLTK refuses the files it finds.
    """
    with _loading:  # NLTK's lazy loader is not safe to enter from two threads
        try:
            nltk.data.find("corpora/wordnet")
        except LookupError:
            folder = build_data_folder(cache or cache_folder(), source)
            if str(folder) not in nltk.data.path:
                nltk.data.path.append(str(folder))
        try:
            wordnet.ensure_loaded()
        except (LookupError, OSError) as error:
            raise WordNetError(
                f"NLTK cannot read its WordNet: {error}", "corpora/wordnet", "python -m nltk.downloader wordnet"
            ) from error
    return wordnet


def cache_folder() -> Path:
    """Return `nextquill/nltk_data` in the user's cache: $XDG_CACHE_HOME, or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "nextquill" / "nltk_data"


def build_data_folder(folder: Path, source: Path = DEBIAN_WORDNET) -> Path:
    """Make `folder` an NLTK data folder whose corpora/wordnet holds the files of `source` and the table `lexnames`.

    The corpus gets its name in one rename, so a killed process leaves nothing that looks complete. Of two processes at
    once, one wins and the other uses its result.

    Args:
        folder: The data folder; it is made.
        source: A folder with WordNet 3.0's database files.

    Returns:
        `folder`.

    Raises:
        WordNetError: `source` lacks a file, or `folder` cannot be written.
    """
    target = folder / "corpora" / "wordnet"
    if target.is_dir():
        return folder
    absent = [name for name in PACKAGED_FILES if not (source / name).is_file()]
    if absent:
        raise WordNetError(
            f"METEOR needs WordNet 3.0, and {absent[0]} is not there",
            str(source),
            "apt-get install wordnet-base wordnet-sense-index, or python -m nltk.downloader wordnet",
        )
    unfinished = target.with_name(f".wordnet.{uuid.uuid4().hex[:8]}.tmp")
    try:
        unfinished.mkdir(parents=True)
        for name in PACKAGED_FILES:
            shutil.copyfile(source / name, unfinished / name)
        (unfinished / "lexnames").write_text(lexnames(), encoding="ascii")
        unfinished.rename(target)
    except OSError as error:
        if not target.is_dir():  # otherwise another process was faster
            raise WordNetError(
                f"cannot copy WordNet ({error.strerror})", str(folder), "set XDG_CACHE_HOME to a folder with 40 MB free"
            ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def lexnames() -> str:
    """Return WordNet's `lexnames`, which Debian leaves out: number, file and syntactic category, tab-separated."""
    files = [(f"{part}.{name}", category) for part, category, names in LEXICOGRAPHER_FILES for name in names.split()]
    return "".join(f"{number:02}\t{name}\t{category}\n" for number, (name, category) in enumerate(files))
