"""What surrounds the drafts: health, metrics, the log, the description of the API, and the lists of the page."""

from __future__ import annotations

import json
import logging
import re
from typing import Any

import httpx
import pytest

from nextquill_core.pipeline.run import Run
from nextquill_core.serving.deployment import Rollout
from nextquill_core.serving.logs import log_as_json
from nextquill_core.serving.settings import ServeSettings
from nextquill_core.writing.histories import Histories
from tests.nextquill_core.serving.test_drafts import ask
from tests.servers import KETTLE, client_of

pytestmark = pytest.mark.pipeline


def test_health_and_readiness(client: httpx.Client, run: Run) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    ready = client.get("/readyz").json()
    assert ready["status"] == "ready"
    assert ready["models"]["nextquill"] == run.plan.train["nextquill"].fingerprint


def metrics(client: httpx.Client) -> dict[str, float]:
    """Return the samples by name and labels."""
    found = client.get("/metrics")
    assert found.headers["content-type"].startswith("text/plain")
    lines = (line.rsplit(" ", 1) for line in found.text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in lines}


def test_metrics_count_what_was_written(client: httpx.Client, users: list[str], run: Run) -> None:
    model = run.plan.train["nextquill"].fingerprint
    before = metrics(client)
    drafts = [ask(client, user=users[0]), ask(client, user="a stranger")]
    after = metrics(client)

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0)

    assert grown(f'nextquill_new_tokens_total{{model="{model}"}}') == sum(draft["n_tokens"] for draft in drafts)
    assert grown(f'nextquill_drafts_total{{history="shown",model="{model}"}}') == 1
    assert grown(f'nextquill_drafts_total{{history="none",model="{model}"}}') == 1
    assert grown('nextquill_requests_total{route="/v1/drafts",status="200"}') == 2
    assert grown('nextquill_request_seconds_count{route="/v1/drafts"}') == 2
    assert after["nextquill_in_flight"] == 0
    assert after[f'nextquill_model{{method="nextquill",model="{model}"}}'] == 1
    assert after["nextquill_refresh_failures"] == 0


def test_the_api_describes_itself_without_another_host(client: httpx.Client) -> None:
    described = client.get("/openapi.json").json()
    assert {"/v1/drafts", "/v1/chat/completions", "/v1/models", "/healthz", "/metrics"} <= set(described["paths"])
    assert {client.get(path).status_code for path in ("/docs", "/redoc")} == {404}
    form = described["components"]["schemas"]["DraftForm"]["properties"]
    assert {name for name, field in form.items() if not field.get("description")} == set()
    assert described["paths"]["/v1/drafts"]["post"]["responses"].keys() >= {"200", "404", "413", "422", "429", "503"}


def test_the_log_has_no_texts_and_no_users_unless_asked(
    rollout: Rollout, users: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for log_texts in (False, True):
        log_as_json()
        with client_of(rollout, log_texts=log_texts) as client:
            rare = {"user": users[0], "item": KETTLE, "title": "A very rare title"}
            answers = [client.post("/v1/drafts", json=body) for body in (rare, {"item": "nothing"})]
            answers.append(client.get("/healthz"))
        draft, sent = answers[0].json(), [answer.headers["x-request-id"] for answer in answers]
        lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
        # The server of the other tests logs a request after its answer, so that a line of it may be among these.
        lines = [line for line in lines if line.get("id", sent[0]) in sent]
        whole = json.dumps(lines)
        assert ("A very rare title" in whole, draft["text"] in [line.get("text") for line in lines]) == (log_texts,) * 2
        written, refused = [line for line in lines if line["message"] == "request"]
        assert (written["status"], written["model"], written["new_tokens"]) == (200, draft["model"], draft["n_tokens"])
        assert (refused["route"], refused["status"]) == ("/v1/drafts", 422)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", written["at"])
        if not log_texts:
            assert users[0] not in whole
    logging.getLogger("nextquill_core").handlers = []


def test_users_are_listed_from_any_place(client: httpx.Client, users: list[str]) -> None:
    def listed(**query: Any) -> list[str]:
        found: list[str] = client.get("/v1/users", params=query).json()["users"]
        return found

    assert listed(count=50) == users
    assert listed(count=3) == users[:3]
    assert listed(start=users[5], count=2) == users[5:7]
    assert listed(start=users[-1] + "z") == []
    assert client.get("/v1/users", params={"count": 1000}).status_code == 422


def test_reviews_and_items_are_those_of_the_store(client: httpx.Client, users: list[str], run: Run) -> None:
    found = client.get(f"/v1/users/{users[0]}/reviews").json()["reviews"]
    histories = Histories(run.artifact(run.plan.ingest).folder)
    (stored,) = histories.sequences([users[0]])
    newest = stored.reviews[::-1][:20]
    assert [(one["item_id"], one["text"]) for one in found] == [(row["item_id"], row["text"]) for row in newest]
    assert client.get("/v1/users/stranger/reviews").json()["reviews"] == []
    item = found[0]
    for text in (item["item_id"], item["item"]["title"].upper()):
        items = client.get("/v1/items", params={"text": text}).json()["items"]
        assert item["item_id"] in [one["item_id"] for one in items]
    assert client.get("/v1/items", params={"text": " "}).json()["items"] == []
    assert len(client.get("/v1/items", params={"text": "e", "count": 3}).json()["items"]) == 3
    draft = ask(client, user=users[0], item=item["item_id"])
    assert item["text"] not in [review["text"] for review in draft["history_shown"]]


def test_lists_and_page_can_be_left_out(rollout: Rollout) -> None:
    assert [ServeSettings(host=host).with_page for host in ("127.0.0.1", "0.0.0.0")] == [True, False]  # noqa: S104
    with client_of(rollout, page=False) as client:
        assert {client.get(path).status_code for path in ("/", "/v1/users", "/v1/items?text=a")} == {404}
        assert client.post("/v1/drafts", json={"item": KETTLE}).status_code == 200
