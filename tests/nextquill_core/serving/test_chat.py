"""OpenAI's own client against the server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from openai import BadRequestError, NotFoundError, OpenAI, UnprocessableEntityError

from nextquill_core.pipeline.run import Run
from tests.nextquill_core.serving.test_drafts import ask, events
from tests.servers import KETTLE

pytestmark = pytest.mark.pipeline

MESSAGE: Any = [{"role": "user", "content": "A kettle\nof steel"}]


@pytest.fixture(scope="module")
def openai(address: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_a_message_stands_for_the_item(openai: OpenAI, client: httpx.Client, users: list[str], run: Run) -> None:
    draft = ask(client, user=users[0], rating=4, title="Good")
    found = openai.chat.completions.create(
        model="nextquill", messages=MESSAGE, user=users[0], metadata={"rating": "4", "title": "Good"}
    )
    (choice,) = found.choices
    assert (choice.message.content, choice.finish_reason) == (draft["text"], draft["finish_reason"])
    assert found.model == run.plan.train["nextquill"].fingerprint
    assert found.usage is not None
    assert (found.usage.completion_tokens, found.usage.prompt_tokens) == (draft["n_tokens"], draft["prompt_tokens"])
    about = found.model_extra["nextquill"]  # type: ignore[index]
    assert about["history_shown"] == draft["history_shown"]
    assert (about["method"], about["note"]) == ("nextquill", "")
    named = openai.chat.completions.create(
        model=found.model,
        messages=[{"role": "user", "content": [{"type": "text", "text": "not read"}]}],
        user=users[0],
        metadata={"item_title": KETTLE["title"], "item_description": KETTLE["description"], "rating": "4",
                  "title": "Good", "explain": "true"},
    )  # fmt: skip
    assert named.choices[0].message.content == draft["text"]
    assert named.model_extra["nextquill"]["tokens"]  # type: ignore[index]


def test_a_stream_is_the_same_text(openai: OpenAI, client: httpx.Client, users: list[str]) -> None:
    text = ask(client, user=users[1], decoding="greedy")["text"]
    chunks = list(
        openai.chat.completions.create(
            model="nextquill", messages=MESSAGE, user=users[1], temperature=0, stream=True,
            stream_options={"include_usage": True},
        )
    )  # fmt: skip
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices) == text
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices][-1] == "length"
    assert chunks[-1].usage is not None
    assert not chunks[-1].choices
    assert len({chunk.id for chunk in chunks}) == 1
    raw = events(client, "/v1/chat/completions", model="nextquill", messages=MESSAGE, stream=True)
    assert raw[-1] == ("", "[DONE]")
    assert not any(part.get("usage") for _, part in raw[:-1])


def test_an_unknown_user_is_said(openai: OpenAI) -> None:
    found = openai.chat.completions.create(model="nextquill", messages=MESSAGE, user="a stranger")
    about = found.model_extra["nextquill"]  # type: ignore[index]
    assert (about["history_shown"], about["note"]) == ([], "the store has no reviews of this user")


def test_models_are_named_by_fingerprint(openai: OpenAI, run: Run) -> None:
    models = {model.id: model for model in openai.models.list()}
    adapters = {run.plan.train[name].fingerprint: name for name in ("nextquill", "contextsft")}
    assert {name: model.model_extra["method"] for name, model in models.items()} == {  # type: ignore[index]
        **adapters, "latestk": "latestk",
    }  # fmt: skip
    assert openai.models.retrieve("nextquill").id == run.plan.train["nextquill"].fingerprint
    with pytest.raises(NotFoundError, match="`gpt-5` is not served"):
        openai.models.retrieve("gpt-5")
    with pytest.raises(NotFoundError) as caught:
        openai.chat.completions.create(model="gpt-5", messages=MESSAGE)
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"messages": [{"role": "system", "content": "Be brief."}, *MESSAGE]}, "`messages.0`, role system"),
        ({"messages": MESSAGE * 2}, "not a conversation"),
        ({"messages": []}, "`messages`"),
        ({"metadata": {"itm": "B1"}}, "`metadata.itm`: unknown; did you mean `item`?"),
        ({"metadata": {"item": "B1"}}, "no item 'B1' in this store"),
        ({"metadata": {"rating": "five"}}, "`rating`"),
        ({"metadata": {"decoding": "sain"}}, "unknown decoding `sain`"),
        ({"temperature": 0.7}, "`temperature`: a draft is decoded by a preset"),
        ({"n": 2}, "`n`"),
        ({"tools": []}, "`tools`: there is no such field"),
    ],
)
def test_what_would_be_ignored_is_refused(openai: OpenAI, fields: dict[str, Any], words: str) -> None:
    with pytest.raises((UnprocessableEntityError, BadRequestError)) as caught:
        openai.chat.completions.create(**{"model": "nextquill", "messages": MESSAGE} | fields)
    assert words in str(caught.value)


def test_a_preset_may_be_named_beside_a_temperature(openai: OpenAI, client: httpx.Client) -> None:
    found = openai.chat.completions.create(
        model="nextquill", messages=MESSAGE, temperature=0.7, metadata={"decoding": "paper"}, max_completion_tokens=4
    )
    assert found.choices[0].message.content == ask(client, decoding="paper", max_tokens=4)["text"]
