"""Imports run one way."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPO

LAYERS = ("storage", "nextquill_core", "tasks", "flows")
FILES = sorted(path for layer in LAYERS for path in (REPO / layer).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPO)))
def test_a_layer_imports_only_what_lies_below(path: Path) -> None:
    layer = LAYERS.index(path.relative_to(REPO).parts[0])
    above = set(LAYERS[layer + 1 :]) | ({"prefect"} if layer < 2 else set())
    assert not {name for name in imports(path) if name.split(".")[0] in above}


@pytest.mark.process
def test_the_model_code_runs_where_only_torch_transformers_peft_and_pyarrow_are() -> None:
    absent = ["prefect", "polars", "pydantic", "deepspeed", "datasets", "yaml", "orjson", "nltk", "matplotlib"]
    modules = [
        ".".join(path.relative_to(REPO).with_suffix("").parts)
        for part in ("model", "causal", "training")
        for path in sorted((REPO / "nextquill_core" / part).glob("[a-z]*.py"))
    ]
    # Other libraries look for some of these in passing; only our own code is kept from them.
    code = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {absent!r}:
            frame = sys._getframe(1)
            while frame and frame.f_code.co_filename.startswith("<frozen importlib"):
                frame = frame.f_back
            if frame and frame.f_code.co_filename.startswith({str(REPO / "nextquill_core")!r}):
                raise ModuleNotFoundError(f"{{frame.f_code.co_filename}} needs {{name}}")
sys.meta_path.insert(0, Absent())
for name in {modules!r}:
    __import__(name)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPO)
