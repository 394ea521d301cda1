"""Differences to other users in words, before generation (DPL, Qiu et al. 2025, arXiv 2503.02450).

For a past review the model says how it differs from reviews of the same item by representative other users; from the
differences and the past reviews it then writes a profile of the user, which the prompt shows. Representative: all
reviews of the item are clustered by their vectors into one cluster more than others are compared with, and from each
cluster but the user's own the review nearest to its centre is taken.

    N reviews by others, D vector size
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from nextquill_core.generation.engines import Engine, Request, no_progress
from nextquill_core.methods.fitted_prompts import FittedPrompts, cut_review, cut_text, taken, texts_of
from nextquill_core.methods.summaries import ANSWER, ORDER
from nextquill_core.prompts import PLAIN, REVIEW, Template, Wording, query_section, review_section
from nextquill_core.records import Example, Item, Review
from storage.fingerprint import fingerprint

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

COMPARED = "Below is one user's {text}, and then {texts} {same} by other users."
OWN, OTHER = "This user:", "Another user:"
COMPARE = (
    "Say how this user's {text} differs from the others, in three respects. Writing: words and sentences. Emotion: how "
    "positive or negative it is. Content: how much it says, and how well it holds together."
)
DIFFERENCES = "Differences:\n"
PROFILED = "Below is how {texts} by one user differ from {texts} {same} by other users."
DIFFERENCE = "How this user's {text} differs:"
ALIKE = "Below are {texts} by the same user, oldest first."
ALONE = "Below are {texts} by one user, oldest first."


@dataclass(frozen=True, slots=True)
class Comparison:
    """A past review beside those of representative other users.

    Attributes:
        position: Position of the past review in the example's history.
        own: The past review.
        others: Reviews of the same item by others.
    """

    position: int
    own: Review
    others: tuple[Review, ...]


def representatives(
    own_D: NDArray[np.float64], others_ND: NDArray[np.float64], count: int, *, seed: int = 42
) -> list[int]:
    """Return which of the others' reviews are compared with a user's own: at most `count`, in ascending order.

    Of reviews that are equally near to the centre of their cluster, as two alone in one always are, it is the first.

    Args:
        own_D: Vector of the user's own review.
        others_ND: Vectors of the others' reviews.
        count: Number of clusters without the user's own; with no more others than that, all are returned.
        seed: Seed of the k-means.
    """
    import numpy as np
    from sklearn.cluster import KMeans

    if len(others_ND) <= count:
        return list(range(len(others_ND)))
    points = np.vstack([own_D[None], others_ND])
    clusters = min(count + 1, len(np.unique(points, axis=0)))
    found = KMeans(n_clusters=clusters, random_state=seed, n_init=1).fit(points)
    distances = np.linalg.norm(points - found.cluster_centers_[found.labels_], axis=1).round(9)
    chosen = []
    for cluster in range(clusters):
        members = np.flatnonzero(found.labels_ == cluster)
        if cluster != found.labels_[0] and len(members):
            chosen.append(int(members[distances[members].argmin()]) - 1)
    return sorted(chosen)


def build_difference_prompt(own: Review, others: Sequence[Review], wording: Wording = REVIEW) -> str:
    """Return the prompt for the difference of a user's review to others of the same item.

    Args:
        own: The user's review.
        others: The other users' reviews.
        wording: Words for the kind of text.
    """
    nothing = Item("", "")  # the item stands in the user's own review
    sections = [_worded(COMPARED, wording), f"{OWN}\n{review_section(own, wording)}"]
    sections += [f"{OTHER}\n{review_section(replace(other, item=nothing), wording)}" for other in others]
    return "\n\n".join([*sections, _worded(COMPARE, wording), DIFFERENCES])


def build_profile_prompt(
    differences: Sequence[tuple[Review, str]], reviews: Sequence[Review], wording: Wording = REVIEW
) -> str:
    """Return the prompt for a user's profile.

    Args:
        differences: A review of the user, of which only what it is about is shown, and how it differs from others.
        reviews: Past reviews of the user, oldest first.
        wording: Words for the kind of text.
    """
    sections = [_worded(PROFILED, wording)] if differences else []
    for own, difference in differences:
        about = query_section(own.item, None, "" if own.item.title else own.title, wording)
        shown = f"{_worded(DIFFERENCE, wording)}\n{difference}"
        sections.append("\n".join([about, shown] if about else [shown]))
    if reviews:
        sections.append(_worded(ALIKE if differences else ALONE, wording))
        sections += [review_section(review, wording) for review in reviews]
    return "\n\n".join([*sections, ORDER, ANSWER])


def _worded(sentence: str, wording: Wording) -> str:
    return sentence.format(text=wording.label.lower(), texts=wording.texts, same=wording.same)


def compare_reviews(
    examples: Sequence[Example],
    comparisons: Sequence[Sequence[Comparison]],
    reviews: Sequence[Sequence[Review]],
    engine: Engine,
    tokenizer: Any,
    *,
    max_prompt_tokens: int,
    difference_tokens: int,
    profile_tokens: int,
    template: Template = PLAIN,
    wording: Wording = REVIEW,
    advance: Callable[[int], None] = no_progress,
) -> tuple[list[list[str]], list[str], Counter[str]]:
    """Let the model write the differences of each example's reviews to those of others, and then the user's profile.

    Args:
        examples: The examples.
        comparisons: For each example, its past reviews beside others'.
        reviews: For each example, the past reviews that its profile is made of too, oldest first.
        engine: Writes the texts; its own limit must not be below either of the two.
        tokenizer: Tokenizer of the engine's model.
        max_prompt_tokens: Maximum number of tokens in a prompt; in a longer one the texts are cut to a common length.
        difference_tokens: Maximum number of tokens in one difference.
        profile_tokens: Maximum number of tokens in one profile.
        template: Opening and closing around a prompt's text.
        wording: Words for the kind of text.
        advance: Receives how many more texts are finished.

    Returns:
        The differences by example and comparison; the profiles, each on one line, "" for an example without reviews;
        and how many texts were written (`differences`, `profiles`), were empty (`empty`), ended at the length limit
        (`cut`), or came from a prompt with cut texts (`prompts_clipped`).

    Raises:
        ModelError: A prompt is too long even with all texts cut to nothing.
    """
    prompts = FittedPrompts(tokenizer, max_prompt_tokens, template)
    counts: Counter[str] = Counter(differences=0, profiles=0, empty=0, cut=0, prompts_clipped=0)
    requests = []
    for example, compared in zip(examples, comparisons, strict=True):
        for one in compared:
            ids, clipped = _difference_prompt(prompts, one, wording)
            counts["prompts_clipped"] += clipped
            requests.append(Request(f"{example.example_id}/difference-{one.position}", ids, limit=difference_tokens))
    answers = iter(engine.generate(requests, advance))
    found = [[taken(next(answers), counts, "differences") for _ in compared] for compared in comparisons]
    requests, described = [], []
    for row, example in enumerate(examples):
        known = [(one.own, text) for one, text in zip(comparisons[row], found[row], strict=True) if text]
        if known or reviews[row]:
            ids, clipped = _profile_prompt(prompts, known, reviews[row], wording)
            counts["prompts_clipped"] += clipped
            requests.append(Request(f"{example.example_id}/profile", ids, limit=profile_tokens))
            described.append(row)
    profiles = [""] * len(examples)
    for row, answer in zip(described, engine.generate(requests, advance), strict=True):
        profiles[row] = taken(answer, counts, "profiles")
    return found, profiles, counts


def _difference_prompt(prompts: FittedPrompts, one: Comparison, wording: Wording) -> tuple[list[int], bool]:
    def build(length: int | None) -> str:
        others = [cut_review(other, length) for other in one.others]
        return build_difference_prompt(cut_review(one.own, length), others, wording)

    longest = max(len(text) for review in (one.own, *one.others) for text in texts_of(review))
    what = f"the differences of a review to {len(one.others)} others"
    return prompts.encode(build, longest, what, "lower evaluate.profiles.others")


def _profile_prompt(
    prompts: FittedPrompts, differences: Sequence[tuple[Review, str]], reviews: Sequence[Review], wording: Wording
) -> tuple[list[int], bool]:
    def build(length: int | None) -> str:
        cut = [(cut_review(own, length), cut_text(difference, length)) for own, difference in differences]
        return build_profile_prompt(cut, [cut_review(review, length) for review in reviews], wording)

    texts = [text for own, difference in differences for text in (*texts_of(replace(own, text="")), difference)]
    texts += [text for review in reviews for text in texts_of(review)]
    what = f"a profile from {len(differences)} differences and {len(reviews)} reviews"
    return prompts.encode(build, max(map(len, texts)), what, "lower evaluate.profiles.compared")


def difference_revision(wording: Wording) -> str:
    """Return the fingerprint of the text of prompts for differences and profiles of one kind of text."""
    probe = Review(Item("item", "description"), 4.5, "title", "text")
    untitled = replace(probe, item=Item("", "description"))
    shown: list[list[tuple[Review, str]]] = [[(probe, "difference"), (untitled, "difference")], []]
    profiles = [build_profile_prompt(known, (probe,), wording) for known in shown]
    return fingerprint([build_difference_prompt(probe, (probe,), wording), *profiles])
