"""The variables that torch reads are set by entry points before torch is imported, and never by the library."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from nextquill_core.environment import TORCH_VARIABLES
from tests.conftest import REPO

CHECK = """
import importlib.abc, os, runpy, sys
names = {names!r}
class Watch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("at torch", all(name in os.environ for name in names))
            sys.exit()
sys.meta_path.insert(0, Watch())
{code}
print("set", all(name in os.environ for name in names), os.environ.get("GOMP_SPINCOUNT"))
"""


def run(code: str, **variables: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in TORCH_VARIABLES} | variables
    command = [sys.executable, "-c", CHECK.format(names=list(TORCH_VARIABLES), code=code)]
    return subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.process
@pytest.mark.parametrize("worker", ["nextquill_core.causal.worker", "nextquill_core.training.worker"])
def test_a_worker_sets_them_before_torch_is_imported(worker: str) -> None:
    assert run(f"runpy.run_module({worker!r}, run_name='__main__')") == "at torch True"


@pytest.mark.process
def test_flows_set_them_and_the_library_does_not() -> None:
    assert run("import flows") == "set True 2000"
    assert run("import nextquill_core") == "set False None"
    assert run("import flows", GOMP_SPINCOUNT="7") == "set True 7", "what the user has set stays"
