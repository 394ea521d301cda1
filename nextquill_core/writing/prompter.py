"""From a request to its prompts, and from an answer to a draft; no model is needed.

A person without stored reviews gets a prompt without history, and never another person's.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from nextquill_core.errors import UserError
from nextquill_core.generation.decoding import Contrast, Decoding
from nextquill_core.generation.engines import CUT, Generation, Request
from nextquill_core.plugins import suggestion
from nextquill_core.records import Example, Item, Review
from nextquill_core.tokens import PairEncoder, TokenPair
from nextquill_core.writing.draft import Draft, ScoredToken
from nextquill_core.writing.histories import Histories, UserSequence
from nextquill_core.writing.requests import ItemFields, PastReview, WriteRequest
from storage.fingerprint import fingerprint

SANE = "sane"
NO_HISTORY, UNKNOWN = "no history was given", "the store has no reviews of this user"
NO_EARLIER, OWN_REVIEW = (
    "the store has no earlier reviews of this user",
    "the user's own review of this item, and later ones, are left out",
)
"""Notes of drafts."""
ANY_RATING = (-math.inf, math.inf)


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
        ratings: Lowest and highest rating of the stored reviews' source; none outside has a meaning for the model.
    """

    histories: Histories
    ids_of: Callable[[str], Sequence[str]] = lambda user: (user,)
    select: Callable[[Example, int], Example] | None = None
    ratings: tuple[float, float] = ANY_RATING


@dataclass(frozen=True)
class Prepared:
    """A request with its prompts.

    Attributes:
        form: The request.
        pair: Token ids of the prompts with and without history.
        history_shown: The past reviews in the prompt, oldest first; a text that was cut to fit is cut here too.
        note: What a reader should know about the history; "" for nothing.
        request: What the engine is asked.
    """

    form: WriteRequest
    pair: TokenPair
    history_shown: tuple[Review, ...]
    note: str
    request: Request


