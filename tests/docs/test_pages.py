"""The documentation site builds without a broken link, and its reference pages are what the code says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from scripts.write_reference import FOLDER, PAGES
from tests.conftest import REPO


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
