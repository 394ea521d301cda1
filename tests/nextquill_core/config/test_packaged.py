"""Presets: every key is known, the paper's are the defaults, and what is typed goes over what is filed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from nextquill_core.config import Config, load_config
from nextquill_core.config.packaged import FOLDER, PRESETS, config_path, packaged_names, preset_overrides
from storage import UserError

NAMES = ["mirror", "paper", "paper-v1", "paper-v2", "tuned"]


def leaves(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def keys(name: str) -> dict[str, Any]:
    return leaves(yaml.safe_load((PRESETS / f"{name}.yaml").read_text()))


def at(config: Config, key: str) -> Any:
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return value


def config_file(tmp_path: Path, text: str = "") -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return path


def test_presets_say_the_same_keys_and_more_where_the_source_does() -> None:
    assert packaged_names(PRESETS) == NAMES
    more = {name: sorted(keys(name).keys() - keys("paper").keys()) for name in NAMES}
    assert more == {
        "mirror": ["score.effect_source"],
        "paper": [],
        "paper-v1": ["score.effect_source"],
        "paper-v2": ["evaluate.retrieval.bertscore", "score.effect_source", "score.folds"],
        "tuned": [],
    }
    assert all(keys("paper").keys() <= keys(name).keys() for name in NAMES)


def test_the_paper_s_first_version_is_the_preset_paper_and_the_second_differs_in_what_gives_the_effects() -> None:
    first, second = keys("paper-v1"), keys("paper-v2")
    assert first.items() >= keys("paper").items()
    assert {name: value for name, value in second.items() if first.get(name) != value} == {
        "score.effect_source": "adapter",
        "score.folds": 2,
        "evaluate.retrieval.bertscore": "FacebookAI/roberta-large",
    }
    marked = [line for line in (PRESETS / "paper-v2.yaml").read_text().splitlines() if "v2°" in line]
    assert len(marked) == 2, "what is known second-hand says so"


def test_the_public_re_implementation_is_trained_as_its_code_says() -> None:
    assert (
        keys("mirror").items()
        >= {
            "weights.delta": 0.0,
            "weights.high": 1.0,
            "weights.low": 0.1,
            "train.alpha": 1.0,
            "train.normalization": "weight",
            "score.effect_source": "trained",
        }.items()
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_value_of_a_preset_arrives_and_has_a_source(tmp_path: Path, name: str) -> None:
    path = config_file(tmp_path, "train: {epochs: 77, learning_rate: 7, lora: {r: 77}}\nweights: {delta: 0.77}\n")
    config = load_config(path, preset_overrides(name))
    for key, value in keys(name).items():
        assert at(config, key) == value, key
    for line in (PRESETS / f"{name}.yaml").read_text().splitlines():
        setting, _, source = line.partition("#")
        assert not setting.partition(":")[2].strip() or source.strip(), f"{line!r} names no source"


@pytest.mark.parametrize("name", ["paper", "paper-v1"])
def test_the_paper_s_values_are_the_defaults(name: str) -> None:
    assert {key: at(Config(), key) for key in keys(name)} == keys(name)


def test_set_over_preset_over_file_over_defaults(tmp_path: Path) -> None:
    path = config_file(tmp_path, "train: {epochs: 7, batch_tokens: 99}\n")
    config = load_config(path, [*preset_overrides("tuned"), "train.alpha=0.2"])
    assert config.train.epochs == 3
    assert config.train.batch_tokens == 99, "what the preset does not name stays the file's"
    assert config.train.alpha == 0.2


def test_a_preset_of_one_s_own_by_its_path(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("train: {learning_rate: 3.0e-5, lora: {targets: 'q_proj'}}\nevaluate: {decoding: [sane]}\n")
    config = load_config(config_file(tmp_path), preset_overrides(str(own)))
    assert (config.train.learning_rate, config.train.lora.targets) == (3e-5, "q_proj")
    assert config.evaluate.decoding == ("sane",)


def test_faults_name_the_preset(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--preset: no preset 'tunde'; did you mean 'tuned'\?"):
        preset_overrides("tunde")
    with pytest.raises(UserError, match="use one of mirror, paper, paper-v1, paper-v2, tuned"):
        preset_overrides("x")
    bad = tmp_path / "bad.yaml"
    bad.write_text("train: {alfa: 1}\n")
    with pytest.raises(UserError, match=r"bad\.yaml: unknown config key `train\.alfa`"):
        preset_overrides(str(bad))


def test_a_configuration_is_found_by_path_or_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert config_path("demo") == FOLDER / "demo.yaml"
    assert config_path("sub/mine") == Path("sub/mine"), "a path that names a folder is a path"
    Path("demo").write_text("seed: 1\n")
    assert config_path("demo") == Path("demo"), "a file of that name comes first"
    with pytest.raises(UserError, match=r"--config: no configuration 'bokks'; did you mean 'books'\?"):
        config_path("bokks")
