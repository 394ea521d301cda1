"""Words that history made likelier: which word each token belongs to, and how often each word is a preferred one.

A word is preferred at a place of a review if a preference token is part of it there. Stop words and single letters do
not count, and neither does what the review does not contain, such as the text of a stop token.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from nextquill_core.analysis.example_view import ExplainedExample, has_content
from nextquill_core.synthetic.truth import token_spans
from nextquill_core.writing.draft import WORD


@dataclass(frozen=True, slots=True)
class WordCount:
    """A word with the number of its places in reviews, and at how many of them it is preferred."""

    word: str
    preferred: int
    places: int

    @property
    def share(self) -> float:
        """Share of its places at which it is preferred, in (0, 1]."""
        return self.preferred / self.places


def word_counts(explained: Iterable[ExplainedExample]) -> list[WordCount]:
    """Return the words that are preferred anywhere: most often first, then by the higher share, then by the alphabet.

    Args:
        explained: Reviews with the effects of their tokens.
    """
    places: Counter[str] = Counter()
    preferred: Counter[str] = Counter()
    for one in explained:
        for word, tokens in _words(one):
            places[word] += 1
            preferred[word] += any(one.tokens[token].preferred for token in tokens)
    found = [WordCount(word, count, places[word]) for word, count in preferred.items() if count]
    return sorted(found, key=lambda one: (-one.preferred, -one.share, one.word))


def token_words(one: ExplainedExample) -> list[str]:
    """Return the word of each token of the true review; "" for a token that belongs to none or to a stop word."""
    words = [""] * len(one.tokens)
    for word, tokens in _words(one):
        for token in tokens:
            words[token] = words[token] or word
    return words


def typical_words(groups: Sequence[int], words: Sequence[str], count: int) -> list[list[WordCount]]:
    """Return the words that are typical of each group of tokens.

    A word is the more typical, the more often it is in the group and the less often elsewhere: words are ordered by
    their number in the group times the share of all their tokens that are in it.

    Args:
        groups: The group of each token, from 0.
        words: The word of each token; "" does not count.
        count: Maximum number of words for a group.

    Returns:
        By group, words with the number of their tokens in it (`preferred`) and in all groups (`places`).
    """
    everywhere = Counter(words)
    found = []
    for group in range(max(groups, default=-1) + 1):
        inside = Counter(word for of, word in zip(groups, words, strict=True) if of == group and word)
        counted = [WordCount(word, number, everywhere[word]) for word, number in inside.items()]
        found.append(sorted(counted, key=lambda one: (-one.preferred * one.share, one.word))[:count])
    return found


def _words(one: ExplainedExample) -> Iterator[tuple[str, list[int]]]:
    """Yield each word of a true review with the tokens that are part of it, in the order of the text."""
    text = "".join(token.text for token in one.tokens)
    spans = token_spans([token.text for token in one.tokens])
    known = {word.casefold() for word in WORD.findall(one.example.target.text)}
    first = 0
    for match in WORD.finditer(text):
        word = match[0].casefold()
        while spans[first][1] <= match.start():
            first += 1
        if word in known and has_content(word):
            last = first
            while last < len(spans) and spans[last][0] < match.end():
                last += 1
            yield word, [token for token in range(first, last) if spans[token][0] < spans[token][1]]
