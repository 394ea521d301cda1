"""Where an artifact comes from."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from storage.provenance import ROOT, code_version


@pytest.mark.process
def test_the_repository_of_a_user_is_not_that_of_the_code(tmp_path: Path) -> None:
    """A virtual environment often lies in the repository of the project that uses the package."""
    packages = tmp_path / ".venv" / "site-packages"
    shutil.copytree(ROOT / "storage", packages / "storage", ignore=shutil.ignore_patterns("__pycache__"))
    commit = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--allow-empty", "-m", "first"]
    for command in (["git", "init", "--quiet"], commit):
        subprocess.run(command, cwd=tmp_path, check=True)
    asked = "from storage.provenance import code_version; print(*code_version())"
    done = subprocess.run(
        [sys.executable, "-c", asked], cwd=packages, check=True, capture_output=True, text=True, env={}
    )
    version, dirty = done.stdout.split()
    assert dirty == "None"
    assert len(version) < 40, "a version or `unknown`, no commit"


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="the code is not in a repository")
def test_the_commit_of_the_code_is_known() -> None:
    version, dirty = code_version()
    assert len(version) == 40
    assert dirty is not None
