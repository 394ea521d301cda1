"""The writer: from a person and an item to a draft, by the prompts of the training and the engine of the evaluation.

The draft for an example of the store is the text that evaluation generates for it. A person without stored reviews gets
a prompt without history, and never another person's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Self

from nextquill_core.errors import UserError
from nextquill_core.generation.decoding import Contrast, Decoding
from nextquill_core.generation.engines import CUT, Engine, Generation, Journal, Request, no_progress
from nextquill_core.orders import EXAMPLES_PER_SHARD
from nextquill_core.plugins import suggestion
from nextquill_core.records import Example, Item, Review
from nextquill_core.tokens import PairEncoder, TokenPair, token_texts
from nextquill_core.writing.draft import Draft, ScoredToken
from nextquill_core.writing.histories import Histories, UserSequence
from nextquill_core.writing.requests import ItemFields, PastReview, WriteRequest, checked
from storage.fingerprint import fingerprint

SANE = "sane"
NO_HISTORY, UNKNOWN = "no history was given", "the store has no reviews of this user"
NO_EARLIER, OWN_REVIEW = (
    "the store has no earlier reviews of this user",
    "the user's own review of this item, and later ones, are left out",
)
"""Notes of drafts."""


@dataclass(frozen=True)
class Preset:
    """How a decoding preset chooses tokens, and how many at most."""

    decoding: Decoding
    limit: int


@dataclass(frozen=True)
class Identity:
    """What decides a writer's texts beside the request.

    Attributes:
        method: Name of the method.
        history: Whether its prompts show a history.
        adapter: Fingerprint of the adapter's artifact; None for a method without one.
        settings: Everything else, as JSON values.
    """

    method: str
    history: bool
    adapter: str | None
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class People:
    """The stored users and items of a writer, and how the ids that callers know become those of the store.

    Attributes:
        histories: The tables.
        ids_of: Returns the ids that a user may have in the store; none for a user who is to be forgotten.
        select: Chooses the reviews to show from the whole history, for a method that does not show the newest; None
            for the newest.
    """

    histories: Histories
    ids_of: Callable[[str], Sequence[str]] = lambda user: (user,)
    select: Callable[[Example, int], Example] | None = None


class Writer:
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
        self.encoder = encoder
        self.identity = identity
        self.presets = presets
        self.people = people
        self._contrast = contrast
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
            found = [self.resolve(form) for form in forms]
            with self._lock:
                drafts = self._drafts([example for example, _ in found], decoding, preset, explain, advance, journal)
            for form, (_, note), draft in zip(forms, found, drafts, strict=True):
                yield replace(draft, note=note, request=form.id)

    def resolve(self, request: WriteRequest) -> tuple[Example, str]:
        """Return the example that a request stands for, with the history to show, and what a reader should know.

        Raises:
            UserError: The request names an item, example or category that the store does not have.
        """
        if request.example is not None:
            sequence, place = self._histories("example").example(request.example)
            *history, review = self._reviews(sequence, place + 1, extra=1)
            example = Example(
                request.example, sequence.user_id, sequence.category, "", replace(review, text=""), tuple(history)
            )
            return self._selected(example), "" if history or not self.identity.history else NO_EARLIER
        sequences = self._sequences(request)
        item, category = self._item(request, sequences)
        target = Review(item, request.rating, request.title, "")
        empty = Example("", request.user or "", category or "", "", target, ())
        if not self.identity.history:
            return empty, f"{self.identity.method} shows no history"
        if request.history is not None:
            past = tuple(one.review(self._past_item(one)) for one in request.history)
            return self._selected(replace(empty, history=past)), "" if past else NO_HISTORY
        if request.user is None:
            return empty, NO_HISTORY
        mine = [sequence for sequence in sequences if category in (None, sequence.category)]
        if len(mine) > 1:
            names = ", ".join(sequence.category for sequence in mine)
            raise UserError(f"the user has reviews in {names}", "category", "name one of them")
        if not mine:
            return empty, f"{UNKNOWN} in {category}" if sequences else UNKNOWN
        (sequence,) = mine
        end = len(sequence.reviews) if request.before is None else sequence.before(request.before)
        own = sequence.first_of(request.item) if isinstance(request.item, str) else None
        note = "" if own is None or own >= end else OWN_REVIEW
        end = end if own is None else min(end, own)
        example = replace(empty, category=sequence.category, history=self._reviews(sequence, end))
        return self._selected(example), note if example.history else NO_EARLIER

    def check(self, requests: Sequence[WriteRequest]) -> None:
        """Make sure that the store has the items, categories and examples of requests, without loading a model.

        Raises:
            UserError: It does not have one; the message has the number of the request.
        """
        named = {request.item for request in requests if isinstance(request.item, str)}
        known = {name for _, name in self._histories("item").items(named)} if named else set()
        for number, request in enumerate(requests, 1):
            try:
                self._check_category(request.category)
                if isinstance(request.item, str) and request.item not in known:
                    raise self._unknown_item(request.item)
                if request.example is not None:
                    self._histories("example").example(request.example)
            except UserError as error:
                raise UserError(error.what, f"request {number}", error.remedy) from None

    @property
    def model(self) -> Any:
        """The model, which is loaded when it is first asked for."""
        with self._lock:
            return self._model()

    def scored(self, examples: Sequence[Example]) -> list[tuple[ScoredToken, ...]]:
        """Return the tokens of the examples' target texts with their probabilities with and without the history.

        Args:
            examples: The examples; the token that ends an answer is counted where the text fits into the limits.
        """
        with self._lock:
            return score_pairs(self.model, self.encoder, self.encoder.encode(examples), self._score_tokens)

    def preset(self, name: str) -> Preset:
        """Return a decoding preset.

        Raises:
            UserError: There is no such preset.
        """
        if name not in self.presets:
            raise UserError(f"unknown decoding `{name}`", "decoding", suggestion(name, self.presets))
        return self.presets[name]

    def _drafts(
        self,
        examples: Sequence[Example],
        decoding: str,
        preset: Preset,
        explain: bool,
        advance: Callable[[int], None],
        journal: Journal | None,
    ) -> list[Draft]:
        pairs = self.encoder.encode(examples)
        shown = [answer.history for answer in self.encoder.shown_answers(examples)]
        requests = [self._request(pair) for pair in pairs]
        answers = self._answers(requests, preset, advance, journal)
        tokens: Sequence[tuple[ScoredToken, ...]] = [()] * len(answers)
        if explain:
            tokens = self.scored(
                [
                    replace(example, target=replace(example.target, text=answer.text))
                    for example, answer in zip(examples, answers, strict=True)
                ]
            )
            stop = self.encoder.stop_id  # not written where the limit ended the text
            tokens = [
                found[:-1] if answer.finish_reason == CUT and found[-1:] and found[-1].token_id == stop else found
                for found, answer in zip(tokens, answers, strict=True)
            ]
        return [
            Draft(
                text=answer.text,
                n_tokens=answer.n_tokens,
                finish_reason=answer.finish_reason,
                history_shown=history,
                note="",
                method=self.identity.method,
                decoding=decoding,
                sampler=preset.decoding.name,
                adapter=self.identity.adapter,
                tokens=found,
            )
            for answer, history, found in zip(answers, shown, tokens, strict=True)
        ]

    def _request(self, pair: TokenPair) -> Request:
        """Return what the engine is asked; a draft without example draws by its prompt, so that it can be repeated."""
        second = pair.counterfactual if self._contrast is not None and pair.has_history else None
        return Request(pair.example_id or fingerprint([pair.factual, second]), pair.factual, second)

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

    def _histories(self, named: str) -> Histories:
        if self.people is None:
            raise UserError(
                "this writer has no store to look it up in",
                named,
                "give history=[…] and item={'title': …, 'description': …}",
            )
        return self.people.histories

    def _sequences(self, request: WriteRequest) -> list[UserSequence]:
        """Return what the store has of the request's user, in the category that the request names or in all."""
        self._check_category(request.category)
        if request.user is None or not self.identity.history:
            return []
        histories = self._histories("user")
        ids = self.people.ids_of(request.user) if self.people else ()
        return histories.sequences(ids, request.category)

    def _check_category(self, category: str | None) -> None:
        if category is None or self.people is None:
            return
        known = self.people.histories.categories
        if category not in known:
            raise UserError(f"no category {category!r} in this store", "category", suggestion(category, known))

    def _item(self, request: WriteRequest, sequences: Sequence[UserSequence]) -> tuple[Item, str | None]:
        """Return the item of a request, and its category if that is known."""
        if not isinstance(request.item, str):
            return (request.item or ItemFields()).item, request.category
        places = self._histories("item").items([request.item], request.category)
        own = {sequence.category for sequence in sequences}
        chosen = [place for place in places if place[0] in own] if len(places) > 1 else list(places)
        if len(chosen) == 1:
            return places[chosen[0]], chosen[0][0]
        if not places:
            raise self._unknown_item(request.item)
        names = ", ".join(category for category, _ in places)
        raise UserError(f"the item {request.item!r} is in {names}", "category", "name one of them")

    def _past_item(self, past: PastReview) -> Item:
        if isinstance(past.item, ItemFields):
            return past.item.item
        found = self._histories("history").items([past.item])
        if not found:
            raise self._unknown_item(past.item)
        return next(iter(found.values()))

    def _unknown_item(self, item_id: str) -> UserError:
        near = self._histories("item").near_items(item_id)
        known = f"use one that it has, for instance {', '.join(map(repr, near))}, or" if near else ""
        remedy = f"{known} give title and description of the item".strip()
        return UserError(f"no item {item_id!r} in this store", "item", remedy)

    def _reviews(self, sequence: UserSequence, end: int, extra: int = 0) -> tuple[Review, ...]:
        """Return a user's reviews before a position: all that the prompt may show, and `extra` more of the newest."""
        selects = self.people is not None and self.people.select is not None
        newest = None if selects else self.encoder.max_history + extra
        return self._histories("user").reviews(sequence, end, newest)

    def _selected(self, example: Example) -> Example:
        if self.people is None or self.people.select is None:
            return example
        return self.people.select(example, self.encoder.max_history)


