from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nextquill_core.config import RawInput
from nextquill_core.errors import DataError
from nextquill_core.ingest.canonical import CANONICAL
from nextquill_core.ingest.sources import BUILT_IN, JsonLines, RawFiles, source
from tests.conftest import REAL
from tests.nextquill_core.ingest.world import World, plain_category


def raw_files(name: str, raw: RawInput) -> RawFiles:
    return source(name).find(raw, fetch=True)


def find(reviews: object, items: object) -> tuple[list[str], list[str]]:
    found = raw_files("amazon-2023", RawInput(category="C", reviews=str(reviews), items=str(items)))
    return [path.name for path in found.reviews], [path.name for path in found.items]


def test_globs_are_sorted_and_paths_taken_as_they_are(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl.gz", "c.txt", "[1].jsonl"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "folder.jsonl").mkdir()
    assert find(tmp_path / "[a-z].jsonl*", tmp_path / "[1].jsonl") == (["a.jsonl.gz", "b.jsonl"], ["[1].jsonl"])


def test_relative_globs_and_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "a.jsonl").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find("**/*.jsonl", "~/deep/er/a.jsonl") == (["a.jsonl"], ["a.jsonl"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing.jsonl", "no such file"),
        ("*.nothing", "no file matches"),
        ("empty.jsonl", "the file is empty"),
        ("", "the file is empty"),
    ],
)
def test_a_file_that_is_not_there_is_named(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(DataError, match=message) as caught:
        find(tmp_path / name, tmp_path)
    assert str(caught.value).startswith(str(tmp_path))


def test_an_unknown_source_is_answered_with_the_nearest() -> None:
    with pytest.raises(DataError, match=r"unknown source `amazon-2032`; did you mean `amazon-2023`\?"):
        raw_files("amazon-2032", RawInput(category="C", reviews="r", items="i"))
    with pytest.raises(DataError, match=r"one of: amazon-2023"):
        raw_files("zzz", RawInput(category="C"))


def test_several_files_are_one_category(tmp_path: Path) -> None:
    reviews, items = plain_category()
    world = World(tmp_path)
    whole = world.ingest(reviews, items)
    tables = [world.table(name) for name in ("sequences", "examples", "items")]
    for number, start in enumerate(range(0, 24, 9)):
        world.write(f"part-{number}.jsonl" + (".gz" if number % 2 else ""), reviews[start : start + 9])
    stats = world.run(world.config(tmp_path / "part-*", tmp_path / "i.jsonl"), out=tmp_path / "parts")
    assert stats == whole
    assert [world.table(name, tmp_path / "parts") for name in ("sequences", "examples", "items")] == tables


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("nextquill_core.ingest.sources", {"polars", "huggingface_hub", "orjson", "prefect", "torch"}),
        ("nextquill_core.ingest.reader", {"polars", "orjson", "prefect", "torch"}),
    ],
)
def test_imports_stay_light(module: str, unwanted: set[str]) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert not unwanted & set(shown.stdout.split())


def test_every_source_says_what_it_is() -> None:
    for name, found in BUILT_IN.items():
        assert found.name == name
        assert found.summary
        assert "\n" not in found.summary


@pytest.mark.parametrize("name", ["amazon-2014", "amazon-2018", "amazon-2023"])
def test_what_a_layout_does_not_have_is_said_to_be_absent(name: str) -> None:
    reader = source(name)
    assert isinstance(reader, JsonLines)
    for part, columns in reader.columns.items():
        assert columns.keys() == {name for name in CANONICAL[part] if f"{part}.{name}" not in reader.absent}


def test_options_that_a_source_does_not_take_are_refused() -> None:
    with pytest.raises(DataError, match=r"ingest\.options: amazon-2023 takes no options, got delimiter"):
        source("amazon-2023", {"delimiter": ","})


