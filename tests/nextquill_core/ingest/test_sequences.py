"""The ingest stage: interrupted anywhere it ends in the same bytes; categories, notes, cleaned texts and quarantine."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextquill_core.config import RawInput
from nextquill_core.ingest import scan, sequences
from nextquill_core.ingest.account import account_rows
from nextquill_core.ingest.batches import BadRow
from nextquill_core.ingest.formats.json_parser import Parser
from nextquill_core.ingest.selection import quarantine_table
from nextquill_core.ingest.sequences import clean_text, write_quarantine
from storage.staging import Staging
from tests.conftest import REPO
from tests.nextquill_core.ingest.test_diagnosis import ITEMS
from tests.nextquill_core.ingest.world import World, lines, plain_category, review


def python_cleaned(text: str) -> str:
    return re.sub(r"\s+", " ", text.strip())


def test_every_character_is_treated_as_python_does() -> None:
    characters = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
    found = pl.DataFrame({"text": characters}).select(clean_text("a" + pl.col("text") + "b")).to_series().to_list()
    assert found == ["a b" if c.isspace() else f"a{c}b" for c in characters]
    spaces = [c for c in characters if c.isspace()]
    assert [c for c in spaces if python_cleaned(f"{c}a{c}") != "a"] == []


@given(st.lists(st.text(st.sampled_from("ab \t\n\r\x0b\x0c\x1c\x1f\x85\xa0\u2028\u3000\u200b\ufeff")), min_size=1))
def test_runs_of_white_space_become_one_blank(texts: list[str]) -> None:
    found = pl.DataFrame({"text": texts}).select(clean_text(pl.col("text")))["text"].to_list()
    assert found == [python_cleaned(text) for text in texts]


class Kept:
    """A staging that keeps its tables in memory."""

    def __init__(self) -> None:
        self.tables: dict[str, pa.Table] = {}

    def has(self, name: str) -> bool:
        return name in self.tables

    def write_table(self, name: str, table: pa.Table, group_rows: int | None = None) -> None:
        self.tables[name] = table


@pytest.mark.parametrize("sizes", [[0], [3], [10], [4, 0, 6], [7, 7, 7], [25, 1], [20]])
def test_the_quarantine_is_written_part_by_part(sizes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nextquill_core.ingest.sequences.ROWS_PER_SHARD", 10)
    numbers = iter(range(100))
    parts = [quarantine_table([("f", BadRow(next(numbers), "bad", "x")) for _ in range(size)]) for size in sizes]
    read: list[int] = []
    staging = Kept()

    def reading() -> object:
        for number, part in enumerate(parts):
            read.append(number)
            yield part
            if sum(sizes[: number + 1]) >= 10:
                assert staging.tables, "a full shard is written before the next part is read"

    write_quarantine(staging, 2, reading())  # type: ignore[arg-type]
    total = sum(sizes)
    heights = [10] * (total // 10) + ([total % 10] if total % 10 or not total else [])
    assert [table.num_rows for table in staging.tables.values()] == heights
    assert list(staging.tables) == [f"quarantine/002-{shard:05d}.parquet" for shard in range(len(heights))]
    assert [line for table in staging.tables.values() for line in table["line"].to_pylist()] == list(range(total))


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(sequences, "USERS_PER_SHARD", 1)
    world = World(tmp_path)
    reviews, items = plain_category()
    world.write("r.jsonl.gz", [*reviews, b"bad"])
    world.write("i.jsonl", items)
    return world


def run(world: World, out: str) -> dict[str, Any]:
    folder = world.folder
    return world.run(world.config(folder / "r.jsonl.gz", folder / "i.jsonl"), batch_bytes=400, out=folder / out)


def test_an_interruption_anywhere_changes_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    stats = run(world, "whole")
    shards, parts = world.shards(world.folder / "whole"), world.parts(world.folder / "whole")
    assert len([name for name in shards if name.startswith("sequences")]) == 4
    steps = [(scan, "write_json"), (scan, "atomic_path"), (sequences, "atomic_path"), (Staging, "write_table")]
    steps += [(Staging, "finish")]
    for place, (owner, name) in enumerate(steps):
        for nth in (1, 3, 6):
            original, calls = getattr(owner, name), [0]

            def breaking(
                *args: Any, original: Any = original, calls: list[int] = calls, nth: int = nth, **kw: Any
            ) -> Any:
                calls[0] += 1
                if calls[0] == nth:
                    raise KeyboardInterrupt
                return original(*args, **kw)

            out = f"out-{place}-{nth}"
            with monkeypatch.context() as patch:
                patch.setattr(owner, name, breaking)
                try:
                    run(world, out)
                except KeyboardInterrupt:
                    pass
                else:
                    assert calls[0] < nth
            assert run(world, out) == stats
            assert world.shards(world.folder / out) == shards
            assert world.parts(world.folder / out) == parts


def test_finished_blocks_are_not_parsed_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    stats = run(world, "out")
    monkeypatch.setattr(Parser, "parse", None)
    assert run(world, "out") == stats


@pytest.mark.process
def test_a_killed_process_leaves_what_the_next_one_completes(world: World) -> None:
    reviews, _ = plain_category()
    (world.folder / "r.jsonl").write_bytes(lines(reviews) * 40)
    script = f"""
