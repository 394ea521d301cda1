"""The YAML of a study: what is refused, and which configurations its cells get."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from nextquill_core.config.packaged import packaged_names
from nextquill_core.studies.study.spec import BASE, STUDIES, load_study, parse_study
from storage import UserError

SMALL: dict[str, Any] = {"name": "small", "title": "A small study", "base": "demo", "seeds": [3, 4]}


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(SMALL | changes, allow_unicode=True), encoding="utf-8")
    return path


def test_settings_lie_over_the_base_and_the_command_line_over_both(tmp_path: Path) -> None:
    settings = {"train": {"alpha": 0.2, "lora": {"r": 8}}, "weights": {"high": 0.7}}
    study = load_study(written(tmp_path, settings=settings), ["train.alpha=0.3"], store="elsewhere")
    config = study.config({"weights.low": 0.5}, methods=["latestk", "contextsft"], split="val", seed=4, decoding=[])
    assert (config.train.alpha, config.train.lora.r, config.train.lora.alpha) == (0.3, 8, 32)
    assert (config.weights.high, config.weights.low, config.weights.delta) == (0.7, 0.5, 0.025)
    assert config.model.name_or_path == "tiny", "the base's"
    assert (config.store, config.seed) == ("elsewhere", 4)
    assert (config.evaluate.split, config.evaluate.methods, config.evaluate.decoding) == (
        "val", ("latestk", "contextsft"), ()
    )  # fmt: skip
    assert config.train.method == "contextsft", "otherwise nextquill would be trained too"
    assert config.overridden == ("weights.low", "seed", "evaluate.split")


def test_base_is_always_a_candidate_and_the_rows_end_with_the_method() -> None:
    study = parse_study(SMALL | {"methods": ["sft"], "parts": {"candidates": {"α": {"train.alpha": 1.0}}}}, "here")
    assert list(study.parts.all_candidates) == [BASE, "α"]
    assert study.rows == ("sft", "contextsft", "nextquill")
    assert study.choosing(study.parts) == ("nextquill",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "study.yaml: `seed`: unknown key"),
        ({"seeds": [1, 1]}, "seeds names one twice"),
        ({"seeds": [1], "parts": {"seeds": 2}}, "parts.seeds is 2, but the study has 1 seeds"),
        ({"parts": {"methods": ["sft"]}}, "parts.methods names sft, which is not among methods"),
        (
            {"variants": {"candidates": {"x": {"seed": 3}}}},
            "variants.candidates.x sets seed, which the study itself sets",
        ),
        ({"effects": {"x": {"store": "s"}}}, "effects.x sets store, which the study itself sets"),
        ({"variants": {"candidates": {"base": {"train.alpha": 1.0}}}}, "variants.candidates names one `base`"),
        ({"effects": {"base": {}}}, "effects names one `base`"),
        ({"settings": {"evaluate": {"methods": ["sft"]}}}, "settings sets evaluate.methods, which the study itself"),
        ({"settings": {"seed": 3}}, "settings sets seed, which the study itself sets"),
        ({"parts": {"by": "personal_gian"}}, "`personal_gian` is not measured on val"),
        ({"variants": {"not_below": ["rouge1"]}}, "`rouge1` is not measured on val"),
        ({"name": "Not a slug"}, "`name`"),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_study(written(tmp_path, **changes))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_candidate_with_an_unknown_key_or_value_names_it(tmp_path: Path) -> None:
    study = load_study(written(tmp_path))
    for overrides, message in (({"train.alfa": 1}, "unknown config key `train.alfa`"), ({"train.alpha": -1}, "alpha")):
        with pytest.raises(UserError, match=message):
            study.config(overrides, methods=["contextsft"], split="val", seed=1, decoding=[])


@pytest.mark.parametrize("name", packaged_names(STUDIES))
def test_the_packaged_studies_fit_their_base(name: str) -> None:
    study = load_study(name)
    assert study.name == name
    methods = (*study.rows, *study.decoding_methods)
    assert set(study.first_seed_only) <= set(methods)
    for choice in (study.parts, study.variants):
        for overrides in choice.all_candidates.values():
            config = study.config(overrides, methods=methods, split="val", seed=1, decoding=())
            assert config.evaluate.control == "likelihood", "strangers' histories without their texts"


def test_a_setting_of_one_study_leaves_the_others_alone(tmp_path: Path) -> None:
    options = ["small:train.alpha=0.3", "other:train.alpha=0.4", "weights.low=0.2"]
    assert load_study(written(tmp_path), options).settings == {"train": {"alpha": 0.3}, "weights": {"low": 0.2}}


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read the config"):
        load_study(tmp_path / "nowhere.yaml")
    with pytest.raises(UserError, match="did you mean 'quick'"):
        load_study("quik")
