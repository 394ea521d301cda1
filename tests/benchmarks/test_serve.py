"""The benchmark of the server runs at a small size, and both sides give the same answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.serve import compare, requests_of, server
from nextquill_core.pipeline.run import Run
from tests.world import small_config


@pytest.mark.process
@pytest.mark.pipeline
def test_server_and_engine_answer_the_same(small_world: Path, prepared_store: Path) -> None:
    run = Run(small_config(small_world, prepared_store, evaluate={"methods": ["latestk"], "max_new_tokens": 64}))
    requests = requests_of(run, 6)
    with server(run) as url:
        found = compare(run, url, requests, concurrency=3, rounds=1)
    assert found["same_answers"] == found["requests"] == 6
    assert found["tokens_a_second"].keys() == {"server", "engine"}
    assert found["p95_over_engine"] > 0
