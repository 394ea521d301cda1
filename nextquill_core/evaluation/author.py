"""The author metric: is a text nearer to its user's other reviews than to other users' reviews of the same item?

A text is compared with A other reviews of its user (about other items) and B reviews of the same item by other users.
Its value is the share of the A · B pairs in which the user's own review is nearer, a tie counting one half:

    author(text) = 1 / (A · B) · Σ_a Σ_b [ cos(text, a) > cos(text, b) ] + ½ [ cos(text, a) = cos(text, b) ]

Nearness is the cosine of an encoder's vectors. The share does not grow with the number of reviews on either side, and
it has no unit, so that it can be compared between encoders. Reviews of the same item share its subject with the text,
and the user's other reviews do not. So 0.5 is no boundary: the value of the true review, which is by this user, is the
ceiling to read the others by. A text above it is nearer to old reviews than this user is, for instance a copy of one.

    n examples, A own reviews, B reviews by others, D vector size
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.nn import functional as F

from nextquill_core.evaluation.significance import Floats

TOLERANCE = 1e-6
"""Similarities that differ by no more than this are a tie: the batch of a text decides the last bits of its vector."""
Encoder = Callable[[Sequence[str]], torch.Tensor]
"""From N texts to their vectors, (N, D), fp32 on the CPU."""


class AuthorScorer:
    """Scores texts of the same examples, whose other reviews are encoded once.

    Args:
        encoder: Makes vectors, such as `methods.text_encoder.TextEncoder`.
        own: For each example, the texts of its user's other reviews.
        others: For each example, the texts of other users' reviews of the same item.

    Raises:
        ValueError: The two are not of the same number of examples.
    """

    def __init__(self, encoder: Encoder, own: Sequence[Sequence[str]], others: Sequence[Sequence[str]]) -> None:
        if len(own) != len(others):
            raise ValueError(f"own reviews of {len(own)} examples and others' reviews of {len(others)}")
        self._encoder = encoder
        self._rows = [row for row in range(len(own)) if own[row] and others[row]]
        texts = list(dict.fromkeys(text for row in self._rows for side in (own[row], others[row]) for text in side))
        place = {text: index for index, text in enumerate(texts)}
        self._places = {row: tuple([place[text] for text in side[row]] for side in (own, others)) for row in self._rows}
        self._vectors_ND = _unit_vectors(encoder, texts)
        self._count = len(own)

    def __call__(self, texts: Sequence[str]) -> Floats:
        """Return the statistics of the metric, shape (n, 2): value and 1, or 0 and 0 where there is nothing to measure.

        An empty text scores 0.

        Args:
            texts: One text for each example.

        Raises:
            ValueError: They are not of the same number of examples.
        """
        if len(texts) != self._count:
            raise ValueError(f"{len(texts)} texts for {self._count} examples")
        scores = np.zeros((self._count, 2))
        scores[self._rows, 1] = 1.0
        written = [row for row in self._rows if texts[row].strip()]
        for row, vector_D in zip(written, _unit_vectors(self._encoder, [texts[row] for row in written]), strict=True):
            own, others = (self._vectors_ND[places] @ vector_D for places in self._places[row])
            scores[row, 0] = nearer_share(own.double().numpy(), others.double().numpy())
        return scores


def nearer_share(own_A: Floats, others_B: Floats) -> float:
    """Return the share of pairs in which the own similarity is the larger one; a tie counts one half.

    Args:
        own_A: Similarities to the user's own reviews.
        others_B: Similarities to other users' reviews.
    """
    difference_AB = own_A[:, None] - others_B[None]
    return float(((difference_AB > TOLERANCE) + 0.5 * (np.abs(difference_AB) <= TOLERANCE)).mean())


def _unit_vectors(encoder: Encoder, texts: Sequence[str]) -> torch.Tensor:
    return F.normalize(encoder(texts), dim=-1)
