"""Evaluations with numbers made by hand, committed to a store as real artifacts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from nextquill_core.evaluation.metrics import ExampleScores
from nextquill_core.evaluation.tables import metric_rows, statistics_table
from nextquill_core.schemas import EXAMPLES, ITEMS, SEQUENCES
from storage import Artifact, Basis, Staging, Store, fingerprint, write_json
from storage.manifest import InputRef

Scores = Mapping[tuple[str, str], Mapping[str, Any]]
"""By method and preset, and then by metric: a value per example, or statistics of shape (n, K)."""


def commit_evaluation(
    root: Path,
    scores: Scores,
    ids: Sequence[str],
    *,
    config: Mapping[str, Any] | None = None,
    ingest: InputRef | None = None,
    settings: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
    name: str = "",
) -> Artifact:
    """Commit an evaluation of examples called `CATEGORY:USER:POSITION`.

    Args:
        root: Folder of the store.
        scores: The scores.
        ids: Ids of the examples.
        config: Settings of the run.
        ingest: The ingested data; by default the same for all evaluations.
        settings: How the metrics are computed.
        provenance: Further fields of the provenance.
        name: Makes another fingerprint for the same scores.
    """
    identity = {"stage": "evaluate", "evaluate": {"split": "test", "bootstrap_samples": 200}, "config": config or {}}
    numbers = {
        "/".join((*key, metric)): np.asarray(v).tolist() for key, of in scores.items() for metric, v in of.items()
    }
    identity |= {"name": name, "ids": list(ids), "numbers": numbers}
    store, own = Store(root), fingerprint(identity)
    with store.write("evaluate", own, Basis()) as staging:
        write_evaluation(staging, scores, ids, settings=settings)
        staging.seal(
            kind="evaluate",
            fingerprint=own,
            identity=identity,
            config=config or {},
            inputs=[ingest or InputRef("ingest", "0" * 16, "the same data")],
            stats={},
            provenance={"end": "2026-11-29T09:00:00.000+00:00", **(provenance or {})},
        )
        return store.commit("evaluate", own)


def write_evaluation(
    staging: Staging, scores: Scores, ids: Sequence[str], *, settings: Mapping[str, Any] | None = None
) -> None:
    """Write the files of an evaluation.

    Args:
        staging: Receives them.
        scores: As for `commit_evaluation`, as are the others.
        ids: Ids of the examples.
        settings: How the metrics are computed.
    """
    measured = {key: ExampleScores({}).plus(found) for key, found in scores.items()}
    users = [example.rpartition(":")[0] for example in ids]
    categories = [example.partition(":")[0] for example in ids]
    rows = metric_rows(measured, users, categories, samples=50)
    write_json(staging.path("metrics.json"), {"settings": settings or {}, "rows": rows, "comparisons": []})
    staging.write_table("statistics.parquet", statistics_table(measured, ids))


def commit_ingest(root: Path, texts: Mapping[str, str]) -> InputRef:
    """Commit ingested data in which each user of the category `C` has one review, a target of the test split.

    Args:
        root: Folder of the store.
        texts: The review's text, by user.
    """
    store, own = Store(root), fingerprint(dict(texts))
    items = pa.Table.from_pylist([dict.fromkeys(ITEMS.names, "i") | {"category": "C"}], schema=ITEMS)
    review = {"item_id": "i", "rating": 5.0, "title": "", "timestamp_ms": 1}
    sequences = [{"user_id": u, "category": "C", "reviews": [review | {"text": t}]} for u, t in texts.items()]
    example = {"category": "C", "split": "test", "target": 0, "history": []}
    examples = [example | {"example_id": f"C:{user}:0", "user_id": user} for user in texts]
    with store.write("ingest", own, Basis()) as staging:
        staging.write_table("items/0.parquet", items)
        staging.write_table("sequences/0.parquet", pa.Table.from_pylist(sequences, schema=SEQUENCES))
        staging.write_table("examples/0.parquet", pa.Table.from_pylist(examples, schema=EXAMPLES))
        staging.seal(
            kind="ingest", fingerprint=own, identity=dict(texts), config={}, inputs=[], stats={}, provenance={}
        )
        return store.commit("ingest", own).ref


def likelihoods(nats: Sequence[float], tokens: Sequence[int]) -> Any:
    """Return the statistics of log-likelihoods: nats and tokens of each example, shape (n, 2)."""
    return np.array([nats, tokens], dtype=np.float64).T
