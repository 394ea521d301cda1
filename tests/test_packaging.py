"""The built package works outside the repository, and its metadata declare exactly what the code imports."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import REPO
from tests.test_architecture import FILES, LAYERS, imports

PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
NOT_FOR_USERS = ("dev", "docs")
"""Extras with tools for developers, which no package imports."""
NOT_INSTALLED_HERE = {"mlflow": "mlflow", "wandb": "wandb"}
"""Distributions, by module, of optional libraries that the test environment lacks."""
COMES_WITH = {"pydantic-core": "pydantic requires one exact version of it"}
"""Imported distributions that are not declared, and why."""
NOT_IMPORTED = {
    "s3fs": "fsspec imports it for s3://",
    "gcsfs": "fsspec imports it for gs://",
    "gguf": "transformers imports it for .gguf files",
    "prefect-kubernetes": "Prefect imports it for a Kubernetes work pool",
    "tensorboard": "torch.utils.tensorboard imports it",
}
"""Declared distributions that no package imports, and why they are declared."""


def distributions(requirements: list[str]) -> set[str]:
    """Return the names in a list of requirements as package indexes compare them."""
    return {canonicalize_name(Requirement(one).name) for one in requirements}


def declared() -> set[str]:
    """Return the distributions in the dependencies and in the extras for users."""
    extras = PROJECT["optional-dependencies"]
    lists = [PROJECT["dependencies"], *(extras[name] for name in extras if name not in NOT_FOR_USERS)]
    return set[str]().union(*map(distributions, lists))


def imported() -> set[str]:
    """Return the distributions of the third-party modules that the packages import, at any depth of the code."""
    roots = {name.partition(".")[0] for path in FILES for name in imports(path)}
    modules = roots - set(LAYERS) - set(sys.stdlib_module_names)
    installed = importlib.metadata.packages_distributions()
    return {canonicalize_name(NOT_INSTALLED_HERE.get(name) or installed[name][0]) for name in modules}


def locked() -> list[Requirement]:
    """Return the requirements in the lock."""
    lines = (REPO / "requirements.lock").read_text().splitlines()
    return [Requirement(line) for line in lines if line[:1] != "#"]


def test_every_place_names_the_python_versions_of_the_package() -> None:
    lowest, above = map(int, re.findall(r"3\.(\d+)", PROJECT["requires-python"]))
    versions = [f"3.{minor}" for minor in range(lowest, above)]
    classifiers = [name.rpartition(" ")[2] for name in PROJECT["classifiers"] if ":: Python ::" in name]
    matrix = re.search(r"python: (\[.*?\])", (REPO / ".github/workflows/ci.yml").read_text())
    assert matrix
    assert classifiers == versions == json.loads(matrix[1])
    assert f"(3, {lowest}) <= sys.version_info[:2] <= (3, {above - 1})" in (REPO / "Makefile").read_text()
    words = f"Python {', '.join(versions[:-1])} or {versions[-1]}"
    for page in ("README.md", "docs/tutorials/first-run.md", "deploy/Dockerfile", "Makefile"):
        assert words in (REPO / page).read_text(encoding="utf-8"), page


def test_every_imported_library_is_declared() -> None:
    assert imported() - declared() == COMES_WITH.keys()


def test_every_declared_library_is_imported_or_has_a_reason() -> None:
    assert declared() - imported() == NOT_IMPORTED.keys()


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_the_lock_has_what_each_locked_library_needs_under_each_version_of_python(version: str) -> None:
    python = {"python_version": version, "python_full_version": f"{version}.0", "extra": ""}
    installed = {canonicalize_name(one.name) for one in locked() if one.marker is None or one.marker.evaluate(python)}
    missing = []
    for name in sorted(installed):
        with suppress(importlib.metadata.PackageNotFoundError):  # it belongs to another version of Python
            needed = map(Requirement, importlib.metadata.requires(name) or [])
            used = [one for one in needed if one.marker is None or one.marker.evaluate(python)]
            missing += [f"{name} needs {one.name}" for one in used if canonicalize_name(one.name) not in installed]
    assert missing == []


def test_the_lock_has_every_declared_library_that_tests_need() -> None:
    assert distributions(PROJECT["dependencies"]) <= {canonicalize_name(one.name) for one in locked()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the source distribution, and from it the wheel."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(REPO)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel alone; the other libraries are those of the test environment."""
    folder = tmp_path_factory.mktemp("installed")
    (wheel,) = built.glob("*.whl")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), str(wheel)]
    subprocess.run(command, check=True)
    return folder


def run(installed: Path, cwd: Path, *arguments: str) -> str:
    """Run a command of the installed package and return what it prints.

    Args:
        installed: The folder with the installed package.
        cwd: A folder outside the repository.
        arguments: The command and its options.
    """
    environment = {**os.environ, "PYTHONPATH": str(installed), "PREFECT_HOME": str(cwd / "prefect")}
    command = [sys.executable, "-m", "flows", *arguments]
    where = subprocess.check_output(
        [sys.executable, "-c", "import flows; print(flows.__file__)"], cwd=cwd, env=environment
    )
    assert where.decode().startswith(str(installed)), "it is not the repository that runs"
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.process
def test_wheel_and_source_distribution_have_every_file(built: Path) -> None:
    def tracked(*patterns: str) -> set[str]:
        listed = subprocess.run(["git", "ls-files", *patterns], capture_output=True, text=True, cwd=REPO, check=True)
        return set(listed.stdout.split())

    sources = {name for name in tracked(*LAYERS) if name != "nextquill_core/configs"}
    sources |= {f"nextquill_core/{name}" for name in tracked("configs")}
    (wheel,), (source,) = built.glob("*.whl"), built.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as file:
        in_wheel = {name for name in file.namelist() if ".dist-info/" not in name}
    with tarfile.open(source) as file:
        in_source = {name.partition("/")[2] for name in file.getnames()}
    assert in_wheel == sources
    assert sources | {"LICENSE", "README.md", "pyproject.toml"} <= in_source


@pytest.mark.process
@pytest.mark.flow
def test_an_installed_package_ingests_outside_the_repository(installed: Path, tmp_path: Path) -> None:
    assert "ingest" in run(installed, tmp_path, "--help")
    run(installed, tmp_path, "sample", "raw", "--users", "30")
    inputs = "ingest.inputs=[{category: Sample, reviews: raw/reviews.jsonl, items: raw/items.jsonl}]"
    settings = ["--config", "small", "--set", inputs, "--store", "artifacts"]
    run(installed, tmp_path, "ingest", *settings)
    (manifest,) = (tmp_path / "artifacts" / "ingest").glob("*/manifest.json")
    assert run(installed, tmp_path, "path", "ingest", *settings).strip() == str(manifest.parent)
