"""Fixtures of the command line's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.world import small_settings, write_config


@pytest.fixture
def config(small_world: Path, tmp_path: Path) -> Path:
    """Return a small configuration whose store is empty."""
    return write_config(tmp_path / "config.yaml", small_settings(small_world, tmp_path / "store"))
