"""A small ingest artifact, written by hand, and an order to score it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from nextquill_core import schemas
from nextquill_core.causal.shard_queue import ShardQueue
from nextquill_core.causal.worker import work
from nextquill_core.config import ModelConfig, PromptConfig, ScoreConfig
from nextquill_core.orders import ScoreOrder
from storage import Basis, Staging
from tests.conftest import text
from tests.tasks.processes import processes_of

USERS, TARGETS = 6, 4
SHARDS = [f"{number:05d}" for number in range(8)]


def write_sequences(folder: Path) -> Path:
    """Six users with five reviews; the first review is history, each other one a target: 24 examples."""
    reviews = [
        [
            {"item_id": f"i{user}", "rating": 1.0 + past, "title": f"title {past}",
             "text": text(user * 10 + past, 8 + 3 * past), "timestamp_ms": past}
            for past in range(TARGETS + 1)
        ]
        for user in range(USERS)
    ]  # fmt: skip
    users = [f"u{user}" for user in range(USERS)]
    tables: dict[str, tuple[pa.Schema, list[dict[str, Any]]]] = {
        "sequences": (
            schemas.SEQUENCES,
            [{"user_id": user, "category": "C", "reviews": own} for user, own in zip(users, reviews, strict=True)],
        ),
        "items": (
            schemas.ITEMS,
            [
                {"item_id": f"i{user}", "category": "C", "title": f"Book {user}", "description": text(user, 9)}
                for user in range(USERS)
            ],
        ),
        "examples": (
            schemas.EXAMPLES,
            [
                {"example_id": f"C:{user}:{target}", "user_id": user, "category": "C", "split": "train",
                 "target": target, "history": list(range(target))}
                for user in users
                for target in range(1, TARGETS + 1)
            ],
        ),
    }  # fmt: skip
    for name, (schema, rows) in tables.items():
        (folder / name).mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / name / "00000.parquet")
    return folder


def open_order(
    folder: Path, sequences: Path, model: Path, *, batch_tokens: int = 600, **changes: Any
) -> tuple[Path, ShardQueue]:
    """Write an order of eight shards with three examples each; a second call resumes it.

    Returns:
        The file of the order, and its shard queue.
    """
    staging = Staging(folder, Basis())
    order = ScoreOrder(
        staging=folder,
        sequences=sequences,
        model=ModelConfig(name_or_path=str(model), dtype="float32"),
        prompt=PromptConfig(max_history=2, max_prompt_tokens=110, max_target_tokens=20, template="plain"),
        score=ScoreConfig(batch_tokens=batch_tokens),
        **{"shard_examples": 3, **changes},
    )
    path = staging.scratch / "order.json"
    order.save(path)
    queue = ShardQueue.of(order)
    queue.begin()
    return path, queue


def work_on_one_core(order: Path, name: str) -> None:
    """One of several workers on a job, in the calling process."""
    torch.set_num_threads(1)
    work(ScoreOrder.load(order), name, "cpu")


def workers_of(folder: Path) -> dict[str, int]:
    """Scoring workers of this machine on a job below the folder: their processes by name."""
    found = processes_of("nextquill_core.causal.worker", folder)
    return {words[words.index("--name") + 1]: process for process, words in found.items()}


def digests(queue: ShardQueue) -> dict[str, str]:
    """The sha256 of every finished shard."""
    return {shard.path: shard.sha256 for shard in queue.staging.finished()}