def score_pairs(
    model: Any,
    encoder: PairEncoder,
    pairs: Sequence[TokenPair],
    batch_tokens: int,
    weights: Callable[[Any, Any], Sequence[float]] | None = None,
) -> list[tuple[ScoredToken, ...]]:
    """Return the answer tokens of pairs with their log-probabilities in both branches; a stop token has no text.

    Args:
        model: A causal language model in evaluation mode.
        encoder: The encoder of the pairs.
        pairs: The pairs.
        batch_tokens: Token positions of one forward pass.
        weights: Returns ω of a pair's tokens from both log-probabilities, (T,) each; None for no weights.
    """
    from nextquill_core.causal.scorer import Scorer
    from nextquill_core.causal.weights import token_effects

    found = []
    for pair, (factual, counterfactual) in zip(pairs, Scorer(model, batch_tokens).score(pairs), strict=True):
        given = weights(factual, counterfactual) if weights else [None] * len(pair.target)
        texts = token_texts(encoder.tokenizer, pair.target)
        if pair.target[-1] == encoder.stop_id:
            texts[-1] = ""
        columns = (
            texts,
            pair.target,
            factual.tolist(),
            counterfactual.tolist(),
            token_effects(factual, counterfactual).tolist(),
            given,
        )
        found.append(tuple(ScoredToken(*values) for values in zip(*columns, strict=True)))
    return found
