from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nextquill_core.config import RawInput
from nextquill_core.errors import DataError
from nextquill_core.ingest.sources import SOURCES, raw_files
from tests.nextquill_core.ingest.world import World, plain_category


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
        ("", "is a folder; name the files"),
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


def test_a_category_without_paths_is_fetched_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked = []

    def download(repository: str, file: str, *, repo_type: str, local_files_only: bool) -> str:
        asked.append((repository, file, repo_type, local_files_only))
        return str(tmp_path / file.rpartition("/")[2])

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    found = raw_files("amazon-2023", RawInput(category="Books"))
    assert (found.reviews, found.items) == ((tmp_path / "Books.jsonl",), (tmp_path / "meta_Books.jsonl",))
    hub = "McAuley-Lab/Amazon-Reviews-2023"
    assert asked == [
        (hub, "raw/review_categories/Books.jsonl", "dataset", False),
        (hub, "raw/meta_categories/meta_Books.jsonl", "dataset", False),
    ]


def test_a_failed_download_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def download(*_: object, **__: object) -> str:
        raise OSError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(DataError, match=r"cannot fetch raw/review_categories/Books\.jsonl: no route; check") as caught:
        raw_files("amazon-2023", RawInput(category="Books"))
    assert "to host" not in str(caught.value)


def test_without_fetching_only_an_earlier_copy_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DataError, match="cannot fetch"):
        raw_files("amazon-2023", RawInput(category="Books"), fetch=False)


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
    for name, source in SOURCES.items():
        assert source.name == name
        assert source.summary
        assert "\n" not in source.summary
        assert set(source.review_columns) == {"user_id", "item_id", "rating", "title", "text", "timestamp_ms"}
        assert set(source.item_columns) == {"item_id", "title", "description", "categories", "rating_number"}
