"""What METEOR reads: WordNet 3.0 without a download, and NLTK's word tokenizer.

NLTK opens only real, singly linked files under its data roots, so Debian's WordNet files are copied once (36 MB) into
a cache folder that is put on `nltk.data.path`; a symbolic or hard link to them would be refused.
"""

from __future__ import annotations

import functools
import os
import shutil
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nltk
from nltk.corpus import wordnet
from nltk.tokenize import NLTKWordTokenizer, PunktSentenceTokenizer, punkt_model_available, sent_tokenize

from nextquill_core.errors import UserError

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
PIECE_CHARS = 20_000

_loading = threading.Lock()
_words = NLTKWordTokenizer()


class WordNetError(UserError):
    """WordNet 3.0 is neither among NLTK's data nor on this system, or cannot be made ready for NLTK."""


def load_wordnet(cache: Path | None = None, source: Path = DEBIAN_WORDNET) -> Any:
    """NLTK's WordNet reader, loaded (about 4 s and 200 MB, once a process).

    Args:
        cache: The NLTK data folder to build where NLTK finds no WordNet; `cache_folder()` by default.
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
    """`nextquill/nltk_data` in the user's cache: $XDG_CACHE_HOME, or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "nextquill" / "nltk_data"


def build_data_folder(folder: Path, source: Path = DEBIAN_WORDNET) -> Path:
    """Make `folder` an NLTK data folder whose corpora/wordnet holds the files of `source` and the table `lexnames`.

    The corpus gets its name in one rename, so a killed process leaves nothing that looks complete, and of two
    processes at once one wins and the other uses its result.

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
        if not target.is_dir():  # if it is, another process was faster
            raise WordNetError(
                f"cannot copy WordNet ({error.strerror})", str(folder), "set XDG_CACHE_HOME to a folder with 40 MB free"
            ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def lexnames() -> str:
    """The text of WordNet's `lexnames`, which Debian leaves out: number, file and syntactic category, by tabs."""
    files = [(f"{part}.{name}", category) for part, category, names in LEXICOGRAPHER_FILES for name in names.split()]
    return "".join(f"{number:02}\t{name}\t{category}\n" for number, (name, category) in enumerate(files))


@functools.cache
def has_punkt() -> bool:
    """Whether NLTK's trained English sentence splitter (its `punkt_tab` data) is installed."""
    return bool(punkt_model_available("english"))


def tokenizer_name() -> str:
    """Which word tokenizer `word_tokenize` is, in words to print beside a score."""
    if has_punkt():
        return "nltk.word_tokenize with punkt_tab"
    return "NLTKWordTokenizer on sentences of untrained Punkt (punkt_tab is not installed)"


def word_tokenize(text: str) -> list[str]:
    """The words of `text` as `nltk.word_tokenize` gives them.

    Without the `punkt_tab` data the sentences come from the same splitter with no learned abbreviations, so that
    "Mr." is two tokens instead of one. A text of more than 20,000 characters is cut at white space first: Punkt is
    quadratic on some texts, and NLTK gives up with a `TimeoutError` after five seconds.
    """
    split = sent_tokenize if has_punkt() else PunktSentenceTokenizer().tokenize
    return [word for piece in _pieces(text) for sentence in split(piece) for word in _words.tokenize(sentence)]


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > PIECE_CHARS:
        blank = text.rfind(" ", start + 1, start + PIECE_CHARS)
        end = blank if blank > 0 else start + PIECE_CHARS
        yield text[start:end]
        start = end
    yield text[start:]
