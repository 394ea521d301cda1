"""Words of any script, for metrics whose published tokens are ASCII letters and digits or what stands between blanks.

`rouge-score` counts runs of a to z and 0 to 9 and drops every other character, so a Russian or Chinese text has no
tokens at all, and "café" is "caf". Here a token is a run of letters, digits and their marks of any script. Scripts that
are written without spaces between words (Chinese, Japanese, Thai, Khmer, Lao, Burmese and a few more) have one token a
character, as is usual where no segmenter is to decide the score. On ASCII text both give the same tokens.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import regex
from rouge_score.tokenizers import Tokenizer

UNSPACED = "".join(
    rf"\p{{{script}}}"
    for script in (
        "Han", "Hiragana", "Katakana", "Bopomofo", "Yi", "Thai", "Lao", "Khmer", "Myanmar", "Tai_Le", "New_Tai_Lue",
        "Tai_Tham", "Tai_Viet", "Javanese", "Balinese",
    )
)  # fmt: skip
"""Scripts written without spaces between words, as a part of a character class."""

# Signs without a sound or a meaning: joiners, soft hyphens, zero-width blanks, selectors of a glyph, key caps, and the
# Arabic stroke that only widens a word.
_SILENT = regex.compile(r"[\p{Cf}\p{Variation_Selector}\p{Me}\u0640]+", regex.V1)
_CHARACTER = rf"[[{UNSPACED}\u30fc]&&[\p{{L}}\p{{N}}]]\p{{M}}*"
_RUN = rf"[[\p{{L}}\p{{N}}]--[{UNSPACED}\u30fc]][[\p{{L}}\p{{N}}\p{{M}}]--[{UNSPACED}\u30fc]]*"
_TOKEN = regex.compile(rf"{_CHARACTER}|{_RUN}", regex.V1)
_UNSPACED_LETTER = regex.compile(rf"[[{UNSPACED}\u30fc]&&[\p{{L}}\p{{N}}]]", regex.V1)
_COUNTED = regex.compile(r"[\p{L}\p{N}\p{M}]", regex.V1)
_SEEN_BY_ROUGE = regex.compile(r"[a-z0-9]")


class UnicodeTokenizer(Tokenizer):  # type: ignore[misc]
    """Tokens of any script, for `rouge_score.rouge_scorer.RougeScorer(tokenizer=…)`."""

    def tokenize(self, text: str) -> list[str]:
        """Return the tokens of a text, compatibility forms and case folded (NFKC, casefold)."""
        if text.isascii():
            return _TOKEN.findall(text.lower())  # type: ignore[no-any-return]
        folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
        return _TOKEN.findall(_SILENT.sub("", folded))  # type: ignore[no-any-return]


def spaced_words(words: Sequence[str]) -> list[str]:
    """Return the words, those in scripts without spaces cut into their characters.

    Args:
        words: What a tokenizer that splits at blanks and punctuation gives.
    """
    found: list[str] = []
    for word in words:
        if word.isascii() or not _UNSPACED_LETTER.search(word):
            found.append(word)
        else:
            found += _TOKEN.findall(_SILENT.sub("", unicodedata.normalize("NFKC", word)))
    return found


@dataclass(frozen=True, slots=True)
class Letters:
    """How many letters and digits, with their marks, some texts have.

    Attributes:
        ignored: Those that the standard ROUGE does not see.
        unspaced: Those of scripts without spaces between words.
        total: All of them.
    """

    ignored: int = 0
    unspaced: int = 0
    total: int = 0

    @property
    def ignored_share(self) -> float:
        """Share that the standard ROUGE does not see, 0 to 1; 0 where there are no letters."""
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
