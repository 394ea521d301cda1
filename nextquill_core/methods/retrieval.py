"""Which past reviews a prompt shows: those that are most like what is to be written, by words (BM25) or by vectors.

The query is what is known of a review before it is written; what is searched is that user's own past. A score a past
review is all that is kept, so that another number of reviews is another choice and no other search.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import bm25s

from nextquill_core.generation.engines import unheard
from nextquill_core.prompts import query_section, review_section
from nextquill_core.schemas import Example, Review

if TYPE_CHECKING:
    from nextquill_core.methods.text_encoder import TextEncoder

K1, B = 1.5, 0.75
WORD = re.compile(r"\w+")
logging.getLogger(bm25s.__name__).setLevel(logging.WARNING)  # it would tell of every index, and there is one an example


def query_text(example: Example) -> str:
    """Item title, description, rating and review title of what is to be written, named as in the prompt."""
    target = example.target
    return query_section(target.item, target.rating, target.title)


def review_text(review: Review) -> str:
    """A past review with all its fields: item title, description, rating, review title, text."""
    return review_section(review)


def bm25_scores(example: Example) -> list[float]:
    """How well each past review matches the query by its words: BM25 (Robertson & Zaragoza 2009), Lucene's form.

    score(d) = Σ_{w in the query} log(1 + (N − n_w + ½) / (n_w + ½)) · f_wd / (f_wd + k1 · (1 − b + b · |d| / mean |d|))
    with k1 = 1.5 and b = 0.75, N reviews, of which n_w contain w, and f_wd of it in d. The N reviews are this user's
    own past. A word that stands twice in the query counts twice.

    Words are runs of letters, digits and underscores in any script, compatible forms and cases made one (NFKC, case
    folding); there is no stemmer, and words that stand everywhere weigh little without a list of them. The fields are
    read without their names, which every review has.

    Returns:
        A score a past review, in the order of the history, 0 or more, in fp32; 0 where no word is shared.
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
    examples: Sequence[Example], encoder: TextEncoder, advance: Callable[[int], None] = unheard
) -> list[list[float]]:
    """How near each past review is to the query: the inner product of their vectors, as Contriever has it.

    Izacard et al. 2022, arXiv 2112.09118. A text is encoded once, however many histories it stands in.

    Args:
        examples: Whose histories are searched, each for itself.
        encoder: Text in, vector out.
        advance: Told now and then how many more of the examples that comes to, by the share of texts encoded.

    Returns:
        For each example a score a past review, in the order of its history.
    """
    queries = [query_text(example) for example in examples]
    pasts = [[review_text(past) for past in example.history] for example in examples]
    searched = [query for query, past in zip(queries, pasts, strict=True) if past]
    texts = list(dict.fromkeys([*searched, *(text for past in pasts for text in past)]))
    place = {text: row for row, text in enumerate(texts)}
    encoded = told = 0

    def tell(count: int) -> None:
        nonlocal encoded, told
        encoded += count
        finished = len(examples) * encoded // len(texts)
        advance(finished - told)
        told = finished

    vectors_ND = encoder(texts, tell)
    advance(len(examples) - told)  # those without a history, where there is no other
    return [
        (vectors_ND[[place[text] for text in past]] @ vectors_ND[place[query]]).tolist() if past else []
        for query, past in zip(queries, pasts, strict=True)
    ]


def with_best(example: Example, scores: Sequence[float], k: int) -> Example:
    """The example with the `k` past reviews of the highest scores, still oldest first.

    Where scores are equal the newer review is taken, so that without any match these are the newest.

    Args:
        example: With its whole history.
        scores: One a past review, in the order of the history.
        k: How many to keep, 0 or more.

    Raises:
        ValueError: There is not one score a past review.
    """
    if len(scores) != len(example.history):
        raise ValueError(f"{len(scores)} scores for {len(example.history)} past reviews of {example.example_id}")
    best = sorted(range(len(scores)), key=lambda place: (-scores[place], -place))[:k]
    return replace(example, history=tuple(example.history[place] for place in sorted(best)))


def _words(review: Review) -> list[str]:
    rating = "" if review.rating is None else f"{review.rating:g}"
    fields = (review.item.title, review.item.description, rating, review.title, review.text)
    return WORD.findall(unicodedata.normalize("NFKC", " ".join(fields)).casefold())
