"""The ground truth beside the reviews of a synthetic category: the words that taste drew, and their exact effects."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from nextquill_core.errors import DataError

TOKEN_TRUTH = Path("truth", "tokens.jsonl")
"""The file of drawn words, beside `reviews.jsonl`."""
WORLD = Path("truth", "world.json")
"""The file of the parameters of the world, beside `reviews.jsonl`."""
PLAIN = "plain"
"""The world that is written by default; its files do not name what only other worlds have."""
REQUIRED, ADDED = ("start", "end", "word", "effect"), ("style", "aspect")
"""Columns that every such file has, and those that old ones may lack."""
REMEDY = "write the category again with `nextquill sample`, or leave exact out of evaluate.preference_tokens"


@dataclass(frozen=True, slots=True)
class TrueWord:
    """A word that taste drew.

    Attributes:
        start: Its first character in the cleaned text.
        end: The character behind its last one.
        word: The word.
        effect: P(word | style, x, words before) − P(word | x, words before), see `world`.
        style: The main style of the writer; "" where the file does not say it.
        aspect: What the sentence is about; "" where the file does not say it.
    """

    start: int
    end: int
    word: str
    effect: float
    style: str = ""
    aspect: str = ""


@dataclass(frozen=True, slots=True)
class WrittenCategory:
    """What a synthetic category was written from: the number of regular users, the seed and the name of the world."""

    users: int
    seed: int
    world: str


def written_category(folder: Path) -> WrittenCategory | None:
    """Return what the synthetic category in a folder was written from; None where the folder does not say it."""
    try:
        found: dict[str, Any] = orjson.loads((folder / WORLD).read_bytes())
        return WrittenCategory(found["users"], found["seed"], found.get("world", PLAIN))
    except (OSError, KeyError, TypeError, AttributeError, orjson.JSONDecodeError):
        return None


class Truth:
    """The drawn words of the reviews of one category.

    Reviews are found by their time, and by drawn words that are in the text where the truth says. Ids of users are
    not compared, because an ingest may replace them by pseudonyms.

    Args:
        path: The file, see `TOKEN_TRUTH`.

    Raises:
        DataError: The file cannot be read, or is not such a file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reviews: dict[int, list[tuple[TrueWord, ...]]] = {}
        try:
            for line in path.read_bytes().splitlines():
                row: dict[str, Any] = orjson.loads(line)
                words = (
                    TrueWord(**{name: span[name] for name in REQUIRED} | {name: span.get(name, "") for name in ADDED})
                    for span in row["spans"]
                )
                self._reviews.setdefault(row["timestamp"], []).append(tuple(words))
        except (OSError, KeyError, TypeError, orjson.JSONDecodeError) as error:
            raise DataError(f"the ground truth cannot be read ({error})", str(path), REMEDY) from None

    @property
    def world(self) -> str:
        """The name of the world.

        Raises:
            DataError: The file beside this one that says it is missing or damaged.
        """
        written = written_category(self.path.parent.parent)
        if written is None:
            raise DataError("the parameters of the world cannot be read", str(self.path.with_name(WORLD.name)), REMEDY)
        return written.world

    def words(self, text: str, timestamp_ms: int) -> tuple[TrueWord, ...]:
        """Return the words that taste drew for a review.

        Args:
            text: The cleaned text.
            timestamp_ms: When the review was written, UTC milliseconds.

        Raises:
            DataError: No review of the truth has this time and these words.
        """
        for words in self._reviews.get(timestamp_ms, []):
            if all(text[one.start : one.end] == one.word for one in words):
                return words
        raise DataError(f"the ground truth has no review like {text[:40]!r} at {timestamp_ms}", str(self.path), REMEDY)


def truth_file(category: str, reviews: Sequence[Path]) -> Path:
    """Return the file with the ground truth of a category.

    Args:
        category: Name of the category.
        reviews: Its files of reviews.

    Raises:
        DataError: There is none.
    """
    path = reviews[0].parent / TOKEN_TRUTH
    if len(reviews) > 1 or not path.is_file():
        raise DataError(
            f"category {category} has no ground truth of its words: there is no {path}",
            "evaluate.preference_tokens",
            "leave exact out; only a category that `nextquill sample` wrote has it",
        )
    return path


def exact_effects(words: Sequence[TrueWord], text: str, tokens: Sequence[str]) -> list[float]:
    """Return for each token of a review the exact effect of the drawn word that it is a part of; 0 for all others.

    Args:
        words: The words that taste drew.
        text: The cleaned text.
        tokens: The text that each token adds, as `tokens.token_texts` returns it; a stop token may follow the text, and
            tokens may be missing at the end.

    Raises:
        DataError: The tokens do not spell the text, so their places are not known.
    """
    spelled = "".join(tokens)
    length = min(len(spelled), len(text))
    if spelled[:length] != text[:length]:
        raise DataError(
            f"the tokenizer spells the review {text[:40]!r} differently, so its words cannot be found among the tokens",
            "evaluate.preference_tokens",
            "leave exact out for this model",
        )
    return [
        next((one.effect for one in words if one.start < end and start < one.end), 0.0)
        for start, end in token_spans(tokens)
    ]


def token_spans(tokens: Sequence[str]) -> list[tuple[int, int]]:
    """Return the characters [start, end) of each token of a text, from the texts that the tokens add."""
    return list(itertools.pairwise(itertools.accumulate(map(len, tokens), initial=0)))
