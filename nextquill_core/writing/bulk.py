"""Drafts for a file of requests: one Parquet row each, in the order of the requests; an interrupted run resumes."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nextquill_core.causal.shard_queue import split_into_shards
from nextquill_core.errors import UserError
from nextquill_core.generation.engines import Journal
from nextquill_core.orders import EXAMPLES_PER_SHARD
from nextquill_core.progress import Progress, advancing, silent
from nextquill_core.writing.draft import Draft
from nextquill_core.writing.prompter import SANE
from nextquill_core.writing.requests import ItemFields, WriteRequest
from nextquill_core.writing.writer import Writer
from storage.files import atomic_path, user_path
from storage.fingerprint import fingerprint
from storage.tables import read_table, write_table

PART = EXAMPLES_PER_SHARD
"""Number of requests whose drafts are kept together."""
TOKEN = pa.struct(
    {"text": pa.string(), "logp_with": pa.float32(), "logp_without": pa.float32(), "effect": pa.float32()}
)
DRAFTS = pa.schema(
    {
        "id": pa.string(),
        "user": pa.string(),
        "item_id": pa.string(),
        "item_title": pa.string(),
        "example": pa.string(),
        "rating": pa.float64(),
        "title": pa.string(),
        "text": pa.string(),
        "n_tokens": pa.int32(),
        "finish_reason": pa.string(),
        "history_shown": pa.int32(),
        "note": pa.string(),
        "method": pa.string(),
        "decoding": pa.string(),
        "sampler": pa.string(),
        "adapter": pa.string(),
        "tokens": pa.list_(TOKEN),
    }
)
"""Fields of the request, then of the draft; `history_shown` counts past reviews, `tokens` is empty unless asked for."""


def write_drafts(
    writer: Writer,
    requests: Sequence[WriteRequest],
    out: Path,
    *,
    decoding: str = SANE,
    explain: bool = False,
    progress: Progress = silent,
) -> None:
    """Write the drafts of many requests to a Parquet file.

    What is finished is kept in a folder beside the file until the file is whole. It is used again by the same command
    if neither the model, the settings nor the requests of a part have changed.

    Args:
        writer: The writer.
        requests: The requests.
        out: The file, which is replaced.
        decoding: As for `Writer.write`.
        explain: As for `Writer.write`.
        progress: Receives the texts that are finished.

    Raises:
        UserError: There is no request, a request cannot be used, or the file cannot be written.
    """
    if not requests:
        raise UserError("there is no request", "--requests", "write one JSON object on each line")
    if out.is_dir():
        raise UserError("is a folder", str(out), "name another file with --out")
    preset = writer.preset(decoding)
    writer.check(requests)
    basis = [asdict(writer.identity), decoding, asdict(preset), explain]
    work = out.with_name(f".{out.name}.work")
    advance = advancing(progress, len(requests))
    with user_path(out, "name another file with --out"):
        work.mkdir(parents=True, exist_ok=True)
        parts = []
        for _, some in split_into_shards(requests, PART):
            name = fingerprint([basis, [request.model_dump(mode="json") for request in some]])
            parts.append(work / f"{name}.parquet")
            if parts[-1].is_file():
                advance(len(some))
                continue
            journal = Journal(work / f"{name}.jsonl")
            drafts = writer.write_many(some, decoding=decoding, explain=explain, advance=advance, journal=journal)
            table = pa.Table.from_pylist(list(map(_row, some, drafts)), schema=DRAFTS)
            with atomic_path(parts[-1]) as temporary:
                write_table(temporary, table)
        with atomic_path(out) as temporary:
            _join(parts, temporary)
        shutil.rmtree(work)


def _join(parts: Iterable[Path], path: Path) -> None:
    """Write the rows of several files into one, with one file in memory at a time."""
    with pq.ParquetWriter(path, DRAFTS, compression="zstd", write_page_checksum=True) as file:
        for part in parts:
            file.write_table(read_table(part))


def _row(request: WriteRequest, draft: Draft) -> dict[str, Any]:
    item = request.item
    values = {name: getattr(draft, name) for name in DRAFTS.names if hasattr(draft, name)}
    return values | {
        "id": request.id,
        "user": request.user,
        "item_id": item if isinstance(item, str) else None,
        "item_title": item.title if isinstance(item, ItemFields) else None,
        "example": request.example,
        "rating": request.rating,
        "title": request.title,
        "history_shown": len(draft.history_shown),
        "tokens": [{field.name: getattr(token, field.name) for field in TOKEN} for token in draft.tokens],
    }
