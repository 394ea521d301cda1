"""The command `explain`: the page of one person, the same in the terminal, and unknown names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nextquill_core.pipeline.run import Run
from nextquill_core.schemas import column_by_example
from tests.flows.cli.test_main import nextquill, refused
from tests.world import small_settings, write_config


@pytest.fixture
def config(small_world: Path, prepared_store: Path, tmp_path: Path) -> Path:
    return write_config(tmp_path / "config.yaml", small_settings(small_world, prepared_store))


def train_example(config: Path) -> tuple[str, str]:
    """Return a user and an example of the train split, which needs no predictions."""
    from nextquill_core.config import load_config

    run = Run(load_config(config), fetch=False)
    examples = run.artifact(run.plan.ingest).folder / "examples"
    splits, users = (column_by_example(examples, name) for name in ("split", "user_id"))
    return next((users[key], key) for key, split in splits.items() if split == "train")


@pytest.mark.pipeline
def test_one_person_is_a_page_and_colours_in_the_terminal(
    monkeypatch: Any, capsys: Any, config: Path, tmp_path: Path
) -> None:
    user, example = train_example(config)
    page = tmp_path / "page.html"
    arguments = ("explain", "--config", config, "--user", user, "--item", example, "--output", page)
    assert nextquill(monkeypatch, *arguments) == 0
    shown = capsys.readouterr().out
    assert all(words in shown for words in (user, "The true review", str(page)))
    html = page.read_text(encoding="utf-8")
    assert user in html
    assert "tokens-of-review" in html
    assert "http" not in html.split("<body>")[1].split("<script")[0]


@pytest.mark.parametrize(
    ("option", "words"),
    [(("--user", "unknown"), "no user 'unknown' in this run"), (("--item", "nothing"), "no example of the item")],
)
@pytest.mark.pipeline
def test_an_unknown_name_is_one_line_with_near_names(
    monkeypatch: Any, capsys: Any, config: Path, tmp_path: Path, option: tuple[str, str], words: str
) -> None:
    user, _ = train_example(config)
    page = tmp_path / "page.html"
    named = ("--config", config, "--user", user, "--output", page, *option)
    message = refused(monkeypatch, capsys, "explain", *named)
    assert words in message
    assert "for instance" in message
    assert not page.exists()
