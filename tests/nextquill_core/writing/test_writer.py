"""A draft shows this person's history and no other's, whatever the request names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nextquill_core.causal.scorer import Scorer
from nextquill_core.generation.decoding import steering
from nextquill_core.generation.engines import Request
from nextquill_core.ingest.privacy import Privacy
from nextquill_core.records import Item, Review
from nextquill_core.writing import prompter as notes
from nextquill_core.writing.histories import Histories
from nextquill_core.writing.prompter import People
from nextquill_core.writing.writer import Writer
from storage import UserError
from tests.writers import LIMIT, tiny_writer, write_people

KETTLE = {"title": "A kettle", "description": "of steel"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("people")
    write_people(folder)
    return folder


@pytest.fixture
def writer(tiny_model: Any, tiny_tokenizer: Any, store: Path) -> Writer:
    return tiny_writer(tiny_model, tiny_tokenizer, People(Histories(store)))


def texts(reviews: tuple[Review, ...]) -> list[str]:
    return [review.text for review in reviews]


def shown(writer: Writer, **request: Any) -> tuple[list[str], str]:
    """Return the texts of the past reviews that a request shows, and the note, without the model."""
    from nextquill_core.writing.requests import WriteRequest, checked

    example, note = writer.resolve(checked(WriteRequest, request, "the test"))
    return texts(example.history), note


def test_a_user_s_newest_reviews_are_shown_and_those_of_no_other(writer: Writer) -> None:
    assert shown(writer, user="ann", item="B7") == ([f"ann wrote Books {one} " for one in (2, 3, 4)], "")
    assert shown(writer, user="ann", item=KETTLE)[0] == [f"ann wrote Books {one} " for one in (2, 3, 4)]
    assert shown(writer, user="ann", item="B7", before=2000)[0] == [f"ann wrote Books {one} " for one in (0, 1)]
    for absent in ("an", "annn", "Ann", ""):
        assert shown(writer, user=absent, item="B7") == ([], notes.UNKNOWN)
    assert shown(writer, item="B7") == ([], notes.NO_HISTORY)
    assert shown(writer, user="ann", item="B7", before=0) == ([], notes.NO_EARLIER)


def test_a_user_s_own_review_of_the_item_is_never_shown(writer: Writer) -> None:
    assert shown(writer, user="ann", item="B3") == ([f"ann wrote Books {one} " for one in (0, 1, 2)], notes.OWN_REVIEW)
    assert shown(writer, user="ann", item="B3", before=9000)[1] == notes.OWN_REVIEW
    assert shown(writer, user="ann", item="B3", before=1000) == (["ann wrote Books 0 "], "")
    assert shown(writer, user="ann", item="B0") == ([], notes.NO_EARLIER)


def test_the_category_is_that_of_item_and_user(writer: Writer) -> None:
    assert shown(writer, user="both", item="F7")[0][-1] == "both wrote Films 4 "
    assert shown(writer, user="ann", item="F7") == ([], f"{notes.UNKNOWN} in Films")
    assert shown(writer, user="ann", item="shared")[0][-1] == "ann wrote Books 4 "
    assert shown(writer, user="both", item="shared", category="Films")[0][-1] == "both wrote Films 4 "
    assert shown(writer, user="both", item=KETTLE, category="Books")[0][-1] == "both wrote Books 4 "
    for request, words in (
        ({"user": "both", "item": "shared"}, "the item 'shared' is in Books, Films"),
        ({"user": "both", "item": KETTLE}, "the user has reviews in Books, Films"),
        ({"user": "both", "item": "shared", "category": "Film"}, "did you mean `Films`?"),
        ({"user": "ann", "item": "B77"}, "no item 'B77' in this store; use one that it has, for instance 'B7'"),
        ({"example": "Books:ann:1"}, "there is no example 'Books:ann:1'"),
    ):
        with pytest.raises(UserError) as caught:
            shown(writer, **request)
        assert words in str(caught.value)


def test_a_rating_is_one_that_the_source_can_have(tiny_model: Any, tiny_tokenizer: Any, store: Path) -> None:
    writer = tiny_writer(tiny_model, tiny_tokenizer, People(Histories(store), ratings=(0.0, 10.0)))
    for rating in (0, 10, None):
        assert shown(writer, user="ann", item="B7", rating=rating)[0]
    for rating in (-0.5, 10.5):
        with pytest.raises(UserError, match=rf"rating: no review here has the rating {rating}; give one from 0 to 10"):
            shown(writer, user="ann", item="B7", rating=rating)


def test_a_forgotten_user_is_unknown_and_a_pseudonym_is_found(
    tiny_model: Any, tiny_tokenizer: Any, store: Path, tmp_path: Path
) -> None:
    privacy = Privacy(key=b"k" * 32, pseudonymize=True)
    histories = Histories(store)
    hidden = tiny_writer(tiny_model, tiny_tokenizer, People(histories, Privacy(forget=frozenset({"ann"})).stored_ids))
    assert shown(hidden, user="ann", item="B7") == ([], notes.UNKNOWN)
    assert shown(hidden, user="both", item="B7")[0]
    assert privacy.stored_ids("ann") == ("ann", privacy.pseudonym("ann"))
    for listed in ("ann", privacy.pseudonym("ann")):
        forgetting = replace(privacy, forget=frozenset({listed}))
        assert forgetting.stored_ids("ann") == forgetting.stored_ids(privacy.pseudonym("ann")) == ()
        assert forgetting.stored_ids("both")


def test_people_and_things_never_seen_need_no_store(tiny_model: Any, tiny_tokenizer: Any) -> None:
    writer = tiny_writer(tiny_model, tiny_tokenizer)
    past = [{"item": KETTLE, "text": "It boils fast."}, Review(Item("A pan", ""), 2.0, "bad", "It burns.")]
    draft = writer.write(history=past, item=KETTLE, rating=5, title="Good")
    assert texts(draft.history_shown) == ["It boils fast.", "It burns."]
    assert (draft.method, draft.decoding, draft.sampler, draft.note) == ("nextquill", "sane", "greedy", "")
    assert 0 < draft.n_tokens <= LIMIT
    assert draft == writer.write(history=past, item=Item(**KETTLE), rating=5, title="Good")
    assert draft.to_dict()["history_shown"][1]["item"] == {"title": "A pan", "description": ""}
    for request in ({"user": "ann", "item": KETTLE}, {"item": "B1"}, {"example": "Books:ann:3"}):
        with pytest.raises(UserError, match="this writer has no store"):
            writer.write(**request)
    with pytest.raises(UserError, match="unknown decoding `sain`; did you mean"):
        writer.write(item=KETTLE, decoding="sain")


def test_a_method_without_history_shows_none(tiny_model: Any, tiny_tokenizer: Any, store: Path) -> None:
    writer = tiny_writer(tiny_model, tiny_tokenizer, People(Histories(store)), history=0)
    assert shown(writer, user="ann", item="B7") == ([], "sft shows no history")
    assert shown(writer, example="Books:ann:3") == ([], "")


def test_many_drafts_are_those_of_single_requests_in_order(writer: Writer) -> None:
    requests: list[dict[str, Any]] = [
        {"user": user, "item": item, "rating": rating, "id": f"{user} {item}"}
        for user, item, rating in (("ann", "B6", 5), ("both", "F6", 1), ("unknown", "B5", 3), ("ann", "B6", 1))
    ]
    for decoding in ("paper", "sampled"):
        many = list(writer.write_many(requests, decoding=decoding))
        assert [draft.request for draft in many] == [request["id"] for request in requests]
        for request, draft in zip(requests, many, strict=True):
            single = writer.write(**{name: value for name, value in request.items() if name != "id"}, decoding=decoding)
            assert replace(single, request=draft.request) == draft


def test_an_explained_draft_has_the_scorer_s_numbers(writer: Writer, tiny_model: Any) -> None:
    draft = writer.write(user="ann", item="B7", rating=4, decoding="paper", explain=True)
    example, _ = writer.resolve(request_of(user="ann", item="B7", rating=4))
    (pair,) = writer.encoder.encode([replace(example, target=replace(example.target, text=draft.text))])
    ((factual, counterfactual),) = Scorer(tiny_model, 4096).score([pair])
    count = len(draft.tokens)
    assert "".join(token.text for token in draft.tokens) == draft.text
    assert [token.token_id for token in draft.tokens] == pair.target[:count]
    assert [token.logp_with for token in draft.tokens] == factual.tolist()[:count]
    assert [token.logp_without for token in draft.tokens] == counterfactual.tolist()[:count]
    for token in draft.tokens:
        assert token.effect == pytest.approx(token.p_with - token.p_without, abs=1e-6)
    alone = writer.write(item="B7", rating=4, explain=True)
    assert {token.effect for token in alone.tokens} <= {0.0}


def request_of(**values: Any) -> Any:
    from nextquill_core.writing.requests import WriteRequest, checked

    return checked(WriteRequest, values, "the test")


def test_a_steered_draft_is_contrasted_with_the_prompt_without_history(
    tiny_model: Any, tiny_tokenizer: Any, store: Path
) -> None:
    asked: list[Request] = []

    class Recorded:
        def generate(self, requests: list[Request], advance: Any, **_: Any) -> list[Any]:
            from nextquill_core.generation.engines import Generation

            asked.extend(requests)
            return [Generation("x", 1, "stop") for _ in requests]

    people = People(Histories(store))
    for contrast in (steering(1.0), None):
        writer = tiny_writer(
            tiny_model, tiny_tokenizer, people, contrast=contrast, engine=lambda _: Recorded()  # type: ignore[arg-type,return-value]
        )  # fmt: skip
        writer.write(user="ann", item="B7")
        writer.write(item="B7")
    steered, steered_alone, plain, plain_alone = asked
    assert steered.prompt == plain.prompt
    assert steered.counterfactual == steered_alone.prompt == plain_alone.prompt
    assert steered_alone.counterfactual is plain.counterfactual is plain_alone.counterfactual is None
