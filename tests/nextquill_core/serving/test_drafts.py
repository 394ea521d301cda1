"""Drafts over HTTP are those of the writer, each as if it had been asked alone; what is wrong is one line."""

from __future__ import annotations

import json
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from nextquill_core.pipeline.run import Run
from nextquill_core.pipeline.writing import run_writer
from nextquill_core.serving.deployment import Rollout
from nextquill_core.serving.drafts import MOST_REVIEWS
from nextquill_core.writing import prompter as notes
from tests.servers import KETTLE, client_of

pytestmark = pytest.mark.pipeline

PAST = [{"item": {"title": "A pan"}, "rating": 2, "title": "Burns", "text": "It burns whatever it should fry."}]


def ask(client: httpx.Client, **body: Any) -> dict[str, Any]:
    answer = client.post("/v1/drafts", json={"item": KETTLE, **body})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def events(client: httpx.Client, path: str = "/v1/drafts", **body: Any) -> list[tuple[str, Any]]:
    """Return the events of a streamed answer: their types and data."""
    with client.stream("POST", path, json=body) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        text = answer.read().decode()
    found = []
    for part in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in part.splitlines())
        if "data" in fields:
            data = fields["data"]
            found.append((fields.get("event", ""), data if data == "[DONE]" else json.loads(data)))
    return found


def test_a_draft_is_the_writer_s(client: httpx.Client, run: Run, users: list[str]) -> None:
    for method, adapter in (("nextquill", run.plan.train["nextquill"].fingerprint), ("latestk", None)):
        expected = run_writer(run, method).write(user=users[0], item=KETTLE, rating=4, title="Good", explain=True)
        found = ask(client, user=users[0], rating=4, title="Good", method=method, explain=True)
        assert found["text"] == expected.text
        assert (found["adapter"], found["model"]) == (adapter, adapter or "latestk")
        assert [review["text"] for review in found["history_shown"]] == [one.text for one in expected.history_shown]
        assert [token["token_id"] for token in found["tokens"]] == [token.token_id for token in expected.tokens]
        for token, other in zip(found["tokens"], expected.tokens, strict=True):
            assert token["logp_with"] == pytest.approx(other.logp_with, abs=1e-4)
            assert token["effect"] == pytest.approx(other.effect, abs=1e-4)
        assert "".join(unit["text"] for unit in found["units"]) == found["text"]
        assert found["note"] == ""
    assert ask(client, user=users[0])["method"] == "nextquill", "the default method"


def test_a_person_s_own_history_comes_with_the_request(client: httpx.Client) -> None:
    found = ask(client, history=PAST, rating=2)
    assert [review["text"] for review in found["history_shown"]] == ["It burns whatever it should fry."]
    assert found["history_shown"][0]["item"] == {"title": "A pan", "description": ""}


def test_an_unknown_user_gets_no_history_and_the_answer_says_so(client: httpx.Client, users: list[str]) -> None:
    for user, note in (("a stranger", notes.UNKNOWN), (None, notes.NO_HISTORY), (users[0][:-1], notes.UNKNOWN)):
        found = ask(client, **({} if user is None else {"user": user}))
        assert (found["history_shown"], found["note"]) == ([], note)


def mixed(users: list[str], count: int) -> list[dict[str, Any]]:
    """Return different requests: methods, users, presets, steering, explained or not, streamed or not."""
    draw = random.Random(7)
    return [
        {
            "item": {"title": f"Item {number}", "description": "of steel " * draw.randint(0, 20)},
            **draw.choice([{"user": draw.choice(users)}, {"user": "unknown"}, {"history": PAST}, {}]),
            "rating": draw.choice([1, 3, 5]),
            "method": draw.choice(["nextquill", "contextsft", "latestk"]),
            "decoding": draw.choice(["greedy", "greedy", "paper", "sampled"]),
            **draw.choice([{}, {}, {"strength": 1.0}, {"strength": -0.5}, {"max_tokens": 3}]),
            "explain": number % 5 == 0,
            "stream": number % 4 == 0,
        }
        for number in range(count)
    ]


def answer_to(client: httpx.Client, request: dict[str, Any]) -> dict[str, Any]:
    """Return a draft, whether it is streamed or not."""
    if not request["stream"]:
        return ask(client, **request)
    *parts, (kind, draft) = events(client, **request)
    assert kind == "draft"
    assert {name for name, _ in parts} <= {"text"}
    assert "".join(data["text"] for _, data in parts) == draft["text"]
    found: dict[str, Any] = draft
    return found


def test_forty_concurrent_requests_get_what_each_gets_alone(client: httpx.Client, users: list[str]) -> None:
    requests = mixed(users, 40)
    alone = [answer_to(client, request) for request in requests]
    assert len({draft["text"] for draft in alone}) > 20
    with ThreadPoolExecutor(40) as pool:
        together = list(pool.map(lambda request: answer_to(client, request), requests))
    for one, other in zip(alone, together, strict=True):
        scores, other_scores = (draft.pop("tokens") for draft in (one, other))
        for name in ("units", "likelier_words"):  # colours of numbers that differ by rounding
            one.pop(name), other.pop(name)
        assert one == other
        assert [token["logp_with"] for token in scores] == pytest.approx(
            [token["logp_with"] for token in other_scores], abs=1e-4
        )


def test_steering_by_0_changes_nothing_and_by_minus_1_forgets_the_history(
    client: httpx.Client, users: list[str]
) -> None:
    plain = ask(client, user=users[0], decoding="greedy")
    assert ask(client, user=users[0], decoding="greedy", strength=0)["text"] == plain["text"]
    blind = ask(client, user=users[0], decoding="greedy", strength=-1)
    assert blind["text"] == ask(client, decoding="greedy")["text"]
    assert blind["strength"] == -1


