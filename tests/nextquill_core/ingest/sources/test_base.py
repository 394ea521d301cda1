"""Sources find their files, say what they are, and stay light to import."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nextquill_core.config.data import RawInput, SyntheticInput
from nextquill_core.errors import DataError, UserError
from nextquill_core.ingest.sources import BUILT_IN, RawFiles, local_files, source
from nextquill_core.synthetic.sample import write_sample
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
        ("**.jsonl", r"cannot be looked up \(.*\*\*|no file matches"),  # from Python 3.13 on, this is a glob
        ("n" * 300, r"cannot be looked up \(File name too long\)|no such file"),
    ],
)
def test_a_file_that_is_not_there_is_named(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(DataError, match=message) as caught:
        find(tmp_path / name, tmp_path)
    assert str(caught.value).startswith(str(tmp_path))


def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"r\xff.jsonl")).write_bytes(b"x")
    with pytest.raises(DataError, match=r"its name is not UTF-8; rename it"):
        find(tmp_path / "*.jsonl", tmp_path / "*.jsonl")


def test_a_file_without_permission_is_named_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "r.jsonl").write_bytes(b"x")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root, as which tests may run, can read every file
    with pytest.raises(DataError, match=r"r\.jsonl: cannot be read \(Permission denied\); check its permissions"):
        find(tmp_path / "*.jsonl", tmp_path / "r.jsonl")


def test_for_an_unknown_source_the_nearest_is_suggested() -> None:
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


@pytest.mark.process
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


def test_every_source_has_a_name_and_a_summary() -> None:
    for name, found in BUILT_IN.items():
        assert found.name == name
        assert found.summary
        assert "\n" not in found.summary


def test_options_that_a_source_does_not_take_are_refused() -> None:
    with pytest.raises(DataError, match=r"ingest\.options: amazon-2023 takes no options, got delimiter"):
        source("amazon-2023", {"delimiter": ","})


def test_a_folder_is_all_its_files_without_markers(tmp_path: Path) -> None:
    for name in (
        "dt=1/part-0.csv", "dt=2/part-0.csv", "_SUCCESS", "dt=1/.part-0.csv.crc", "_temporary/0/part-9.csv",
        ".hidden/part.csv", "_year=2020/part-0.csv",
    ):  # fmt: skip
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_bytes(b"x")
    data = tmp_path / "data"

    def found(pattern: str) -> list[str]:
        return [path.relative_to(data).as_posix() for path in local_files(pattern, "check")]

    parts = ["_year=2020/part-0.csv", "dt=1/part-0.csv", "dt=2/part-0.csv"]
    assert found(str(data)) == found(f"{data}/") == found(f"{data}/**/*.csv") == parts
    assert found(f"{data}/dt=*/*.csv") == parts[1:]
    assert found(f"{data}/_temporary/*/*.csv") == ["_temporary/0/part-9.csv"]
    assert found(f"{data}/_*") == ["_SUCCESS"]
    with pytest.raises(DataError, match=r"no file matches but 1 whose names begin with \. or _; check"):
        found(f"{data}/*")


def test_a_synthetic_category_is_written_where_it_is_missing_and_never_changed(tmp_path: Path) -> None:
    raw = RawInput(category="Demo", synthetic=SyntheticInput(folder=str(tmp_path / "demo"), users=20, seed=1))
    with pytest.raises(DataError, match="the synthetic category is not written yet; run `nextquill ingest` first"):
        source("amazon-2023").find(raw, fetch=False)
    found = source("amazon-2023").find(raw, fetch=True)
    write_sample(tmp_path / "sample", users=20, seed=1)
    assert [path.read_bytes() for path in (*found.reviews, *found.items)] == [
        (tmp_path / "sample" / name).read_bytes() for name in ("reviews.jsonl", "items.jsonl")
    ]
    (tmp_path / "demo" / "reviews.jsonl").write_text("{}\n")
    assert source("amazon-2023").find(raw, fetch=True) == source("amazon-2023").find(raw, fetch=False)
    assert found.reviews[0].read_text() == "{}\n"
    other = RawInput(category="Demo", synthetic=SyntheticInput(folder=str(tmp_path / "demo"), users=20, seed=2))
    with pytest.raises(DataError, match=r"written with other settings \(users 20, seed 1, world plain\); remove the"):
        source("amazon-2023").find(other, fetch=True)
    with pytest.raises(DataError, match=r"another layout; set ingest.source to amazon.2023"):
        source("amazon-2014").find(raw, fetch=True)
    with pytest.raises(ValueError, match="leave one of them out"):
        RawInput(category="Demo", reviews="r.jsonl", synthetic=SyntheticInput(folder="demo"))
    nowhere = RawInput(category="Demo", synthetic=SyntheticInput(folder=str(found.reviews[0] / "below"), users=20))
    with pytest.raises(
        UserError, match=r"cannot be written \(Not a directory.*set ingest\.inputs\[\]\.synthetic\.folder"
    ):
        source("amazon-2023").find(nowhere, fetch=True)
