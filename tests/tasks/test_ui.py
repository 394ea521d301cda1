"""What the UI shows: keys of artifacts, a history for each data, and the pages of stages."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nextquill_core.config import Config, parse_config
from storage import UserError
from tasks.ui import cohort_summary, data_key, model_markdown, stages_markdown, training_markdown


def config(*categories: str) -> Config:
    return parse_config({"ingest": {"inputs": [{"category": name} for name in categories]}}, "the test")


def test_a_key_names_its_categories() -> None:
    assert data_key("report", config("Digital_Music")) == "report-digital-music"
    assert data_key("why-train", config("Books", "CDs_and_Vinyl")) == "why-train-books-cds-and-vinyl"


def test_runs_on_other_data_have_other_keys() -> None:
    long = ["ABCDEFGH" * 4 + str(number) for number in range(4)]
    others = [("Books",), ("Books", "Games"), ("書籍",), ("書",), ("日本 Books",), long[:3], long]
    keys = {data_key("report", config(*names)) for names in others}
    assert len(keys) == len(others)


@pytest.mark.parametrize("name", ["Books", "書籍", "a b & c", "Ä", "x" * 300, "-_-"])
def test_prefect_takes_every_key(name: str) -> None:
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", data_key("report", config(name)))


RUN: Any = SimpleNamespace(config=config("Books"))


def artifact(folder: Path, **stats: Any) -> Any:
    return SimpleNamespace(folder=folder, location=str(folder), manifest=SimpleNamespace(stats=stats))


def test_stages_link_to_their_runs_and_to_what_they_show() -> None:
    found = [
        {"stage": "ingest", "reused": True, "path": "store/ingest/1", "flow_run": "r1"},
        {"stage": "train nextquill", "reused": False, "path": "store/train/2", "flow_run": "r2"},
    ]
    assert stages_markdown(RUN, found).splitlines()[-2:] == [
        "| [ingest](../../runs/flow-run/r1) | [ingest-account](../key/ingest-account-books) | reused "
        "| `store/ingest/1` |",
        "| [train nextquill](../../runs/flow-run/r2) | [training](../key/training-books) | made | `store/train/2` |",
    ]


def test_training_shows_losses_and_curves(tmp_path: Path) -> None:
    lines = [{"step": step, "loss": 2.0, "normal": 1.5, "causal": None} for step in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    final = {"loss": 2.0, "normal": 1.5, "causal": None}
    known = artifact(tmp_path, steps=1200, final=final, validation={"loss": 2.25})
    text = training_markdown(RUN, {"sft": known})
    assert f"| sft | 1,200 | 2.000 | 1.500 | – | 2.250 | `{tmp_path}` |" in text
    assert "[Why it was made or reused](../key/why-train-books)" in text
    (picture,) = re.findall(r"!\[training\]\(data:image/png;base64,([^)]+)\)", text)
    assert base64.b64decode(picture).startswith(b"\x89PNG")
    with pytest.raises(UserError, match="nextquill train --force"):
        training_markdown(RUN, {"sft": artifact(tmp_path, steps=1)})


def test_the_base_model_shows_its_facts(tmp_path: Path) -> None:
    text = model_markdown(RUN, artifact(tmp_path, parameters=1_234_567, final_loss=2.34567, source={"file": "x"}))
    assert "| parameters | 1,234,567 |\n| final loss | 2.346 |\n| folder |" in text


def test_a_cohort_is_a_sentence_for_each_category() -> None:
    part = {"users": 317, "reviews": {"read": 20000, "kept": 12034}, "items": {"read": 900, "kept": 800}}
    said = "Books: 317 users, 12,034 of 20,000 reviews and 800 of 900 items kept."
    assert cohort_summary({"per_category": {"Books": part}}) == said
