"""Imports run one way, and the names of modules in strings resolve."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPO

LAYERS = ("storage", "nextquill_core", "tasks", "flows")
FILES = sorted(path for layer in LAYERS for path in (REPO / layer).rglob("*.py"))
ROOMS = (
    ("errors", "records", "schemas", "progress", "plugins", "folds", "memory"),
    ("config",),
    ("prompts",),
    ("ingest", "synthetic"),
    ("model", "hub"),
    ("tokens", "token_texts"),
    ("causal",),
    ("training",),
    ("generation",),
    ("methods",),
    ("evaluation",),
    ("analysis",),
    ("pipeline",),
    ("studies",),
    ("registry",),
)
"""The rooms of nextquill_core: each imports only from its own row and the rows above it."""
MODULE = re.compile(rf"^(?:{'|'.join(LAYERS)})(?:\.[a-z_]+)+$")


def imports(path: Path) -> Iterator[str]:
    """Yield the modules that a file imports, those that it names in strings included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and MODULE.match(node.value):
            yield node.value


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPO)))
def test_a_layer_imports_only_what_lies_below(path: Path) -> None:
    layer = LAYERS.index(path.relative_to(REPO).parts[0])
    above = set(LAYERS[layer + 1 :]) | ({"prefect"} if layer < 2 else set())
    assert not {name for name in imports(path) if name.split(".")[0] in above}


def test_every_room_has_a_place_in_the_order() -> None:
    known = [name for row in ROOMS for name in row]
    found = {path.stem for path in (REPO / "nextquill_core").iterdir() if path.suffix == ".py" or path.is_dir()}
    assert sorted(known) == sorted(found - {"__init__", "__pycache__", "configs"})


@pytest.mark.parametrize(
    "path", [path for path in FILES if "nextquill_core" in path.parts], ids=lambda path: str(path.relative_to(REPO))
)
def test_a_room_imports_only_from_rooms_before_it(path: Path) -> None:
    ranks = {name: rank for rank, row in enumerate(ROOMS) for name in row}
    own = path.relative_to(REPO / "nextquill_core").parts[0].removesuffix(".py")
    if own == "__init__":
        return
    later = {name for name in imports(path) if name.startswith("nextquill_core.") and ranks[room(name)] > ranks[own]}
    assert not later


def test_names_of_modules_in_strings_resolve() -> None:
    for path in [*FILES, *(REPO / "benchmarks").glob("*.py")]:
        for name in imports(path):
            if MODULE.match(name):
                found = importlib.util.find_spec(name)
                assert found is not None, f"{path} names {name}, which is no module"


@pytest.mark.process
def test_the_model_code_runs_without_prefect_and_polars() -> None:
    absent = ["prefect", "polars", "deepspeed", "datasets", "yaml", "orjson", "nltk", "matplotlib"]
    modules = [
        ".".join(path.relative_to(REPO).with_suffix("").parts)
        for part in ("model", "causal", "training")
        for path in sorted((REPO / "nextquill_core" / part).rglob("[a-z]*.py"))
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
