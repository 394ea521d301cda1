"""The command `write`: one draft in the terminal, many in a file, and what is wrong in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from nextquill_core.analysis.token_colours import terminal_safe
from nextquill_core.pipeline.run import Run
from nextquill_core.registry.export import export
from nextquill_core.schemas import column_by_example
from tests.flows.cli.test_main import nextquill, refused
from tests.stages import untrained
from tests.world import small_config, small_settings, write_config

THING = ("--item-title", "A kettle", "--item-description", "of steel", "--rating", "5", "--title", "Good")
KETTLE = {"title": "A kettle", "description": "of steel"}
HISTORY = [{"item": KETTLE, "text": "It boils fast.", "rating": 5}]


@pytest.fixture
def config(small_world: Path, prepared_store: Path, tmp_path: Path) -> Path:
    """Return settings whose store has all but adapters, so that methods without one can write."""
    return write_config(tmp_path / "config.yaml", small_settings(small_world, prepared_store))


def first_user(config: Path) -> str:
    from nextquill_core.config import load_config

    run = Run(load_config(config), fetch=False)
    return str(next(iter(column_by_example(run.artifact(run.plan.ingest).folder / "examples", "user_id").values())))


@pytest.mark.pipeline
def test_a_draft_is_the_output_and_the_rest_is_beside_it(monkeypatch: Any, capsys: Any, config: Path) -> None:
    arguments = ("write", "--config", config, "--method", "latestk", "--user", first_user(config), *THING)
    assert nextquill(monkeypatch, *arguments, "--json") == 0
    draft = json.loads(capsys.readouterr().out)
    shown = len(draft["history_shown"])
    assert 0 < shown <= 2
    assert nextquill(monkeypatch, *arguments) == 0
    plain = capsys.readouterr()
    assert plain.out == terminal_safe(draft["text"]) + "\n"
    assert f"latestk, decoding sane, greedy; {draft['n_tokens']} tokens" in plain.err
    assert f"; {shown} past review" in plain.err
    assert nextquill(monkeypatch, *arguments, "--explain") == 0
    explained = capsys.readouterr()
    assert explained.out.strip() == terminal_safe(draft["text"]).strip()
    assert "likelier by the history: " in explained.err


@pytest.mark.pipeline
def test_a_file_of_requests_becomes_a_file_of_drafts(
    monkeypatch: Any, capsys: Any, config: Path, tmp_path: Path
) -> None:
    requests, out, past = tmp_path / "r.jsonl", tmp_path / "drafts.parquet", tmp_path / "past.jsonl"
    known = [{"user": first_user(config)}, {"history": HISTORY}, {"user": "x"}]
    requests.write_text("".join(json.dumps(line | {"item": KETTLE}) + "\n" for line in known))
    arguments = ("write", "--config", config, "--method", "latestk")
    assert nextquill(monkeypatch, *arguments, "--requests", requests, "--out", out) == 0
    captured = capsys.readouterr()
    assert captured.out.strip() == str(out)
    assert "drafts: 3 of 3" in captured.err
    rows = pq.read_table(out).to_pylist()
    assert [bool(row["history_shown"]) for row in rows] == [True, True, False]
    assert rows[2]["note"] == "the store has no reviews of this user"
    past.write_text(json.dumps(HISTORY[0]) + "\n")
    single = ("--item-title", "A kettle", "--item-description", "of steel")
    assert nextquill(monkeypatch, *arguments, "--history", past, *single) == 0
    assert capsys.readouterr().out == terminal_safe(rows[1]["text"]) + "\n"
    requests.write_text('{"user": "x"}\n')
    assert nextquill(monkeypatch, *arguments, "--requests", requests, "--out", out) == 2
    assert f"{requests}, line 1: item is missing" in capsys.readouterr().err


@pytest.mark.pipeline
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--user", "U"), "item is missing"),
        (("--user", "U", "--item", "nothing"), "no item 'nothing' in this store"),
        ((*THING, "--item", "B1"), "--item and --item-title are two items"),
        ((*THING, "--requests", "r.jsonl"), "--requests and --out belong together"),
        ((*THING, "--requests", "r.jsonl", "--out", "o"), "leave out the options for one review"),
        ((*THING, "--history", "nowhere.jsonl"), "nowhere.jsonl: cannot be read"),
        ((*THING, "--decoding", "sain"), "unknown decoding `sain`; did you mean `sane`?"),
        ((*THING, "--method", "oppu"), "made for the measured users alone"),
        ((*THING, "--method", "nextquill"), "the train artifact is missing"),
    ],
)
def test_what_is_wrong_is_one_line(
    monkeypatch: Any, capsys: Any, config: Path, arguments: tuple[str, ...], words: str
) -> None:
    method = () if "--method" in arguments else ("--method", "qwen")
    assert words in refused(monkeypatch, capsys, "write", "--config", config, *method, *arguments)


@pytest.fixture(scope="module")
def exported(small_world: Path, prepared_store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return an exported adapter with random weights, and the folder of its base model."""
    folder = tmp_path_factory.mktemp("exported")
    run = Run(small_config(small_world, shutil.copytree(prepared_store, folder / "store")))
    run.make(run.plan.train["nextquill"], launch=untrained)
    export(run, "nextquill", folder / "adapter")
    return folder / "adapter", Path(run.model.name_or_path)


