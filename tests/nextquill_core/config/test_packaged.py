"""Presets: every key is known, the paper's are the defaults, and what is typed goes over what is filed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from nextquill_core.config import Config, load_config
from nextquill_core.config.packaged import FOLDER, PRESETS, config_path, packaged_names, preset_overrides
from storage import UserError


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


def test_both_presets_are_there_and_say_the_same_keys() -> None:
    assert packaged_names(PRESETS) == ["paper", "tuned"]
    assert keys("paper").keys() == keys("tuned").keys()


@pytest.mark.parametrize("name", ["paper", "tuned"])
def test_every_value_of_a_preset_arrives_and_has_a_source(tmp_path: Path, name: str) -> None:
    path = config_file(tmp_path, "train: {epochs: 77, learning_rate: 7, lora: {r: 77}}\nweights: {delta: 0.77}\n")
    config = load_config(path, preset_overrides(name))
    for key, value in keys(name).items():
        assert at(config, key) == value, key
    for line in (PRESETS / f"{name}.yaml").read_text().splitlines():
        setting, _, source = line.partition("#")
        assert not setting.partition(":")[2].strip() or source.strip(), f"{line!r} names no source"


def test_the_paper_s_values_are_the_defaults() -> None:
    assert {key: at(Config(), key) for key in keys("paper")} == keys("paper")


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
    with pytest.raises(UserError, match="use one of paper, tuned"):
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
