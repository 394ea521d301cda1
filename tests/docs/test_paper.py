"""What the page on the paper names exists: functions, settings, commands, presets, configurations and tests."""

from __future__ import annotations

import re
import shlex
from importlib import import_module
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
import typer

from flows.cli.main import app
from nextquill_core.analysis.published import PUBLISHED
from nextquill_core.config import known_keys
from nextquill_core.config.packaged import read_config
from nextquill_core.costs.sizes import PUBLISHED as SIZES
from tests.conftest import REPO

PAGE = (REPO / "docs" / "reference" / "paper.md").read_text(encoding="utf-8")
COLUMNS = 7
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


class Part(NamedTuple):
    what: str
    v1: str
    v2: str
    function: str
    setting: str
    command: str
    test: str


def parts() -> list[Part]:
    rows = [re.split(r"(?<!\\) \| ", line[2:-2]) for line in PAGE.splitlines() if line.startswith("| ")]
    return [Part(*row) for row in rows if len(row) == COLUMNS and row[3] != "function"]


PARTS = parts()


def names(cell: str) -> list[str]:
    found = re.findall(r"`([^`]+)`", cell)
    assert found, f"{cell} names nothing"
    return found


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.what[:40])
def test_every_name_of_a_row_exists(part: Part) -> None:
    for name in names(part.function):
        module, _, attribute = name.rpartition(".")
        try:
            import_module(name)
        except ModuleNotFoundError:
            assert hasattr(import_module(module), attribute), name
    assert set(names(part.setting)) <= set(known_keys()), part.setting
    for test in names(part.test):
        path, _, function = test.partition("::")
        assert f"def {function}(" in (REPO / path).read_text(encoding="utf-8"), test
    for line in names(part.command):
        program, command, *arguments = shlex.split(line)
        assert program == "nextquill"
        options = {option for parameter in COMMANDS[command].params for option in parameter.opts}
        assert {argument for argument in arguments if argument.startswith("--")} <= options, line
        given = dict(pairwise(arguments))
        config = given.get("--config", "configs/books.yaml").replace("FILE", "configs/books.yaml")
        read_config(str(REPO / config), preset=given.get("--preset"))


def test_every_equation_and_figure_of_the_first_version_has_a_row() -> None:
    equations, figures = (PAGE.partition(f"## {name}\n")[2].partition("\n## ")[0] for name in ("Equations", "Figures"))

    def numbers(section: str, column: int) -> set[int]:
        rows = [line.split(" | ") for line in section.splitlines() if line.startswith("| ")]
        return {int(number) for row in rows[1:] for number in re.findall(r"\d+", row[column])}

    assert numbers(equations, 1) == set(range(1, 8))
    assert numbers(equations, 2) >= {3, 4, 5, 6, 7, 8}
    assert numbers(figures, 1) == set(range(2, 10))


def test_every_configuration_of_a_data_set_has_the_examples_that_the_page_names() -> None:
    section = PAGE.partition("## Configurations of the four data sets\n")[2]
    rows = re.findall(r"^\| .+? \| .+? \| `(.+?)` \| ([\d,]+) train, ([\d,]+) val, ([\d,]+) test", section, re.M)
    assert len(rows) == 4
    for path, *counts in rows:
        config = read_config(str(REPO / path))
        (raw,) = config.ingest.inputs
        known = SIZES[config.ingest.protocol.name, raw.category].examples
        assert [int(count.replace(",", "")) for count in counts] == [known["train"], known["val"], known["test"]]


def test_methods_of_the_table_are_named_as_in_the_registry() -> None:
    assert {number.method for number in PUBLISHED if number.ours} >= {"mce-dce", "causal-only", "norm-only"}
    assert "`mce-dce`" in PAGE
