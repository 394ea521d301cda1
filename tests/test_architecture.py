"""Imports run one way, and the names of modules in strings resolve."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import REPO

LAYERS = ("storage", "nextquill_core", "tasks", "flows")
FILES = sorted(path for layer in LAYERS for path in (REPO / layer).rglob("*.py"))
ROOMS = (
    ("environment", "errors", "records", "schemas", "progress", "plugins", "folds", "memory"),
    ("methods.registry",),
    ("config",),
    ("prompts",),
    ("tokens",),
    ("ingest", "synthetic"),
    ("model", "hub"),
    ("orders",),
    ("causal",),
    ("training",),
    ("generation",),
    ("methods",),
    ("writing",),
    ("evaluation",),
    ("analysis",),
    ("pipeline",),
    ("costs",),
    ("studies",),
    ("registry",),
    ("serving",),
    ("api",),
)
"""The rooms of nextquill_core: each imports only from its own row and the rows above it.

The table of methods stands apart from the rest of its room, because the configuration checks names with it.
"""
MODULE = re.compile(rf"^(?:{'|'.join(LAYERS)})(?:\.[a-z_]+)+$")


@cache
def imports(path: Path) -> list[str]:
    """Return the modules that a file imports, those that it names in strings included."""
    return list(_imports(path))


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and MODULE.match(node.value):
            yield node.value


RANKS = {name: rank for rank, row in enumerate(ROOMS) for name in row}


def rank(module: str) -> int:
    """Return the row of a module of nextquill_core, by its room or by its own name below it."""
    _, name, *rest = module.split(".")
    return RANKS.get(".".join([name, *rest[:1]]), RANKS[name])


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_imports_only_what_lies_below(layer: str) -> None:
    rank = LAYERS.index(layer)
    above = set(LAYERS[rank + 1 :]) | ({"prefect"} if rank < 2 else set())
    assert [
        f"{path.relative_to(REPO)} imports {name}"
        for path in FILES
        if path.relative_to(REPO).parts[0] == layer
        for name in imports(path)
        if name.split(".")[0] in above
    ] == []


def test_every_room_has_a_place_in_the_order() -> None:
    known = [name for row in ROOMS for name in row if "." not in name]
    found = {path.stem for path in (REPO / "nextquill_core").iterdir() if path.suffix == ".py" or path.is_dir()}
    assert sorted(known) == sorted(found - {"__init__", "__pycache__", "configs"})


def test_a_room_imports_only_from_rooms_before_it() -> None:
    modules = {".".join(path.relative_to(REPO).with_suffix("").parts): path for path in FILES}
    assert [
        f"{module} imports {name}"
        for module, path in modules.items()
        if module.startswith("nextquill_core.") and module != "nextquill_core.__init__"
        for name in imports(path)
        if name.startswith("nextquill_core.") and rank(name) > rank(module)
    ] == []


def test_formats_import_nothing_of_sources_and_the_protocol() -> None:
    below = {"batches", "canonical", "formats"}
    for path in (REPO / "nextquill_core" / "ingest" / "formats").glob("*.py"):
        names = {name for name in imports(path) if name.startswith("nextquill_core.ingest.")}
        assert {name.split(".")[2] for name in names} <= below, path


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
