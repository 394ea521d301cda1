"""The pages docs/tutorials/write-a-source.md and docs/how-to/sources.md, followed on the example package."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPO
from tests.prefect_server import Server

DOCS = REPO / "docs"
GUIDE = "".join(
    (DOCS / page).read_text(encoding="utf-8") for page in ("tutorials/write-a-source.md", "how-to/sources.md")
)
REFERENCE = (DOCS / "reference" / "sources.md").read_text(encoding="utf-8")
EXAMPLE = REPO / "docs" / "example-source"
LEFT_OVER = shutil.ignore_patterns("build", "*.egg-info", "__pycache__", "artifacts", ".*")


def snippets(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)


@pytest.fixture(scope="module")
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A folder with `docs/`, and an environment where pip installs beside it instead of into this one's packages."""
    folder = tmp_path_factory.mktemp("guide")
    shutil.copytree(EXAMPLE, folder / "docs" / "example-source", ignore=LEFT_OVER)
    site = str(folder / "site")
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PIP_TARGET": site,
        "PIP_NO_INDEX": "1",
        "PYTHONPATH": site,
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "NO_COLOR": "1",
    }
    return folder, environment


def shell(surroundings: tuple[Path, dict[str, str]], script: str) -> subprocess.CompletedProcess[str]:
    folder, environment = surroundings
    return subprocess.run(
        ["bash", "-euxc", script], cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def test_the_guide_shows_the_example_as_it_is() -> None:
    for language, ending in {"python": "py", "toml": "toml", "yaml": "yaml"}.items():
        texts = [path.read_text(encoding="utf-8") for path in EXAMPLE.rglob(f"*.{ending}")]
        assert snippets(language)
        for snippet in snippets(language):
            assert any(snippet in text for text in texts), f"not in the example:\n{snippet}"


def test_the_reference_names_every_source_and_option() -> None:
    from nextquill_core.ingest.sources import BUILT_IN
    from nextquill_core.ingest.sources.lamp import TASKS, LampOptions
    from nextquill_core.ingest.sources.table import ItemColumns, ReviewColumns, TableOptions

    models = (TableOptions, ReviewColumns, ItemColumns, LampOptions)
    for name in (*BUILT_IN, *TASKS, *(name for model in models for name in model.model_fields)):
        assert f"`{name}`" in REFERENCE


@pytest.mark.flow
@pytest.mark.timeout(300)
def test_the_commands_of_the_guide_work_as_written(surroundings: tuple[Path, dict[str, str]], server: Server) -> None:
    folder, environment = surroundings
    done = shell((folder, environment | {"PREFECT_API_URL": server.api}), "".join(snippets("bash")))
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("bookclub-json ", "bookclub-cards"):
        assert re.search(rf"^{name} .*\[nextquill-bookclub 0\.1\.0\]$", done.stdout, re.MULTILINE)
    assert "BookClub: bookclub-cards keeps its contract" in done.stdout
    assert "3 passed" in done.stdout
    assert "BookClub: table keeps its contract" in done.stdout
    artifact = next(Path(line) for line in done.stdout.splitlines() if "/ingest/" in line)
    assert list((surroundings[0] / "my-source" / artifact / "sequences").glob("*.parquet"))


def test_the_sample_is_what_its_script_makes(surroundings: tuple[Path, dict[str, str]]) -> None:
    example = surroundings[0] / "docs" / "example-source"
    before = {path.name: path.read_bytes() for path in (example / "sample").iterdir()}
    assert len(before) == 4
    assert shell(surroundings, "python docs/example-source/make_sample.py").returncode == 0
    assert {path.name: path.read_bytes() for path in (example / "sample").iterdir()} == before


def test_a_package_that_cannot_be_loaded_is_one_line(tmp_path: Path, surroundings: tuple[Path, dict[str, str]]) -> None:
    info = tmp_path / "broken-2.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 2.0\n")
    (info / "entry_points.txt").write_text("[nextquill.sources]\nbroken-one = nowhere_at_all:Source\n")
    done = subprocess.run(
        [sys.executable, "-m", "flows", "sources"],
        cwd=REPO, env=surroundings[1] | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert "amazon-2023" in done.stdout
    assert "broken" not in done.stdout
    assert done.stderr == (
        "nextquill: nowhere_at_all:Source: source `broken-one` cannot be loaded: No module named 'nowhere_at_all'; "
        "fix or reinstall its package [broken 2.0]\n"
    )