class Prompter:
    """Turns requests into prompts of one method, and answers into drafts.

    It may be used by several threads.

    Args:
        encoder: Encoder of the method's prompts.
        identity: What decides the texts.
        presets: The decoding presets by name; `sane` is among them.
        contrast: How the branch without history changes the logits of a steered method; None for other methods.
        people: Stored users and items; None without a store.
    """

    def __init__(
        self,
        encoder: PairEncoder,
        identity: Identity,
        presets: Mapping[str, Preset],
        *,
        contrast: Contrast | None = None,
        people: People | None = None,
    ) -> None:
        self.encoder = encoder
        self.identity = identity
        self.presets = presets
        self.contrast = contrast
        self.people = people
        self._tokenizing = threading.Lock()  # a tokenizer must not change its settings while another thread uses it

    def prepare(self, forms: Sequence[WriteRequest], contrast: Contrast | None = None) -> list[Prepared]:
        """Return the requests with their prompts, in their order.

        Args:
            forms: The requests.
            contrast: How the branch without history changes the logits; None for the method's own contrast.

        Raises:
            UserError: As for `resolve`.
        """
        found = [self.resolve(form) for form in forms]
        with self._tokenizing:
            encoded = self.encoder.encode_with_history([example for example, _ in found])
        steered = (contrast or self.contrast) is not None
        return [
            Prepared(form, pair, history, note, _engine_request(pair, steered))
            for form, (_, note), (pair, history) in zip(forms, found, encoded, strict=True)
        ]

    def draft(self, prepared: Prepared, answer: Generation, decoding: str, tokens: Sequence[ScoredToken] = ()) -> Draft:
        """Return the draft of an answer.

        Args:
            prepared: The request.
            answer: What the engine answered.
            decoding: Name of the decoding preset.
            tokens: The tokens of the answer and its stop token, with their probabilities; empty if they were not asked
                for.
        """
        if answer.finish_reason == CUT and tokens and tokens[-1].token_id == self.encoder.stop_id:
            tokens = tokens[:-1]  # the limit ended the text, so the model wrote no stop token
        return Draft(
            text=answer.text,
            n_tokens=answer.n_tokens,
            finish_reason=answer.finish_reason,
            history_shown=prepared.history_shown,
            note=prepared.note,
            method=self.identity.method,
            decoding=decoding,
            sampler=self.preset(decoding).decoding.name,
            adapter=self.identity.adapter,
            tokens=tuple(tokens),
            request=prepared.form.id,
        )

    def answered(self, prepared: Prepared, answer: Generation) -> TokenPair:
        """Return the prompts of a request with the answer that a model wrote, for the scorer."""
        with self._tokenizing:
            return self.encoder.with_answer(prepared.pair, answer.text)

    def resolve(self, request: WriteRequest) -> tuple[Example, str]:
        """Return the example that a request stands for, with the history to show, and what a reader should know.

        Raises:
            UserError: The request names an item, example or category that the store does not have, or a rating that
                its source cannot have.
        """
        if request.example is not None:
            example = self.stored_example(request.example)
            example = replace(example, target=replace(example.target, text=""))
            return self._selected(example), "" if example.history or not self.identity.history else NO_EARLIER
        self._check_rating(request.rating)
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

    def stored_example(self, example_id: str) -> Example:
        """Return an example of the store, with as much of its history as a prompt may show.

        Raises:
            UserError: There is no such example, or its user is to be forgotten.
        """
        sequence, place = self._example(example_id)
        *history, review = self._reviews(sequence, place + 1, extra=1)
        return Example(example_id, sequence.user_id, sequence.category, "", review, tuple(history))

    def check(self, requests: Sequence[WriteRequest]) -> None:
        """Make sure that the store has the items, categories and examples of requests, without loading a model.

        Raises:
            UserError: It does not have one, there is no store, or a rating is one that its source cannot have; the
                message has the number of the request.
        """
        named = {name for request in requests for name in self._item_ids(request)} if self.people else set()
        known = {name for _, name in self._histories("item").items(named)} if named else set()
        for number, request in enumerate(requests, 1):
            try:
                self._check_rating(request.rating)
                self._check_category(request.category)
                if request.user is not None and self.identity.history:
                    self._histories("user")
                if unknown := [name for name in self._item_ids(request) if name not in known]:
                    raise self._unknown_item(unknown[0])
                if request.example is not None:
                    self._example(request.example)
            except UserError as error:
                raise UserError(error.what, f"request {number}", error.remedy) from None

    def preset(self, name: str) -> Preset:
        """Return a decoding preset.

        Raises:
            UserError: There is no such preset.
        """
        if name not in self.presets:
            raise UserError(f"unknown decoding `{name}`", "decoding", suggestion(name, self.presets))
        return self.presets[name]

    def _histories(self, named: str) -> Histories:
        if self.people is None:
            raise UserError(
                "this writer has no store to look it up in",
                named,
                "give history=[…] and item={'title': …, 'description': …}",
            )
        return self.people.histories

    def _example(self, example_id: str) -> tuple[UserSequence, int]:
        """Return the user of an example and the position of its target; those of a user to be forgotten are unknown."""
        histories = self._histories("example")
        sequence, place = histories.example(example_id)
        if self.people and not self.people.ids_of(sequence.user_id):
            raise histories.no_example(example_id)
        return sequence, place

    def _sequences(self, request: WriteRequest) -> list[UserSequence]:
        """Return what the store has of the request's user, in the category that the request names or in all."""
        self._check_category(request.category)
        if request.user is None or not self.identity.history:
            return []
        histories = self._histories("user")
        ids = self.people.ids_of(request.user) if self.people else ()
        return histories.sequences(ids, request.category)

    def _check_rating(self, rating: float | None) -> None:
        lowest, highest = self.people.ratings if self.people else ANY_RATING
        if rating is not None and not lowest <= rating <= highest:
            remedy = f"give one from {lowest:g} to {highest:g}, or none"
            raise UserError(f"no review here has the rating {rating:g}", "rating", remedy)

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

    def _item_ids(self, request: WriteRequest) -> list[str]:
        """Return the ids of items that must be in the store: those of the request and of the past reviews it shows."""
        shown = (request.history or ()) if self.identity.history else ()
        return [item for item in (request.item, *(past.item for past in shown)) if isinstance(item, str)]

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


def _engine_request(pair: TokenPair, steered: bool) -> Request:
    """Return what the engine is asked; a draft without example draws by its prompt, so that it can be repeated."""
    second = pair.counterfactual if steered and pair.has_history else None
    return Request(pair.example_id or fingerprint([pair.factual, second]), pair.factual, second)
