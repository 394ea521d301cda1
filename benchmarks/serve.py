"""Tokens per second and latency of the server under load, against the plain engine on the same requests.

    python -m benchmarks.serve --concurrency 1 8 32

A small offline model is made on a synthetic category, with 64 new tokens for each answer and greedy decoding. For each
number of concurrent clients the same requests are answered twice:

- `server`: over HTTP on loopback, by clients in another process that ask again as soon as they have an answer. This
  includes the lookup of the history, the prompt, and JSON.
- `engine`: `TransformersEngine.generate` on prompts that are made beforehand, as many at a time as there are clients.

One line of JSON for each has the ratio of the tokens per second, and of the 95th percentiles of the time to an answer;
that of the engine is the time of its batch. `same_answers` counts the texts on which both agree.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

METHOD, TOKENS = "latestk", 64


def settings(folder: Path) -> dict[str, Any]:
    """Return the settings of a run whose model is large enough that its passes take most of the time."""
    tiny = {"vocab_size": 4000, "hidden_size": 256, "layers": 6, "heads": 4, "steps": 2, "batch_tokens": 1024}
    raw = {"category": "Sample", "reviews": str(folder / "reviews.jsonl"), "items": str(folder / "items.jsonl")}
    return {
        "store": str(folder / "store"),
        "model": {"name_or_path": "tiny", "dtype": "float32", "tiny": tiny},
        "ingest": {"inputs": [raw]},
        "evaluate": {"methods": [METHOD], "max_new_tokens": TOKENS, "decoding": ["paper"]},
    }


def prepared_run(folder: Path, users: int) -> Any:
    """Make the histories and the model, and return the run.

    Args:
        folder: Receives raw files and store.
        users: Number of users.
    """
    from nextquill_core.config import parse_config
    from nextquill_core.pipeline import lineage
    from nextquill_core.pipeline.run import Run
    from nextquill_core.synthetic.sample import write_sample

    write_sample(folder, users=users, seed=1)
    run = Run(parse_config(settings(folder), "the benchmark"))
    for step in lineage(run.plan.model):
        run.make(step)
    return run


def requests_of(run: Any, count: int) -> list[dict[str, Any]]:
    """Return requests of different users for different items.

    Args:
        run: The run.
        count: Number of requests.
    """
    from nextquill_core.writing.histories import Histories

    users = Histories(run.artifact(run.plan.ingest).folder).user_ids("", count)
    return [
        {
            "user": users[number % len(users)],
            "item": {"title": f"Item {number}", "description": "A thing of steel and glass. " * (number % 7)},
            "rating": number % 5 + 1,
            "decoding": "greedy",
        }
        for number in range(count)
    ]


@contextmanager
def listening(app: Any) -> Iterator[str]:
    """Run an app on a free loopback port for the duration of a block, and yield its address."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="off", timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started:
        assert time.monotonic() < deadline, "the server does not start"
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        server.force_exit = True  # does not wait for connections that a client has left open
        thread.join(20)


@contextmanager
def server(run: Any) -> Iterator[str]:
    """Serve a run on a free port for the duration of a block, and yield the address."""
    from nextquill_core.pipeline.run import Run
    from nextquill_core.serving.app import make_app
    from nextquill_core.serving.run import make_rollout
    from nextquill_core.serving.settings import ServeSettings

    rollout = make_rollout(run.config, lambda: Run(run.config, fetch=False), method=METHOD)
    rollout.start()
    try:
        with listening(make_app(rollout, ServeSettings(most_requests=1000))) as url:
            yield url
    finally:
        rollout.close()


def load(url: str, requests: Sequence[dict[str, Any]], concurrency: int) -> dict[str, Any]:
    """Ask for all drafts with this number of clients; returns texts, seconds of each and of all.

    Args:
        url: Address of the server.
        requests: The requests.
        concurrency: Number of clients.
    """
    import httpx

    with httpx.Client(base_url=url, timeout=600, trust_env=False, limits=httpx.Limits(max_connections=None)) as client:

        def one(request: dict[str, Any]) -> tuple[str, int, float]:
            begun = time.perf_counter()
            answer = client.post("/v1/drafts", json=request).raise_for_status().json()
            return answer["text"], answer["n_tokens"], time.perf_counter() - begun

        begun = time.perf_counter()
        with ThreadPoolExecutor(concurrency) as pool:
            texts, tokens, seconds = zip(*pool.map(one, requests), strict=True)
    return {"texts": texts, "tokens": sum(tokens), "each": seconds, "all": time.perf_counter() - begun}


