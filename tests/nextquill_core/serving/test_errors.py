"""Every error is answered in the same form, with an id, and counted under the status that the client gets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from nextquill_core.serving import errors
from nextquill_core.serving.drafts import DraftForm
from nextquill_core.serving.logs import RequestLog
from nextquill_core.serving.metrics import Metrics

METRICS = Metrics()
JSON = {"Content-Type": "application/json"}


@pytest.fixture
def client() -> Iterator[TestClient]:
    app = FastAPI()

    @app.get("/broken")
    async def broken() -> None:
        raise KeyError("a fault of ours")

    @app.get("/replaced")
    async def replaced() -> None:
        raise FileNotFoundError("items/000-00000.parquet")

    @app.post("/drafts")
    async def drafts(form: DraftForm) -> None:
        raise errors.ApiError(404, f"`{form.method}` is not served")

    errors.register(app)
    app.add_middleware(RequestLog, metrics=METRICS)
    with TestClient(app) as found:
        yield found


@pytest.mark.parametrize(("path", "status", "words"), [("/broken", 500, "internal error"), ("/replaced", 503, "again")])
def test_an_error_that_no_route_expects_has_an_id_and_is_counted(
    client: TestClient, path: str, status: int, words: str
) -> None:
    answer = client.get(path)
    assert answer.status_code == status
    assert words in answer.json()["error"]["message"]
    assert answer.headers["x-request-id"]
    assert f'nextquill_requests_total{{route="{path}",status="{status}"}} 1.0' in METRICS.text().decode()


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"\xff{", 400, "error parsing the body"),
        (b"[" * 100_000, 400, "error parsing the body"),
        (b'{"item": "x", "method": "\\ud800"}', 422, "`method`: Input should be a valid string"),
        (b'{"item": {"title": "\\ud800"}}', 422, "`item.title`: Input should be a valid string"),
        (b'{"item": {"titel": "x"}}', 422, "`item.titel`: there is no such field"),
        (b'{"item": "x", "\\ud800": 1}', 422, "Input should be a valid string"),
    ],
)
def test_a_body_that_cannot_be_read_is_one_line(client: TestClient, body: bytes, status: int, words: str) -> None:
    answer = client.post("/drafts", content=body, headers=JSON)
    assert answer.status_code == status
    assert words in answer.json()["error"]["message"]


def test_half_a_surrogate_pair_in_a_message_is_escaped() -> None:
    assert errors.error_body(422, "role \ud800")["error"]["message"] == "role \\ud800"
