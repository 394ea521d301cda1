"""The examples of docs/how-to/serve.md against a real server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from nextquill_core.pipeline.run import Run
from nextquill_core.serving.app import make_app
from nextquill_core.serving.settings import ServeSettings
from nextquill_core.writing.histories import Histories
from tests.docs.test_blocks import blocks
from tests.docs.test_write import examples, execute
from tests.servers import listening, rollout_of, served_config, write_served_store

PAGE = "serve.md"


@pytest.mark.pipeline
def test_the_examples_of_the_page_work(
    small_world: Path, prepared_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_served_store(small_world, prepared_store, tmp_path / "store")
    config = served_config(small_world, tmp_path / "store")
    run = Run(config)
    histories = Histories(run.artifact(run.plan.ingest).folder)
    (user,) = histories.user_ids("", 1)
    (sequence,) = histories.sequences([user])
    names = {"U": user, "I": sequence.reviews[-1]["item_id"]}
    rollout = rollout_of(config)
    rollout.start()
    with listening(make_app(rollout, ServeSettings())) as url, httpx.Client(base_url=url, timeout=60) as client:
        bodies = [json.loads(block.text) for block in blocks("json") if block.page.name == PAGE]
        assert len(bodies) == 2
        for body in bodies:
            known: dict[str, Any] = {key: names.get(value, value) if isinstance(value, str) else value
                                     for key, value in body.items()}  # fmt: skip
            answer = client.post("/v1/drafts", json=known)
            assert answer.status_code == 200, answer.text
            assert ("event: draft" in answer.text) == body.get("stream", False)
        (example,) = examples(PAGE)
        execute(example.replace("http://127.0.0.1:8081", url), names)
    rollout.close()
    printed = capsys.readouterr().out
    assert run.plan.train["nextquill"].fingerprint in printed
