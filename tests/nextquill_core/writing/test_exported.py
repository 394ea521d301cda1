"""An exported folder is enough to write: no store, no configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from nextquill_core.pipeline.run import Run
from nextquill_core.pipeline.writing import run_writer
from nextquill_core.registry.export import TRAIN, export, export_weights
from nextquill_core.schemas import column_by_example
from nextquill_core.writing.exported import NAME, read_description
from nextquill_core.writing.writer import Writer
from storage import UserError

REQUEST: dict[str, Any] = {
    "history": [{"item": {"title": "A pan"}, "rating": 2, "title": "bad", "text": "It burns what it should fry."}],
    "item": {"title": "A kettle", "description": "of steel"},
    "rating": 5,
    "title": "Good",
}


@pytest.mark.pipeline
@pytest.mark.parametrize("merge", [False, True])
def test_an_exported_adapter_writes_what_the_run_writes(predicted: Run, tmp_path: Path, merge: bool) -> None:
    export(predicted, "nextquill", tmp_path / "out", merge=merge)
    base = None if merge else predicted.model.name_or_path
    exported = Writer.from_adapter(tmp_path / "out", base=base)
    ours = run_writer(predicted, "nextquill")
    for decoding in ("paper", "sane", "sampled"):
        expected = ours.write(**REQUEST, decoding=decoding)
        found = exported.write(**REQUEST, decoding=decoding)
        assert (found.text, found.sampler, found.adapter) == (expected.text, expected.sampler, expected.adapter)
    about = json.loads((tmp_path / "out" / NAME).read_text())
    assert about["weights"] == {"policy": "threshold", "delta": 0.05, "high": 0.9, "low": 0.1}
    assert about["prompt"]["template"] == "plain"


@pytest.mark.pipeline
def test_another_base_model_is_refused(predicted: Run, tmp_path: Path, tiny_folder: Path) -> None:
    export(predicted, "nextquill", tmp_path / "out")
    with pytest.raises(UserError, match="nextquill-tiny is not on the hub"):
        Writer.from_adapter(tmp_path / "out")
    with pytest.raises(UserError, match="is not that of the adapter's base model"):
        Writer.from_adapter(tmp_path / "out", base=tiny_folder)


@pytest.mark.pipeline
def test_training_data_are_the_stored_weights_and_the_prompts_of_the_training(predicted: Run, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    export_weights(predicted, "nextquill", tmp_path / "out")
    rows = pq.read_table(tmp_path / "out" / TRAIN).to_pylist()
    weights = column_by_example(predicted.artifact(predicted.plan.score).folder / "weights", "weight")
    targets = column_by_example(predicted.artifact(predicted.plan.score).folder / "effects", "target_ids")
    splits = column_by_example(predicted.artifact(predicted.plan.ingest).folder / "examples", "split")
    assert [row["example_id"] for row in rows] == [key for key, split in splits.items() if split == "train"]
    for row in rows:
        assert row["weights"] == weights[row["example_id"]]
        assert row["target_ids"] == targets[row["example_id"]]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert "Past reviews by the same user" in tokenizer.decode(rows[0]["prompt_ids"])
    assert "Past reviews" not in tokenizer.decode(rows[0]["counterfactual_ids"])
    with pytest.raises(UserError, match="`qwen` trains no adapter"):
        export_weights(predicted, "qwen", tmp_path / "other")


def test_a_folder_without_a_description_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="an earlier version exported this folder"):
        read_description(tmp_path)
    for text, words in (
        ("{", "damaged"),
        ("[]", "unexpected form"),
        ('{"version": 99}', "a newer version wrote this file"),
        ('{"method": "nextquill"}', "unexpected form"),
    ):
        (tmp_path / NAME).write_text(text)
        with pytest.raises(UserError, match=words):
            read_description(tmp_path)
