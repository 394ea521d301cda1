"""The writer: from a person and an item to a draft, by the prompts of the training and the engine of the evaluation.

The draft for an example of the store is the text that evaluation generates for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Self

from nextquill_core.generation.decoding import Contrast
from nextquill_core.generation.engines import Engine, Generation, Journal, Request, no_progress
from nextquill_core.orders import EXAMPLES_PER_SHARD
from nextquill_core.records import Item, Review
from nextquill_core.tokens import PairEncoder
from nextquill_core.writing.draft import Draft, ScoredToken
from nextquill_core.writing.prompter import SANE, Identity, People, Prepared, Preset, Prompter
from nextquill_core.writing.requests import PastReview, WriteRequest, checked
from nextquill_core.writing.scoring import score_pairs


class Writer(Prompter):
    """Writes reviews with the model of one method.

    A writer may be used by several threads; the model works for one at a time.

    Args:
        encoder: Encoder of the method's prompts.
        identity: What decides the texts.
        presets: The decoding presets by name; `sane` is among them.
        engine: Returns the engine of a preset.
        model: Returns the model, and loads it the first time.
        contrast: How the branch without history changes the logits of a steered method; None for other methods.
        people: Stored users and items; None for a writer without a store.
        score_tokens: Token positions of one forward pass when drafts are explained.
    """

    def __init__(
        self,
        encoder: PairEncoder,
        identity: Identity,
        presets: Mapping[str, Preset],
        engine: Callable[[Preset], Engine],
        model: Callable[[], Any],
        *,
        contrast: Contrast | None = None,
        people: People | None = None,
        score_tokens: int = 16384,
    ) -> None:
        super().__init__(encoder, identity, presets, contrast=contrast, people=people)
        self._make_engine = engine
        self._model = model
        self._engines: dict[str, Engine] = {}
        self._score_tokens = score_tokens
        self._lock = threading.RLock()

    @classmethod
    def from_adapter(cls, folder: str | Path, *, base: str | Path | None = None) -> Self:
        """Return the writer of an adapter or merged model that `nextquill export` wrote; no store is needed.

        Args:
            folder: The exported folder.
            base: Folder of the base model, for an adapter whose base model is not on the hub.

        Raises:
            UserError: The folder was written by an earlier version, or it is not that of an adapter.
            ModelError: The base model is missing or another one.
        """
        from nextquill_core.writing.exported import exported_writer

        return exported_writer(cls, Path(folder), None if base is None else Path(base))

    def write(
        self,
        *,
        user: str | None = None,
        history: Iterable[Review | PastReview | Mapping[str, Any]] | None = None,
        item: str | Item | Mapping[str, Any] | None = None,
        rating: float | None = None,
        title: str = "",
        category: str | None = None,
        before: int | None = None,
        example: str | None = None,
        decoding: str = SANE,
        explain: bool = False,
    ) -> Draft:
        """Write one review.

        Args:
            user: Id of a user of the store. The history is the user's stored reviews: those before the user's own
                review of the item if there is one, otherwise all.
            history: Past reviews in place of a user's, oldest first.
            item: Id of an item of the store, or title and description.
            rating: Rating of the review to write; None leaves it open.
            title: Title of the review to write; empty leaves it open.
            category: Category of user and item, needed only if the store has them in several.
            before: Use only reviews of the user that are older than this time, UTC milliseconds.
            example: Id of an example of the store in place of all the above, to write what evaluation writes for it.
            decoding: `paper`, `greedy`, `sampled`, or `sane` for the one of the last two that val chose.
            explain: Also return how much likelier the history made each token.

        Raises:
            UserError: The request cannot be used, or it names an item or example that the store does not have.
        """
        values = {
            "user": user,
            "history": None if history is None else list(history),
            "item": item,
            "rating": rating,
            "title": title,
            "category": category,
            "before": before,
            "example": example,
        }
        return next(self.write_many([values], decoding=decoding, explain=explain))

    def write_many(
        self,
        requests: Iterable[WriteRequest | Mapping[str, Any]],
        *,
        decoding: str = SANE,
        explain: bool = False,
        advance: Callable[[int], None] = no_progress,
        journal: Journal | None = None,
    ) -> Iterator[Draft]:
        """Yield the drafts of many requests in their order, generated in batches as evaluation generates them.

        Args:
            requests: Forms, or the arguments of `write` as mappings.
            decoding: As for `write`.
            explain: As for `write`.
            advance: Receives from time to time how many more texts are finished.
            journal: Keeps finished texts and supplies those of an interrupted run.

        Raises:
            UserError: As for `write`.
        """
        preset = self.preset(decoding)
        waiting = iter(requests)
        while part := list(islice(waiting, EXAMPLES_PER_SHARD)):
            forms = [one if isinstance(one, WriteRequest) else checked(WriteRequest, one, "write") for one in part]
            prepared = self.prepare(forms)
            with self._lock:
                answers = self._answers([one.request for one in prepared], preset, advance, journal)
                tokens = self._explained(prepared, answers) if explain else [()] * len(answers)
            yield from map(self.draft, prepared, answers, [decoding] * len(answers), tokens)

    @property
    def model(self) -> Any:
        """The model, which is loaded when it is first asked for."""
        with self._lock:
            return self._model()

    def _explained(
        self, prepared: Sequence[Prepared], answers: Sequence[Generation]
    ) -> Sequence[tuple[ScoredToken, ...]]:
        """Return the tokens of the answers and their stop tokens, with their probabilities in both branches."""
        pairs = list(map(self.answered, prepared, answers))
        return score_pairs(self.model, self.encoder, pairs, self._score_tokens)

    def _answers(
        self, requests: Sequence[Request], preset: Preset, advance: Callable[[int], None], journal: Journal | None
    ) -> list[Generation]:
        missing = requests if journal is None else journal.missing(requests)
        advance(len(requests) - len(missing))
        found: list[Generation] = []
        if missing:
            name = f"{preset.decoding.name}/{preset.limit}"
            if name not in self._engines:
                self._engines[name] = self._make_engine(preset)
            engine = self._engines[name]
            found = engine.generate(missing, advance, **({} if journal is None else {"keep": journal.keep}))
        return found if journal is None else journal.answers(requests)