OLD = {"reviewerID": "u1", "asin": "i1", "overall": 4.0, "summary": "t", "unixReviewTime": 1400000000}
OLD["reviewText"] = "good"
LITERALS = [
    (repr(OLD), None),
    (json.dumps(OLD), None),
    (repr(OLD | {"reviewText": 'it\'s "so" é \n'}), None),
    (repr(OLD | {"overall": 1e999}), "not-json"),  # `inf` is no literal
    (repr(OLD).replace("4.0", "1e999"), "wrong-type-overall"),
    (repr(OLD).replace("'good'", "__import__('os').getcwd()"), "not-json"),
    (repr(OLD).replace("'good'", "'a' + 'b'"), "not-json"),
    (repr(OLD).replace("'good'", "b'good'"), "not-json"),
    (repr(OLD).replace("'good'", "7"), "wrong-type-reviewText"),
    (repr(OLD)[:-1] + ", 'asin': 'i2'}", "duplicate-asin"),
    ("{" + "[" * 500 + "}", "not-json"),
    ("{'reviewerID': 'u1'}", "missing-asin"),
    ("{1, 2}", "not-json"),
    ("{**{}}", "not-json"),
]


def test_python_literals_are_read_and_nothing_is_run(tmp_path: Path) -> None:
    path = tmp_path / "reviews.json"
    path.write_text("\n".join(line for line, _ in LITERALS), encoding="utf-8")
    batches = list(source("amazon-2014").read("reviews", path))
    assert [(bad.line, bad.reason) for batch in batches for bad in batch.bad] == [
        (line, reason) for line, (_, reason) in enumerate(LITERALS, 1) if reason
    ]
    rows = [row for batch in batches for row in batch.rows.to_dicts()]
    assert [row["text"] for row in rows] == ["good", "good", 'it\'s "so" é \n']
    assert rows[0] == {
        "line": 1, "user_id": "u1", "item_id": "i1", "rating": 4.0, "title": "t", "text": "good",
        "timestamp_ms": 1400000000000,
    }  # fmt: skip


def test_the_older_metadata_become_the_same_columns(tmp_path: Path) -> None:
    nested = {"asin": "i1", "title": "T", "description": "d", "categories": [["a", "b"], ["c"]]}
    flat = {"asin": "i1", "title": "T", "description": ["d"], "category": ["a", "b", "c"]}
    expected = {
        "line": 1, "item_id": "i1", "title": "T", "description": ["d"], "categories": ["a", "b", "c"],
        "rating_number": None,
    }  # fmt: skip
    for name, row in (("amazon-2014", nested), ("amazon-2018", flat)):
        for line in (repr(row), json.dumps(row)):
            path = tmp_path / "items.json"
            path.write_text(line)
            (batch,) = source(name).read("items", path)
            assert batch.rows.to_dicts() == [expected]


def test_the_2014_and_the_2023_layout_of_the_same_reviews_give_the_same_sequences(tmp_path: Path) -> None:
    if not REAL.exists():
        pytest.skip(f"no {REAL}")
    layouts = {
        "amazon-2014": ("amazon-2014/reviews_Digital_Music_5.json.gz", "amazon-2014/meta_Digital_Music.json.gz"),
        "amazon-2023": ("amazon-2023/Digital_Music.jsonl.gz", "amazon-2023/meta_Digital_Music.jsonl.gz"),
    }
    world, tables, accounts = World(tmp_path), [], []
    for name, (reviews, items) in layouts.items():
        thresholds = {"min_text_chars": 200, "min_user_reviews": 4, "max_description_chars": 2000}
        config = world.config(REAL.parent / reviews, REAL.parent / items, source=name, **thresholds)
        accounts.append(world.run(config, out=tmp_path / name))
        tables.append([world.table(table, tmp_path / name) for table in ("sequences", "examples", "items")])
    assert accounts[0]["users"] > 100
    assert tables[0] == tables[1]
    assert accounts[0]["reviews"] == accounts[1]["reviews"]
