"""The documentation site builds without a broken link, and its reference pages are what the code says."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from flows.cli.main import main
from nextquill_core.pipeline.step import KINDS
from scripts.write_reference import FOLDER, PAGES
from tests.conftest import REPO

WRITTEN = [
    *(REPO / name for name in ("README.md", "CONTRIBUTING.md")),
    *(page for page in sorted((REPO / "docs").rglob("*.md")) if page.name not in PAGES),
]
"""Pages that are not made from the code."""
NAMED = re.compile(
    r"`(?P<path>(?:nextquill_core|flows|tasks|storage|tests|configs|deploy|scripts|benchmarks|docs)/[\w./-]*)"
    r"(?:::(?P<test>\w+))?`|`::(?P<another>\w+)`"
)
"""A file or folder of the repository, perhaps with a test in it; or another test of the file before."""
MADE_BY_HAND = ("deploy/postgres.env", "deploy/server.env")


@pytest.mark.parametrize("name", PAGES)
def test_reference_pages_are_up_to_date(name: str) -> None:
    assert (FOLDER / name).read_text(encoding="utf-8") == PAGES[name](), "run `make reference`"


@pytest.mark.process
def test_the_site_builds_offline_without_a_broken_link(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    home = (tmp_path / "site" / "index.html").read_text()
    assert "Your first run" in home
    assert "https://fonts" not in home, "no request to other servers"
    assert "preference_weights" in (tmp_path / "site" / "reference" / "api" / "index.html").read_text()


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: str(page.relative_to(REPO)))
def test_files_and_tests_that_a_page_names_exist(page: Path) -> None:
    path = ""
    for match in NAMED.finditer(page.read_text(encoding="utf-8")):
        path = match["path"] or path
        assert (REPO / path).exists() or path in MADE_BY_HAND, f"{page} names {path}, which does not exist"
        if test := match["test"] or match["another"]:
            assert f"def {test}(" in (REPO / path).read_text(encoding="utf-8"), f"{page} names {path}::{test}"


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: str(page.relative_to(REPO)))
def test_files_that_a_page_links_to_exist(page: Path) -> None:
    for place in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / place).exists(), f"{page} links to {place}, which does not exist"


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: str(page.relative_to(REPO)))
def test_a_page_has_one_title_and_says_first_what_it_is_for(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert re.findall(r"^# ", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE) == ["# "]
    if page.parent != REPO:
        first = text.split("\n\n")[1]
        assert first.startswith(("After this page", "Look up")), f"{page} begins with {first!r}"


def test_the_page_of_kinds_has_a_row_for_each_kind_with_its_command_and_file() -> None:
    page = (REPO / "docs/reference/kinds.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| [^|]+ \| `(\w+)`[^|]* \| `([\w/.]+)` \|$", page, re.MULTILINE)
    files = {name: kind.path.partition(":")[0].replace(".", "/") + ".py" for name, kind in KINDS.items()}
    wanted = {
        (name, kind.command, files[name].removeprefix("nextquill_core/pipeline/")) for name, kind in KINDS.items()
    }
    assert set(rows) == wanted
    assert len(rows) == len(wanted)


def test_the_tree_of_the_readme_has_every_package() -> None:
    tree = (REPO / "README.md").read_text(encoding="utf-8").partition("## The tree")[2]
    named: set[str] = set()
    parent = ""
    for indent, name in re.findall(r"^( *)([\w./]+)  ", tree, re.MULTILINE):
        parent = parent if indent else name
        named.add((parent if indent else "") + name.rstrip("/"))
    assert all((REPO / place).exists() for place in named)
    for package in ("flows", "tasks", "nextquill_core"):
        inner = {path.parent.relative_to(REPO).as_posix() for path in (REPO / package).glob("*/__init__.py")}
        assert inner <= named


def test_readme_and_reference_name_every_exit_code() -> None:
    wanted = {int(code) for code in re.findall(r"(?:codes: |; )(\d+) ", inspect.getdoc(main) or "")}
    assert wanted == {0, 1, 2, 3, 130}
    readme = (REPO / "README.md").read_text(encoding="utf-8").partition("Exit codes: ")[2].partition(". ")[0]
    assert {int(part.split()[0]) for part in readme.split("; ")} == wanted
    table = (REPO / "docs/reference/runs.md").read_text(encoding="utf-8").partition("## Exit codes")[2]
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", table.partition("## ")[0], re.MULTILINE)} == wanted


def test_the_cost_of_both_branches_is_the_benchmark_s() -> None:
    measured = (REPO / "docs/BENCHMARKS.md").read_text(encoding="utf-8")
    small, large = re.findall(r"^\| time, over the factual branch alone \| ([\d.]+) \| ([\d.]+) \|", measured, re.M)[0]
    page = " ".join((REPO / "docs/explanation/scoring.md").read_text(encoding="utf-8").split())
    assert f"{small} times the time of the factual branch alone" in page
    assert f"and {large} times with the paper's" in page
