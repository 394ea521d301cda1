"""The author metric of a run: its encoder, the reviews that texts are compared with, and the ceiling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nextquill_core.evaluation.author import AuthorScorer
from nextquill_core.evaluation.ceilings import ceiling
from nextquill_core.evaluation.metrics import AUTHOR
from nextquill_core.ingest.peers import Peers
from nextquill_core.model.packaged import encoder_title
from nextquill_core.pipeline.methods import resampled_users, run_encoder
from nextquill_core.pipeline.run import Run
from nextquill_core.schemas import Example


class RunAuthor:
    """The author metric on the measured examples of a run.

    Args:
        run: The run; `evaluate.retrieval.author` names an encoder, and the sequences are in the store.
        examples: The measured examples.
    """

    def __init__(self, run: Run, examples: Sequence[Example]) -> None:
        settings = run.config.evaluate.retrieval
        if settings.author is None:
            raise ValueError("evaluate.retrieval.author names no encoder")
        self._run = run
        self._examples = examples
        self._encoder = run_encoder(run, settings.author, settings.author_revision)
        self._title = encoder_title(settings.author)
        peers = Peers(run.artifact(run.plan.ingest).folder)
        self.score = AuthorScorer(
            self._encoder,
            [[peers.review(place).text for place in peers.others_of_user(example)] for example in examples],
            [[peers.review(place).text for place in peers.of_target(example)] for example in examples],
        )

    def settings(self) -> dict[str, Any]:
        """Return how the metric is computed, and the value of the true reviews by category with its interval."""
        found = ceiling(
            AUTHOR,
            self.score([example.target.text for example in self._examples]),
            resampled_users(self._examples),
            [example.category for example in self._examples],
            samples=self._run.config.evaluate.bootstrap_samples,
            seed=self._run.config.seed,
        )
        return {
            "by": self._title,
            "max_tokens": self._encoder.max_tokens,
            "vectors": self._encoder.pooling.described["vectors"],
            "similarity": "cosine",
            "ceiling": found,
        }