@pytest.mark.pipeline
def test_an_exported_folder_writes_without_a_store(
    monkeypatch: Any, capsys: Any, exported: tuple[Path, Path], tmp_path: Path
) -> None:
    adapter, base = exported
    requests, out, past = tmp_path / "r.jsonl", tmp_path / "drafts.parquet", tmp_path / "past.jsonl"
    arguments = ("write", "--adapter", adapter, "--base", base)
    past.write_text(json.dumps(HISTORY[0]) + "\n")
    assert nextquill(monkeypatch, *arguments, "--history", past, *THING, "--explain", "--json") == 0
    single = json.loads(capsys.readouterr().out)
    assert [review["text"] for review in single["history_shown"]] == ["It boils fast."]
    assert single["method"] == "nextquill"
    assert nextquill(monkeypatch, *arguments, "--history", past, *THING, "--explain") == 0
    assert "likelier by the history: " in capsys.readouterr().err
    known = {"history": HISTORY, "item": KETTLE, "rating": 5, "title": "Good"}
    requests.write_text("".join(json.dumps(line) + "\n" for line in (known, {"item": KETTLE})))
    assert nextquill(monkeypatch, *arguments, "--requests", requests, "--out", out) == 0
    rows = pq.read_table(out).to_pylist()
    assert (rows[0]["text"], rows[0]["adapter"]) == (single["text"], single["adapter"])
    assert rows[1]["note"] == "no history was given"
    capsys.readouterr()
    for line in ({"user": "U", "item": KETTLE}, {"item": "B1"}):
        requests.write_text("".join(json.dumps(one) + "\n" for one in (known, line)))
        assert nextquill(monkeypatch, *arguments, "--requests", requests, "--out", out) == 2
        message = capsys.readouterr().err
        assert "request 2" in message
        assert "no store to look it up in" in message


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "no model is named; name a configuration with --config, or a folder with --adapter"),
        (("--adapter", "nowhere"), "nowhere: there is no nextquill.json"),
        (("--adapter", "nowhere", "--method", "nextquill"), "an exported folder has one method"),
        (("--adapter", "nowhere", "--store", "here"), "--set, --preset and --store change a configuration"),
        (("--adapter", "nowhere", "--config", "demo"), "--config and --adapter are two models"),
        (("--base", "nowhere", "--config", "demo"), "--base belongs to --adapter"),
    ],
)
def test_which_model_writes_is_said_once(
    monkeypatch: Any, capsys: Any, arguments: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert words in refused(monkeypatch, capsys, "write", *arguments, *THING)
