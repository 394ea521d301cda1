"""`nextquill status` answers at once, because it loads no library that artifacts are made with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nextquill_core.config import load_config
from nextquill_core.stages.run import Run
from tests.conftest import REPO
from tests.nextquill_core.test_plan import make_all
from tests.world import small_settings, write_config

HEAVY = ("matplotlib", "numpy", "polars", "prefect", "pyarrow", "torch", "transformers")


@pytest.mark.parametrize("options", [[], ["--json"], ["--all"], ["--all", "--json"], ["--set", "seed=7"]], ids=str)
def test_it_loads_nothing_heavy(small_world: Path, tmp_path: Path, options: list[str]) -> None:
    config = write_config(tmp_path / "config.yaml", small_settings(small_world, tmp_path / "store"))
    make_all(Run(load_config(config, [])))
    command = ["nextquill", "status", "--config", str(config), *options]
    code = (
        f"import sys, flows.cli; sys.argv = {command!r}\n"
        "try: flows.cli.main()\nexcept SystemExit as end: assert not end.code\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPO, check=True)
    assert done.stderr == "[]\n"
    assert "evaluate" in done.stdout
    if "--json" in options:
        assert {row["state"] for row in json.loads(done.stdout)} <= {"fresh", "complete"}