def test_a_seed_draws_again(client: httpx.Client, users: list[str]) -> None:
    texts = [ask(client, user=users[0], decoding="sampled", seed=seed)["text"] for seed in (1, 1, 2, 3)]
    assert texts[0] == texts[1]
    assert len(set(texts)) > 1


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"item": "nothing"}, 422, "item: no item 'nothing' in this store"),
        ({}, 422, "item is missing: give an id of the store, or title and description"),
        ({"item": KETTLE, "starz": 5}, 422, "`starz`: there is no such field"),
        ({"item": KETTLE, "rating": "five"}, 422, "`rating`"),
        ({"item": KETTLE, "rating": 9}, 422, "rating: no review here has the rating 9; give one from 1 to 5, or none"),
        ({"item": KETTLE, "rating": 1e999}, 422, "`rating`: Input should be a finite number"),
        ({"item": KETTLE, "decoding": "sain"}, 422, "unknown decoding `sain`; did you mean `sane`?"),
        ({"item": KETTLE, "method": "nextquil"}, 404, "`nextquil` is not served: did you mean `nextquill`?"),
        ({"item": KETTLE, "method": "0123456789abcdef"}, 404, "`0123456789abcdef` is not served"),
        ({"item": KETTLE, "user": "U", "history": []}, 422, "user and history are two histories"),
        ({"item": KETTLE, "category": "Toys"}, 422, "no category 'Toys' in this store"),
        ({"example": "Small:U:3"}, 422, "there is no example"),
        ({"item": KETTLE, "strength": 99}, 422, "`strength`: Input should be less than or equal to 5"),
        ({"item": KETTLE, "max_tokens": 0}, 422, "`max_tokens`"),
        ({"item": {"title": "t" * 1001}}, 422, "title has 1,001 characters; send at most 1,000"),
        ({"item": KETTLE, "history": [{"item": KETTLE, "text": "x" * 20_001}]}, 422, "text has 20,001 characters"),
        ({"item": KETTLE, "history": [PAST[0]] * (MOST_REVIEWS + 1)}, 422, "history has 501 entries"),
        ({"item": KETTLE, "history": [{"item": KETTLE}]}, 422, "`history.0.text`: Field required"),
        ([], 422, "valid dictionary"),
    ],
)
def test_what_is_wrong_is_one_line(client: httpx.Client, body: Any, status: int, words: str) -> None:
    answer = client.post("/v1/drafts", content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert words in error["message"]
    assert "\n" not in error["message"]
    assert error["type"] == "invalid_request_error"
    assert answer.headers["x-request-id"]


def test_what_is_no_request_is_one_line(client: httpx.Client) -> None:
    for answer, status, words in (
        (client.post("/v1/drafts", content=b"{"), 422, "valid dictionary"),
        (client.post("/v1/drafts", content=b"{", headers={"Content-Type": "application/json"}), 422, "is not JSON"),
        (client.get("/v1/drafts"), 405, "Method Not Allowed"),
        (client.get("/v1/nothing"), 404, "Not Found"),
        (client.get("/docs"), 404, "Not Found"),
    ):
        assert answer.status_code == status
        assert words in answer.json()["error"]["message"]


def test_a_body_that_is_too_large_is_refused_unread(client: httpx.Client) -> None:
    large = json.dumps({"item": KETTLE, "title": "x" * 1_000_000}).encode()
    for content in (large, iter([large[:500_000], large[500_000:]])):  # with a length, and in chunks without
        answer = client.post("/v1/drafts", content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code == 413
        assert "larger than 1,000,000 bytes" in answer.json()["error"]["message"]


def test_requests_beyond_the_limit_are_told_to_wait(rollout: Rollout, users: list[str]) -> None:
    with client_of(rollout, most_requests=2) as client, ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda _: client.post("/v1/drafts", json={"item": KETTLE, "explain": True}), range(12)))
        assert {answer.status_code for answer in found} == {200, 429}
        refused = next(answer for answer in found if answer.status_code == 429)
        assert refused.headers["retry-after"] == "1"
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert ask(client, user=users[0]), "the places are free again"
        assert "nextquill_refused_total{" not in client.get("/metrics").text


def test_a_client_that_leaves_frees_its_place(rollout: Rollout, address: str) -> None:
    deployment = rollout.current
    assert deployment is not None
    waiting = threading.Event()
    rollout.current.backend._do(waiting.wait)  # type: ignore[union-attr]  # the model is busy with something else
    try:
        for stream in (False, True):
            with pytest.raises(httpx.TimeoutException), httpx.Client(base_url=address, timeout=1.0) as leaving:
                answer = leaving.post("/v1/drafts", json={"item": KETTLE, "stream": stream})
                answer.read()
    finally:
        waiting.set()
    with httpx.Client(base_url=address, timeout=60) as client:
        assert ask(client)
    assert deployment.users == 0


def test_a_key_is_asked_for_and_another_host_is_refused(rollout: Rollout) -> None:
    with client_of(rollout, key="s3cret") as client:
        for headers in ({}, {"Authorization": "Bearer other"}, {"Authorization": "s3cret"}):
            answer = client.get("/v1/models", headers=headers)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            assert "s3cret" not in answer.text
        assert client.get("/v1/models", headers={"Authorization": "Bearer s3cret"}).status_code == 200
        assert {client.get(path).status_code for path in ("/", "/healthz", "/readyz", "/metrics")} == {200}
        for host in ("evil.example", "127.0.0.1.evil.example", ""):
            answer = client.get("/v1/models", headers={"Host": host, "Authorization": "Bearer s3cret"})
            assert answer.status_code == 400
        assert client.get("/healthz", headers={"Host": "LocalHost:1"}).status_code == 200