def asked_elsewhere(url: str, requests: Sequence[dict[str, Any]], concurrency: int) -> dict[str, Any]:
    """Run `load` in another process, so that clients and server do not share an interpreter.

    Args:
        url: As for `load`.
        requests: As for `load`.
        concurrency: As for `load`.
    """
    order = json.dumps({"url": url, "requests": requests, "concurrency": concurrency})
    command = [sys.executable, "-m", "benchmarks.serve", "--load"]
    done = subprocess.run(command, input=order, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def plain_engine(run: Any, requests: Sequence[dict[str, Any]], concurrency: int) -> dict[str, Any]:
    """Answer the same requests by the engine alone.

    Args:
        run: The run.
        requests: The requests.
        concurrency: Number of requests in a batch.
    """
    from nextquill_core.generation.decoding import GREEDY
    from nextquill_core.pipeline.methods import base_model, local_engine
    from nextquill_core.pipeline.writing import run_writer
    from nextquill_core.writing.requests import WriteRequest

    writer = run_writer(run, METHOD)
    forms = [WriteRequest(**{name: value for name, value in one.items() if name != "decoding"}) for one in requests]
    asked = [one.request for one in writer.prepare(forms)]
    engine = local_engine(run, base_model(run.model), writer.encoder, GREEDY, TOKENS)
    texts: list[str] = []
    each: list[float] = []
    tokens = 0
    for start in range(0, len(asked), concurrency):
        begun = time.perf_counter()
        answers = engine.generate(asked[start : start + concurrency])
        each += [time.perf_counter() - begun] * len(answers)
        texts += [answer.text for answer in answers]
        tokens += sum(answer.n_tokens for answer in answers)
    return {"texts": texts, "tokens": tokens, "each": each, "all": sum(each[::concurrency])}


def compare(run: Any, url: str, requests: Sequence[dict[str, Any]], concurrency: int, rounds: int) -> dict[str, Any]:
    """Answer the requests by both sides, by turns, and return the medians.

    Args:
        run: The run.
        url: Address of the server.
        requests: The requests.
        concurrency: Number of clients.
        rounds: Number of turns.
    """
    sides: dict[str, list[dict[str, Any]]] = {"server": [], "engine": []}
    for _ in range(rounds):
        sides["engine"].append(plain_engine(run, requests, concurrency))
        sides["server"].append(asked_elsewhere(url, requests, concurrency))
    rate = {side: statistics.median(one["tokens"] / one["all"] for one in found) for side, found in sides.items()}
    slow = {
        side: statistics.median(float(np.quantile(one["each"], 0.95)) for one in found) for side, found in sides.items()
    }
    pairs = zip(sides["server"][0]["texts"], sides["engine"][0]["texts"], strict=True)
    return {
        "concurrency": concurrency,
        "requests": len(requests),
        "tokens_a_second": {side: round(value, 1) for side, value in rate.items()},
        "speed_over_engine": round(rate["server"] / rate["engine"], 3),
        "p95_seconds": {side: round(value, 3) for side, value in slow.items()},
        "p95_over_engine": round(slow["server"] / slow["engine"], 3),
        "same_answers": sum(one == other for one, other in pairs),
    }


def main() -> None:
    """Run the benchmark, or be the clients of one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--users", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--load", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.load:
        print(json.dumps(load(**json.load(sys.stdin))))
        return
    with tempfile.TemporaryDirectory() as folder:
        run = prepared_run(Path(folder), arguments.users)
        requests = requests_of(run, arguments.requests)
        with server(run) as url:
            asked_elsewhere(url, requests[:2], 2)  # both sides are warm
            plain_engine(run, requests[:2], 2)
            for concurrency in arguments.concurrency:
                print(json.dumps(compare(run, url, requests, concurrency, arguments.rounds)), flush=True)


if __name__ == "__main__":
    main()
