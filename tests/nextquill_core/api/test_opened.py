"""What a notebook reads of a run is what the artifacts hold."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

import nextquill_core as nq
from nextquill_core.api.opened import _table
from nextquill_core.ingest.reader import read_examples
from nextquill_core.pipeline.run import Run
from tests.conftest import REPO
from tests.world import small_settings, write_config


@pytest.mark.pipeline
def test_tables_are_the_same_in_every_library(predicted: Run) -> None:
    run = nq.Opened(predicted)
    tables = run.artifact("ingest")
    assert {"sequences", "items", "examples", "quarantine"} <= set(tables.tables)
    assert run.artifact("score").tables == ("effects", "weights")
    assert run.artifact("train").tables == ()
    arrow = tables.arrow("items")
    assert isinstance(arrow, pa.Table)
    assert tables.polars("items").equals(pl.DataFrame(arrow))
    assert tables.pandas("items")["item_id"].tolist() == arrow["item_id"].to_pylist()
    assert tables.dataset("items")["item_id"][:] == arrow["item_id"].to_pylist()
    assert pl.read_parquet(tables.files("items")).equals(pl.DataFrame(arrow))
    assert all(Path(path).parent.name == "items" for path in tables.files("items"))
    assert "items" in repr(tables)
    with pytest.raises(nq.UserError, match=r"no table 'item'.*did you mean `items`"):
        tables.files("item")
    with pytest.raises(nq.UserError, match="no stage 'scores'"):
        run.artifact("scores")


@pytest.mark.parametrize(
    ("file", "table"),
    [
        ("metrics.parquet", "metrics"),
        ("predictions/nextquill-sane-00000.parquet", "predictions"),
        ("figures/gains.parquet", "figures/gains"),
    ],
)
def test_a_table_is_a_folder_of_shards_or_one_file(file: str, table: str) -> None:
    assert _table(Path(file)) == table


@pytest.mark.pipeline
def test_examples_are_joined_with_their_texts(predicted: Run) -> None:
    run = nq.Opened(predicted)
    frame = run.examples()
    expected = list(read_examples(predicted.artifact(predicted.plan.ingest).folder))
    assert frame["example_id"].to_list() == [example.example_id for example in expected]
    for row, example in zip(frame.iter_rows(named=True), expected, strict=True):
        target = example.target
        assert (row["user_id"], row["category"], row["split"]) == (example.user_id, example.category, example.split)
        assert (row["text"], row["title"], row["rating"]) == (target.text, target.title, target.rating)
        assert (row["item_title"], row["item_description"]) == (target.item.title, target.item.description)
        past = [(one["text"], one["item_title"], one["timestamp_ms"]) for one in row["history"]]
        assert past == [(one.text, one.item.title, one.timestamp_ms) for one in example.history]
    test = run.examples("test", newest=2)
    assert set(test["split"]) == {"test"}
    assert test["history"].list.len().max() == 2
    assert test["history"][0][-1]["text"] == expected_history(expected, test["example_id"][0])[-1]
    with pytest.raises(nq.UserError, match="use one of train, val, test"):
        run.examples("dev")


def expected_history(examples: list, example_id: str) -> list[str]:  # type: ignore[type-arg]
    (example,) = (one for one in examples if one.example_id == example_id)
    return [review.text for review in example.history]


@pytest.mark.pipeline
def test_a_row_of_examples_is_a_request(predicted: Run) -> None:
    run = nq.Opened(predicted)
    row = run.examples("test").row(0, named=True)
    writer = run.writer("nextquill")
    item = {"title": row["item_title"], "description": row["item_description"]}
    asked = {"item": item, "rating": row["rating"], "title": row["title"]}
    draft = writer.write(history=row["history"], **asked, decoding="greedy")
    example = writer.write(example=row["example_id"], decoding="greedy")
    assert (draft.text, draft.history_shown) == (example.text, example.history_shown)


@pytest.mark.pipeline
def test_a_run_is_opened_by_its_file(predicted: Run, small_world: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "c.yaml", small_settings(small_world, tmp_path / "elsewhere"))
    run = nq.open(config, store=predicted.config.store, overrides=["train.alpha=0.05"])
    assert run.artifact("ingest").folder == predicted.artifact(predicted.plan.ingest).folder
    assert "elsewhere" not in repr(run)
    with pytest.raises(nq.UserError, match="unknown config key"):
        nq.open(config, overrides=["train.alfa=1"])
    for more in ({"overrides": ["train.alpha=1"]}, {"preset": "tuned"}):
        with pytest.raises(nq.UserError, match="overrides and preset change a file"):
            nq.open(predicted.config, **more)  # type: ignore[arg-type]
    assert not (tmp_path / "elsewhere").exists()


def test_the_front_has_every_name_and_no_other() -> None:
    assert set(nq.__all__) == set(nq._HOMES)
    for name in nq.__all__:
        assert getattr(nq, name).__name__ == name
        assert name in dir(nq)
    with pytest.raises(AttributeError, match="no attribute 'opne'"):
        nq.opne  # noqa: B018


@pytest.mark.process
def test_importing_the_front_loads_nothing() -> None:
    code = "import sys, nextquill_core; print(sorted(set(sys.modules) & {'torch', 'polars', 'pyarrow', 'pydantic'}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
