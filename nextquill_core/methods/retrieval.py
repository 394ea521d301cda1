"""Retrieval of the past reviews nearest to the query, by words (BM25) or by vectors (Contriever).

The query is what is known of a review before it is written; the documents are that user's own past reviews. The result
is one score per past review, so that another number of shown reviews needs no other search.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import bm25s

from nextquill_core.errors import UserError
from nextquill_core.generation.engines import no_progress
from nextquill_core.prompts import REVIEW, Wording, query_section, review_section
from nextquill_core.schemas import Example, Review

if TYPE_CHECKING:
    from nextquill_core.methods.registry import Method
    from nextquill_core.methods.text_encoder import TextEncoder

K1, B = 1.5, 0.75
WORD = re.compile(r"\w+")
logging.getLogger(bm25s.__name__).setLevel(logging.WARNING)  # it logs every index, and there is one per example


def query_text(example: Example, wording: Wording = REVIEW) -> str:
    """Return the item title, description, rating and review title of the target, labelled as in the prompt."""
    target = example.target
    return query_section(target.item, target.rating, target.title, wording)


def review_text(review: Review, wording: Wording = REVIEW) -> str:
    """Return a past review with all its fields: item title, description, rating, review title, text."""
    return review_section(review, wording)


def bm25_scores(example: Example) -> list[float]:
    """Return how well each past review matches the query: BM25 (Robertson & Zaragoza 2009) in Lucene's form.

    score(d) = Σ_{w in the query} log(1 + (N − n_w + ½) / (n_w + ½)) · f_wd / (f_wd + k1 · (1 − b + b · |d| / mean |d|))
    with k1 = 1.5 and b = 0.75. The N reviews are the user's history; n_w of them contain w, and d contains it f_wd
    times. A word that occurs twice in the query counts twice.

    Words are runs of letters, digits and underscores in any script after NFKC and case folding. There is no stemmer,
    and no list of stop words is needed: words that occur everywhere have little weight. The labels of the fields, which
    every review has, are left out.

    Returns:
        One score per past review in the order of the history, at least 0, fp32; 0 where no word is shared.
    """
    target = example.target
    query = _words(replace(target, text=""))
    documents = [_words(past) for past in example.history]
    known = set().union(*documents)
    asked = [word for word in query if word in known]
    if not asked:
        return [0.0] * len(documents)
    index = bm25s.BM25(method="lucene", k1=K1, b=B)
    index.index(documents, show_progress=False)
    scores: list[float] = index.get_scores(asked).tolist()
    return scores


def dense_scores(
    examples: Sequence[Example],
    encoder: TextEncoder,
    advance: Callable[[int], None] = no_progress,
    wording: Wording = REVIEW,
) -> list[list[float]]:
    """Return how near each past review is to the query: the inner product of their vectors, as in Contriever.

    Izacard et al. 2022, arXiv 2112.09118. A text is encoded once, however many histories contain it.

    Args:
        examples: Examples whose histories are searched, each separately.
        encoder: Turns texts into vectors.
        advance: Receives from time to time how many more examples are finished, by the share of encoded texts.
        wording: Labels of the fields.

    Returns:
        For each example one score per past review, in the order of its history.
    """
    queries = [query_text(example, wording) for example in examples]
    pasts = [[review_text(past, wording) for past in example.history] for example in examples]
    searched = [query for query, past in zip(queries, pasts, strict=True) if past]
    texts = list(dict.fromkeys([*searched, *(text for past in pasts for text in past)]))
    place = {text: row for row, text in enumerate(texts)}
    encoded = reported = 0

    def report(count: int) -> None:
        nonlocal encoded, reported
        encoded += count
        finished = len(examples) * encoded // len(texts)
        advance(finished - reported)
        reported = finished

    vectors_ND = encoder(texts, report)
    advance(len(examples) - reported)  # there is nothing to encode where no example has a history
    return [
        (vectors_ND[[place[text] for text in past]] @ vectors_ND[place[query]]).tolist() if past else []
        for query, past in zip(queries, pasts, strict=True)
    ]


def with_best(example: Example, scores: Sequence[float], k: int) -> Example:
    """Return the example with only the `k` past reviews of the highest scores, oldest first.

    Of equal scores the newer review is kept, so that without any match these are the newest.

    Args:
        example: An example with its whole history.
        scores: One score per past review, in the order of the history.
        k: Number of reviews to keep, at least 0.

    Raises:
        ValueError: The numbers of scores and past reviews differ.
    """
    if len(scores) != len(example.history):
        raise ValueError(f"{len(scores)} scores for {len(example.history)} past reviews of {example.example_id}")
    return replace(example, history=tuple(example.history[place] for place in best_places(scores, k)))


def best_places(scores: Sequence[float], k: int) -> list[int]:
    """Return the places of the `k` highest scores in ascending order; of equal scores, the later place is taken."""
    return sorted(sorted(range(len(scores)), key=lambda place: (-scores[place], -place))[:k])


def with_selected(method: Method, example: Example, k: int) -> Example:
    """Return the example with only the `k` past reviews that a method selects by itself: by `select`, or by BM25.

    Neither sees the text of the target.

    Args:
        method: A method with `select`, or one that shows `bm25`.
        example: An example with its whole history.
        k: Number of reviews to keep, at least 0.

    Raises:
        UserError: `select` returns something else than up to `k` reviews of the history, oldest first.
    """
    if not method.select:
        return with_best(example, bm25_scores(example), k)
    chosen = method.select(replace(example, target=replace(example.target, text="")), k)
    rest = iter(example.history)  # `in` reads it up to what it finds, so the order counts
    if not isinstance(chosen, Sequence) or len(chosen) > k or not all(one in rest for one in chosen):
        what = f"method `{method.name}` does not select up to {k} past reviews of {example.example_id}, oldest first"
        raise UserError(what, "evaluate.methods", "fix `select` in its package")
    return replace(example, history=tuple(chosen))


def _words(review: Review) -> list[str]:
    rating = "" if review.rating is None else f"{review.rating:g}"
    fields = (review.item.title, review.item.description, rating, review.title, review.text)
    return WORD.findall(unicodedata.normalize("NFKC", " ".join(fields)).casefold())
