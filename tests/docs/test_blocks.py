"""Every code block of the README and of docs/ is checked: settings are accepted, commands exist with these options.

Not all commands can be run here: some need a cluster, a server or a GPU. Those of `nextquill` and `prefect` are parsed
by the programs' own parsers, and paths of the repository in all others must exist. Python is compiled here and run
elsewhere: by the other files of this folder, `tests/nextquill_core/causal/test_weights.py` and
`tests/nextquill_core/pipeline/test_plugins.py`. The tutorial is run to its end in `tests/docs/test_tutorial.py`;
docs/how-to/sources.md and docs/tutorials/write-a-source.md in
`tests/nextquill_core/ingest/sources/test_third_party.py`.
"""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import pytest
import typer
import yaml
from click.exceptions import UsageError
from typer.main import get_command

from flows.cli.main import app
from nextquill_core.config import Config, parse_config
from tests.conftest import REPO

GENERATED = "commands.md"  # a test compares it with the command line
PAGES = [
    page
    for page in (REPO / "README.md", REPO / "CONTRIBUTING.md", *sorted((REPO / "docs").rglob("*.md")))
    if page.name != GENERATED
]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LANGUAGES = {"", "console", "bash", "yaml", "toml", "json", "python"}
SECTIONS = set(Config.model_fields)
PROGRAM = re.compile(r"^(?:\$ )?(?:\w+=\S+ |pip install .*&& +)*(?:nextquill|prefect) ", re.MULTILINE)
PLACE = re.compile(r"(?<![\w/.-])((?:configs|deploy|scripts|tests|docs|benchmarks)/[\w./-]*\w)")


class Block(NamedTuple):
    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(REPO)}:{self.line}"


def blocks(*languages: str) -> list[Block]:
    """Return the code blocks of all pages in these languages."""
    texts = {page: page.read_text(encoding="utf-8") for page in PAGES}
    return [
        Block(page, text[: match.start()].count("\n") + 1, match[1], match[2])
        for page, text in texts.items()
        for match in FENCE.finditer(text)
        if match[1] in languages
    ]


def words_of(line: str) -> Iterator[list[str]]:
    """Yield the words of each command of a line; comments and optional parts in brackets are left out."""
    lexer = shlex.shlex(re.sub(r"\s\[-[^]]*\]", "", line.removeprefix("$ ")), posix=True, punctuation_chars=";&")
    lexer.whitespace_split = True
    found: list[str] = []
    for word in lexer:
        if set(word) <= set(";&"):
            yield found
            found = []
        else:
            found.append(word)
    yield found


def commands(program: str) -> Iterator[Any]:
    """Yield the words of each command of a program that a block shows."""
    for block in blocks("", "console", "bash"):
        if not PROGRAM.search(block.text) or "──" in block.text:
            continue
        for line in re.sub(r"\\\n\s*", "", block.text).splitlines():
            if not PROGRAM.match(line) or "$(" in line:
                continue
            for words in words_of(line):
                while words and "=" in words[0]:  # variables before the command
                    words = words[1:]
                if words[:1] == [program]:
                    yield pytest.param(words[1:], id=f"{block} {' '.join(words)[:60]}")


def test_every_block_names_a_language_that_is_checked() -> None:
    for page in PAGES:
        assert {match[1] for match in FENCE.finditer(page.read_text(encoding="utf-8"))} <= LANGUAGES, page


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_settings_are_accepted(block: Block) -> None:
    values = yaml.safe_load(block.text)
    assert set(values) <= SECTIONS
    if values.get("weights", {}).get("policy") == "magnitude":  # the policy of the guide's package, installed elsewhere
        values["weights"].pop("options")
        values["weights"].pop("policy")
    if "options" in values.get("ingest", {}):  # of the example package
        values["ingest"].pop("options")
    parse_config(values, str(block))


@pytest.mark.parametrize("block", blocks("toml", "json"), ids=str)
def test_files_can_be_read(block: Block) -> None:
    assert tomllib.loads(block.text) if block.language == "toml" else json.loads(block.text)


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_python_compiles(block: Block) -> None:
    compile(block.text, str(block), "exec")


@pytest.mark.parametrize("words", commands("nextquill"))
def test_commands_of_nextquill_exist_with_these_options(words: list[str]) -> None:
    group = get_command(app)
    parent = typer.Context(group)
    try:
        name, command, rest = group.resolve_command(parent, list(words))  # type: ignore[attr-defined]
        with command.make_context(name, rest, parent=parent) as context:
            config = str(context.params.get("config") or "")
    except UsageError as error:
        pytest.fail(error.format_message())
    if config.startswith("configs/"):
        assert (REPO / config).is_file()


@pytest.mark.parametrize("words", commands("prefect"))
def test_commands_of_prefect_exist_with_these_options(words: list[str]) -> None:
    from prefect.cli._app import _app

    words = [str(UUID(int=0)) if word == "ID" else word for word in words if word != "--no-prompt"]
    _app.parse_args(words, exit_on_error=False, print_error=False)


@pytest.mark.parametrize("block", blocks("", "console", "bash"), ids=str)
def test_places_that_commands_name_exist(block: Block) -> None:
    if "──" in block.text:
        return
    for place in PLACE.findall(block.text):
        assert (REPO / place).exists() or place.startswith(("docs/example-source", "deploy/server.env", "deploy/postg"))


def test_targets_of_make_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (REPO / "Makefile").read_text(), re.MULTILINE))
    named = {
        name
        for block in blocks("", "console", "bash")
        for name in re.findall(r"^(?:\$ )?make ([a-z-]+)", block.text, re.M)
    }
    assert named
    assert named <= targets
