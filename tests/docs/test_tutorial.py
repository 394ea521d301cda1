"""The commands of the tutorial and of the README, run in order, on a synthetic category that takes a minute.

The configurations of the pages are replaced by small settings in `configs/demo.yaml`, and the data files of the README
by those of the small category. Everything else runs as written.
"""

from __future__ import annotations

import gzip
import json
import re
import shlex
import time
from pathlib import Path

import pytest

from nextquill_core.schemas import column_by_example
from tests.conftest import REPO
from tests.forked import Forked
from tests.prefect_server import Server
from tests.world import small_settings, write_config

pytestmark = [pytest.mark.flow, pytest.mark.ranks, pytest.mark.timeout(1500)]

DEMO = "configs/demo.yaml"
STAGES = ("ingest", "model", "score", "train", "train:contextsft", "evaluate")


def commands(page: str) -> list[str]:
    """Return the commands of `nextquill` that a page shows; `make run` stands for the one that it ends in."""
    text = (REPO / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```(?:console)?\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line.removeprefix("$ ") for block in blocks for line in re.sub(r"\\\n\s*", "", block).splitlines()]
    lines = [f"nextquill run --config {DEMO}" if line.split()[:2] == ["make", "run"] else line for line in lines]
    return [line for line in lines if line.startswith("nextquill ")]


class Project:
    """A folder with `configs/demo.yaml` and small data, in which commands run as in a copy of the repository."""

    def __init__(self, folder: Path, world: Path, running: Server) -> None:
        self.folder = folder
        self.environment = running.environment
        for part in ("reviews", "items"):
            (folder / f"{part}.jsonl.gz").write_bytes(gzip.compress((world / f"{part}.jsonl").read_bytes()))
        settings = small_settings(world, folder / "artifacts")
        settings["evaluate"]["decoding"] = ["paper"]
        (folder / "configs").mkdir()
        write_config(folder / DEMO, settings)

    def run(self, line: str) -> str:
        """Run a command of a page and return what it prints; it must succeed."""
        done = self.start(line).finish(600)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        return done.stdout

    def start(self, line: str, *more: str) -> Forked:
        """Start a command of a page, with more words after its own."""
        program, *words = (DEMO if word in ("books", "small") else word for word in shlex.split(line, comments=True))
        assert program == "nextquill"
        return Forked(("flows", *words, *more), self.environment, self.folder)

    def someone(self) -> tuple[str, str]:
        """Return a user of the artifacts and an item that the user has reviewed."""
        examples = Path(self.run(f"nextquill path ingest --config {DEMO}").strip()) / "examples"
        user = next(iter(column_by_example(examples, "user_id").values()))
        with gzip.open(self.folder / "reviews.jsonl.gz", "rt", encoding="utf-8") as lines:
            rows = map(json.loads, lines)
            return user, next(row["parent_asin"] for row in rows if row["user_id"] == user)


@pytest.fixture(scope="module")
def project(small_world: Path, tmp_path_factory: pytest.TempPathFactory, server: Server) -> Project:
    return Project(tmp_path_factory.mktemp("project"), small_world, server)


def states(printed: str) -> dict[str, str]:
    """Return the state of each stage in what `nextquill status` prints."""
    rows = (line.split() for line in printed.splitlines() if line.strip())
    return {row[0]: row[1] for row in rows if row[0] in STAGES}


def test_the_makefile_runs_the_command_that_stands_for_make_run() -> None:
    assert f"nextquill run --config {DEMO}\n" in (REPO / "Makefile").read_text(encoding="utf-8")


def test_the_tutorial_says_what_happens(project: Project) -> None:
    run, status, path, report, asked, score, rest = commands("docs/tutorials/first-run.md")

    printed = project.run(run)
    assert "nextquill" in printed
    assert "\nreport: " in printed
    assert states(project.run(status)) == dict.fromkeys(STAGES, "fresh")
    assert (Path(project.run(path).strip()) / "weights").is_dir()
    assert Path(project.run(report).strip()).is_file()

    printed = project.run(asked)
    changed = {"score": "stale", "train": "stale", "evaluate": "stale"}
    assert states(printed) == dict.fromkeys(STAGES, "fresh") | changed
    assert "weights.delta" in printed
    effects = project.folder / "artifacts" / "effects"
    before = list(effects.iterdir())
    project.run(score)
    assert states(project.run(asked)) == dict.fromkeys(STAGES, "fresh") | changed | {"score": "fresh"}
    project.run(rest)
    assert states(project.run(asked)) == dict.fromkeys(STAGES, "fresh")
    assert list(effects.iterdir()) == before, "effects are not computed again"
    assert states(project.run(status)) == dict.fromkeys(STAGES, "fresh"), "the first results are still there"


@pytest.mark.slow
def test_the_readme_s_commands_run_as_written(project: Project) -> None:
    *lines, write, serve = commands("README.md")
    printed = [project.run(line) for line in lines]
    assert len(printed) == 5
    assert states(printed[-2]) == dict.fromkeys(STAGES, "fresh")
    assert Path(printed[-1].strip()).is_file()
    user, item = project.someone()
    assert "--user U --item I " in write
    assert project.run(write.replace("--user U --item I", f"--user {user} --item {item}")).strip()
    server = project.start(serve, "--port", "0")
    while server.poll() is None and "http://" not in server.stdout:
        time.sleep(0.1)
    server.terminate()
    assert server.finish(60).returncode == 0
    assert server.stdout.startswith("http://127.0.0.1:")
