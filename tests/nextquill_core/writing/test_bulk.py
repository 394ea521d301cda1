"""A file of drafts has a row for each request, in order, and an interrupted run loses nothing."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from nextquill_core.generation.engines import Engine, Generation
from nextquill_core.writing import bulk
from nextquill_core.writing.bulk import DRAFTS, write_drafts
from nextquill_core.writing.histories import Histories
from nextquill_core.writing.prompter import People, Preset
from nextquill_core.writing.requests import WriteRequest, checked
from nextquill_core.writing.writer import Writer
from storage import UserError
from tests.writers import tiny_writer, write_people


class Echo:
    """An engine that answers with the number of prompt tokens, and stops after a number of answers."""

    def __init__(self, most: int = 1_000_000) -> None:
        self.most, self.asked = most, 0

    def generate(self, requests: Any, advance: Any, *, keep: Any = lambda request, answer: None) -> list[Generation]:
        answers = []
        for request in requests:
            if self.asked == self.most:
                raise KeyboardInterrupt
            self.asked += 1
            answers.append(Generation(f"{len(request.prompt)} tokens", 2, "stop"))
            keep(request, answers[-1])
            advance(1)
        return answers

    def __call__(self, preset: Preset) -> Engine:
        return self  # type: ignore[return-value]


def requests(count: int) -> list[WriteRequest]:
    users = ("ann", "both", "unknown")
    return [
        checked(WriteRequest, {"id": str(one), "user": users[one % 3], "item": "B7", "title": f"t{one}"}, "here")
        for one in range(count)
    ]


@pytest.fixture
def writer_of(tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path) -> Callable[..., Writer]:
    """Return what makes a writer with the store's people, given its engine."""
    write_people(tmp_path / "store")
    people = People(Histories(tmp_path / "store"), ratings=(1.0, 5.0))
    return partial(tiny_writer, tiny_model, tiny_tokenizer, people)


def test_rows_are_in_the_order_of_the_requests(writer_of: Callable[..., Writer], tmp_path: Path) -> None:
    out, asked = tmp_path / "drafts.parquet", requests(5)
    seen: list[tuple[float, float]] = []

    def progress(done: float, total: float, note: str = "", *, phase: str = "") -> None:
        seen.append((done, total))

    writer = writer_of()
    write_drafts(writer, asked, out, explain=True, progress=progress)
    table = pq.read_table(out)
    assert table.schema == DRAFTS
    rows = table.to_pylist()
    assert [row["id"] for row in rows] == ["0", "1", "2", "3", "4"]
    for row, request in zip(rows, asked, strict=True):
        draft = next(writer.write_many([request], explain=True))
        assert (row["text"], row["note"], row["history_shown"]) == (draft.text, draft.note, len(draft.history_shown))
        assert "".join(token["text"] for token in row["tokens"]) == draft.text
    assert rows[2]["history_shown"] == 0
    assert seen[-1] == (5, 5)
    assert [path.name for path in tmp_path.iterdir() if "drafts" in path.name] == ["drafts.parquet"]


def test_an_interrupted_run_resumes_and_ends_in_the_same_bytes(
    writer_of: Callable[..., Writer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "PART", 8)
    count = 13
    whole, out = Echo(), tmp_path / "drafts.parquet"
    write_drafts(writer_of(engine=whole), requests(count), tmp_path / "whole")
    asked = 0
    for most in (3, 7, count):
        engine = Echo(most)
        try:
            write_drafts(writer_of(engine=engine), requests(count), out)
        except KeyboardInterrupt:
            assert not out.exists()
        asked += engine.asked
    assert asked == whole.asked, "no finished text is generated again"
    assert out.read_bytes() == (tmp_path / "whole").read_bytes()


def test_other_settings_use_nothing_of_an_interrupted_run(writer_of: Callable[..., Writer], tmp_path: Path) -> None:
    out = tmp_path / "drafts.parquet"
    with pytest.raises(KeyboardInterrupt):
        write_drafts(writer_of(engine=Echo(3)), requests(5), out)
    other = Echo()
    write_drafts(writer_of(engine=other), requests(5), out, decoding="paper")
    assert other.asked == 5


def test_invalid_requests_are_found_before_anything_is_generated(
    writer_of: Callable[..., Writer], tmp_path: Path
) -> None:
    engine = Echo()
    writer = writer_of(engine=engine)
    for values, words in (
        ({"item": "B99"}, "no item 'B99' in this store"),
        ({"item": "B7", "history": [{"item": "B99", "text": "good"}]}, "no item 'B99' in this store"),
        ({"example": "Books:ann:1"}, "there is no example 'Books:ann:1'"),
        ({"item": "B7", "rating": 9}, "no review here has the rating 9"),
        ({"item": "B7", "category": "Toys"}, "no category 'Toys' in this store"),
    ):
        with pytest.raises(UserError, match=f"request 4: {words}"):
            write_drafts(writer, [*requests(3), checked(WriteRequest, values, "here")], tmp_path / "out")
    with pytest.raises(UserError, match="there is no request"):
        write_drafts(writer, [], tmp_path / "out")
    with pytest.raises(UserError, match="unknown decoding"):
        write_drafts(writer, requests(1), tmp_path / "out", decoding="sain")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="name another file with --out"):
        write_drafts(writer, requests(1), tmp_path / "folder")
    assert engine.asked <= 1
