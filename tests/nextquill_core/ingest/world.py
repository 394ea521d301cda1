"""Small raw categories on disk, and the ingest stage on them."""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from nextquill_core.config import IngestConfig, ProtocolConfig, RawInput
from nextquill_core.ingest.batches import BATCH_BYTES
from nextquill_core.ingest.privacy import Privacy
from nextquill_core.ingest.reader import read_examples
from nextquill_core.ingest.scan import scan_category
from nextquill_core.ingest.selection import Scanned
from nextquill_core.ingest.sequences import make_sequences
from nextquill_core.ingest.sources import source
from nextquill_core.progress import silent
from storage.staging import Basis, Staging

Row = dict[str, Any]
OPEN = Privacy()
SMALL = {
    "min_text_chars": 1, "min_user_reviews": 1, "max_user_reviews": 500, "min_item_users": 1, "n_targets": 3,
    "min_profile_reviews": 0, "min_profile_item_users": 0, "min_description_chars": 0, "max_description_chars": 50,
}  # fmt: skip

AS_TABLE = {
    "reviews": {"item_id": "parent_asin", "user_id": "user_id", "rating": "rating", "title": "title", "text": "text",
                "timestamp": "timestamp"},
    "items": {"item_id": "parent_asin", "title": "title", "description": "description", "categories": "categories",
              "rating_number": "rating_number"},
}  # fmt: skip
"""The options under which the source `table` reads the rows of this module."""


def review(user: str = "u1", item: str = "i1", time: int = 1, text: str = "good", **other: Any) -> Row:
    row = {"rating": 5.0, "title": "t", "text": text, "parent_asin": item, "user_id": user, "timestamp": time}
    return row | other


def item(name: str = "i1", **other: Any) -> Row:
    row = {"parent_asin": name, "title": f"Item {name}", "description": ["d"], "categories": ["c"], "rating_number": 3}
    return row | other


def lines(rows: Iterable[Row | bytes], ending: bytes = b"\n") -> bytes:
    return b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + ending for row in rows)


def plain_category() -> tuple[list[Row], list[Row]]:
    """Four users with six reviews each of six items."""
    reviews = [review(f"u{u}", f"i{i}", 10 * i + u + 1, f"text {u} of {i}") for u in range(4) for i in range(6)]
    return reviews, [item(f"i{i}") for i in range(6)]


class World:
    """A folder with raw files, and another one for the artifact."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or Path(tempfile.mkdtemp())
        self.folder.mkdir(exist_ok=True)
        self.out = self.folder / "out"

    def write(self, name: str, content: bytes | Iterable[Row | bytes]) -> Path:
        data = content if isinstance(content, bytes) else lines(content)
        path = self.folder / name
        path.write_bytes(gzip.compress(data, mtime=0) if name.endswith(".gz") else data)
        return path

    def config(self, reviews: Path | str, items: Path | str, category: str = "C", **settings: Any) -> IngestConfig:
        own = {name: settings.pop(name) for name in IngestConfig.model_fields if name in settings}
        raw = RawInput(category=category, reviews=str(reviews), items=str(items))
        defaults = {"max_bad_share": 1.0, "suspect_rows": "ignore"}
        return IngestConfig(inputs=(raw,), protocol=ProtocolConfig(**SMALL | settings), **defaults | own)

    def scan(
        self, config: IngestConfig, batch_bytes: int = BATCH_BYTES, out: Path | None = None, privacy: Privacy = OPEN
    ) -> list[Scanned]:
        """Scan every category into a separate folder below `out`.

        Args:
            config: The categories.
            batch_bytes: About how much text a batch holds.
            out: Where the folder `scan` goes; the world's folder by default.
            privacy: What is hidden.
        """
        reader = source(config.source, config.options)
        reader.batch_bytes = batch_bytes
        scans = []
        for raw in config.inputs:
            folder = (out or self.out) / "scan" / raw.category
            files = reader.find(raw, fetch=False)
            stats = scan_category(config, reader, files, privacy, Staging(folder, Basis()), silent)
            scans.append(Scanned.open(raw.category, folder, json.loads(json.dumps(stats))))
        return scans

    def run(
        self, config: IngestConfig, batch_bytes: int = BATCH_BYTES, out: Path | None = None, privacy: Privacy = OPEN
    ) -> dict[str, Any]:
        scans = self.scan(config, batch_bytes, out, privacy)
        reader = source(config.source, config.options)
        return make_sequences(config, reader, scans, Staging(out or self.out, Basis()), silent)

    def ingest(self, reviews: Any, items: Any, batch_bytes: int = BATCH_BYTES, **settings: Any) -> dict[str, Any]:
        """Write both files and run the stage on them.

        Args:
            reviews: The content of the file of reviews.
            items: The content of the file of items.
            batch_bytes: About how much text a batch holds.
            settings: Of `ingest` and of its protocol.
        """
        config = self.config(self.write("r.jsonl", reviews), self.write("i.jsonl", items), **settings)
        return self.run(config, batch_bytes)

    def table(self, name: str, out: Path | None = None) -> list[Row]:
        paths = sorted(((out or self.out) / name).glob("*.parquet"))
        return [row for path in paths for row in pq.read_table(path).to_pylist()]

    def shards(self, out: Path | None = None) -> dict[str, bytes]:
        """The bytes of every table."""
        root = out or self.out
        found = [path for name in ("sequences", "items", "examples", "quarantine") for path in root.glob(f"{name}/*")]
        return {path.relative_to(root).as_posix(): path.read_bytes() for path in found}

    def parts(self, out: Path | None = None) -> dict[str, bytes]:
        """The bytes of every part of every scan, which depend on the size of batches."""
        root = (out or self.out) / "scan"
        found = [path for name in ("reviews", "items", "bad", "suspect") for path in root.glob(f"*/{name}/*.parquet")]
        return {path.relative_to(root).as_posix(): path.read_bytes() for path in found}

    def examples(self) -> list[tuple[str, str, tuple[str, ...], list[tuple[str, ...]]]]:
        """User, split, target and history, each review as (item title, title, text, time, rating)."""
        return [
            (e.user_id, e.split, seen(e.target), [seen(earlier) for earlier in e.history])
            for e in read_examples(self.out)
        ]


def trained() -> list[Row]:
    """Three reviews of a user `zz` of items `z1` to `z3`, the least that gives a training example."""
    return [review("zz", f"z{i}", i, f"zz of {i}") for i in (1, 2, 3)]


def trained_items() -> list[Row]:
    """The items of `trained`."""
    return [item(f"z{i}") for i in (1, 2, 3)]


def without_examples(stats: dict[str, Any]) -> dict[str, Any]:
    """The stats without texts and names of raw files."""
    return {
        key: without_examples(value) if isinstance(value, dict) else value
        for key, value in stats.items()
        if key != "examples" or "train" in value
    }


def seen(review: Any) -> tuple[Any, ...]:
    return (review.item.title, review.item.description, review.title, review.text, review.timestamp_ms, review.rating)