import sys; sys.path.insert(0, {str(REPO)!r})
from pathlib import Path
from tests.nextquill_core.ingest.world import World
folder = Path({str(world.folder)!r})
world = World(folder)
world.run(world.config(folder / "r.jsonl", folder / "i.jsonl"), batch_bytes=500, out=folder / "killed")
"""
    parts = world.folder / "killed" / "scan" / "C" / "scratch" / "reviews"
    with subprocess.Popen([sys.executable, "-c", script]) as process:
        while process.poll() is None and not (parts / "0000-000002.json").exists():
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
    assert (parts / "0000-000002.json").exists()
    config = world.config(world.folder / "r.jsonl", world.folder / "i.jsonl")
    assert world.run(config, batch_bytes=500, out=world.folder / "killed") == world.run(config, batch_bytes=500)
    assert world.shards(world.folder / "killed") == world.shards()
    assert world.parts(world.folder / "killed") == world.parts()


def test_categories_are_processed_on_their_own_and_added_up(tmp_path: Path) -> None:
    reviews, items = plain_category()
    world = World(tmp_path)
    first = world.config(world.write("r.jsonl", reviews), world.write("i.jsonl", items), category="Zebra")
    second = RawInput(
        category="Ant", reviews=str(world.write("r2.jsonl", reviews[:12])), items=str(tmp_path / "i.jsonl")
    )
    both = first.model_copy(update={"inputs": (*first.inputs, second)})
    stats = world.run(both)
    assert [row["category"] for row in world.table("sequences")] == ["Zebra"] * 4 + ["Ant"] * 2
    assert [user for user, *_ in world.examples()] == [f"u{u}" for u in (0, 1, 2, 3, 0, 1) for _ in range(3)]
    assert stats["reviews"] == {"read": 36, "kept": 36, "dropped": {}}
    assert stats["users"] == 6
    assert stats["per_category"]["Ant"]["reviews"]["kept"] == 12
    rows = account_rows(stats)
    assert {"category": "Ant", "what": "reviews", "outcome": "read", "rows": 12, "share": 1.0, "example": ""} in rows
    assert {"category": "Zebra", "what": "examples", "outcome": "val", "rows": 4, "share": None, "example": ""} in rows


def test_few_users_with_a_training_target_are_noted(tmp_path: Path) -> None:
    reviews = [review(user, f"i{i}", i + 1, f"{user} {i}") for user in ("u1", "u2", "u3") for i in range(2)]
    stats = World(tmp_path).ingest([*reviews, review("u1", "i3", 5, "a third")], ITEMS)
    assert stats["examples"] == {"train": 1, "val": 3, "test": 3}
    assert stats["notes"] == [
        "C: only 1 of 3 users have a target to train on; the others have fewer than 3 reviews, and "
        "ingest.protocol.min_user_reviews of 3 leaves most of them out"
    ]
