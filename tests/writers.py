"""Writers with a tiny model, and an ingest artifact of two users in two categories."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from nextquill_core.generation.decoding import GREEDY, PAPER, SAMPLED, Contrast
from nextquill_core.generation.engines import Engine
from nextquill_core.schemas import EXAMPLES, ITEMS, SEQUENCES
from nextquill_core.tokens import PairEncoder
from nextquill_core.writing.prompter import Identity, People, Preset
from nextquill_core.writing.writer import Writer
from storage.tables import write_table

LIMIT = 6


def tiny_writer(
    model: Any,
    tokenizer: Any,
    people: People | None = None,
    *,
    contrast: Contrast | None = None,
    engine: Callable[[Preset], Engine] | None = None,
    history: int = 3,
) -> Writer:
    """Return a writer that shows up to three past reviews and writes six tokens."""
    from nextquill_core.generation.local_engine import TransformersEngine

    encoder = PairEncoder(tokenizer, max_history=history, max_prompt_tokens=1000, max_target_tokens=64)

    def local(preset: Preset) -> Engine:
        return TransformersEngine(
            model,
            tokenizer,
            preset.decoding,
            max_new_tokens=preset.limit,
            stop=encoder.stop_id,
            batch_tokens=4096,
            contrast=contrast,
            seed=7,
        )

    presets = {one.name: Preset(one, LIMIT) for one in (PAPER, GREEDY, SAMPLED)} | {"sane": Preset(GREEDY, LIMIT)}
    identity = Identity("nextquill" if history else "sft", history > 0, "0123456789abcdef", {"seed": 7})
    return Writer(
        encoder, identity, presets, engine or local, lambda: model, contrast=contrast, people=people, score_tokens=4096
    )


def write_people(folder: Path) -> None:
    """Write the tables: `ann` has five reviews of Books, `both` five of each category; item ids begin with it."""

    def user(name: str, category: str) -> dict[str, Any]:
        reviews = [
            {"item_id": f"{category[0]}{one}", "rating": 4.0, "title": f"title {one}",
             "text": f"{name} wrote {category} {one} ", "timestamp_ms": 1000 * one}
            for one in range(5)
        ]  # fmt: skip
        return {"user_id": name, "category": category, "reviews": reviews}

    for number, (category, names) in enumerate({"Books": ["ann", "both"], "Films": ["both"]}.items()):
        rows = [user(name, category) for name in names]
        items = [
            {"item_id": one, "category": category, "title": f"{category} item {one}", "description": "of paper"}
            for one in [*(f"{category[0]}{one}" for one in range(8)), "shared"]
        ]
        examples = [
            {"example_id": f"{category}:{name}:{target}", "user_id": name, "category": category, "split": "test",
             "target": target, "history": list(range(target))}
            for name in names for target in (0, 3, 4)
        ]  # fmt: skip
        for table, values, schema in (
            ("sequences", rows, SEQUENCES),
            ("items", items, ITEMS),
            ("examples", examples, EXAMPLES),
        ):
            path = folder / table / f"{number:03d}-00000.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_table(path, pa.Table.from_pylist(values, schema=schema), 2)
