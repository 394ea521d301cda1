"""Settings: precedence, unknown keys, what takes part in fingerprints."""

from __future__ import annotations

from pathlib import Path

import pytest

from nextquill_core.config import Config, ScoreConfig, load_config
from storage import UserError
from tests.conftest import REPO


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return path


def test_command_line_over_file_over_defaults(tmp_path: Path) -> None:
    path = write(tmp_path, "train: {alpha: 0.2, epochs: 1}\n")
    config = load_config(
        path, ["train.alpha=0.3", "ingest.inputs=[{category: Mine, reviews: r.jsonl, items: i.jsonl}]"]
    )
    assert (config.train.alpha, config.train.epochs, config.train.learning_rate) == (0.3, 1, 5e-6)
    assert config.ingest.inputs[0].category == "Mine"


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("train: {alfa: 1}", [], "unknown config key `train.alfa`; did you mean `train.alpha`?"),
        ("", ["wieghts.delta=1"], "unknown config key `wieghts`; did you mean `weights`?"),
        ("train: {alpha: x}", [], "`train.alpha`: Input should be a valid number"),
        ("train: {alpha: -1}", [], "greater than or equal to 0"),
        ("", ["train.alpha"], "--set takes KEY=VALUE"),
        ("", ["seed.x=1", "seed=1"], "`seed`"),
        ("seed: 1", ["seed.x=1"], "seed is a value, not a section"),
        ("[1, 2]", [], "a config is a YAML mapping"),
        ("a: [", [], "not valid YAML"),
        ("ingest: {inputs: [{category: A}, {category: A}]}", [], "each category may be named once"),
    ],
)
def test_faults_are_one_line(tmp_path: Path, text: str, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(write(tmp_path, text), overrides if message != "`seed`" else ["seed.x=1"])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file() -> None:
    with pytest.raises(UserError, match="cannot read the config"):
        load_config("nowhere.yaml")


def test_operational_fields_take_no_part() -> None:
    semantic = Config().semantic()
    assert "store" not in semantic
    assert "batch_tokens" not in semantic["score"]
    assert "launcher" not in semantic["train"]
    assert semantic["weights"] == {"policy": "threshold", "delta": 0.05, "high": 0.9, "low": 0.1, "options": {}}


def test_folds_decide_only_where_adapters_score(tmp_path: Path) -> None:
    assert ScoreConfig(folds=5).semantic() == {"effect_source": "initial"}
    assert ScoreConfig(effect_source="adapter", folds=5).semantic() == {"effect_source": "adapter", "folds": 5}
    with pytest.raises(UserError, match=r"`score\.folds`: Input should be greater than or equal to 2"):
        load_config(write(tmp_path, "score: {effect_source: adapter, folds: 1}"))


@pytest.mark.parametrize("path", sorted(REPO.glob("configs/*.yaml")), ids=lambda path: path.name)
def test_every_config_in_the_repository_is_valid(path: Path) -> None:
    load_config(path)
    assert path.read_text().startswith("# nextquill run --config")


def test_the_documentation_lists_every_key() -> None:
    from nextquill_core.config_docs import markdown

    assert (REPO / "docs" / "configuration.md").read_text() == markdown(), (
        "python -m nextquill_core.config_docs > docs/configuration.md"
    )
