"""Settings: precedence, unknown keys, what takes part in fingerprints."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest

from nextquill_core.config import Config, ScoreConfig, Section, load_config
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
        ("protocol: {}", [], "unknown config key `protocol`; did you mean `ingest.protocol`?"),
        ("name: x", [], "unknown config key `name`; did you mean `ingest.protocol.name`?"),
        (
            "{name: quick, title: Quick, base: demo}",
            [],
            "this is a study, not a configuration; run it with `nextquill study --config ",
        ),
        ("train: {alpha: x}", [], "`train.alpha`: it takes a number; got 'x'"),
        ("train: {alpha: -1}", [], "greater than or equal to 0"),
        ("", ["train.alpha"], "--set takes KEY=VALUE"),
        ("", ["seed.x=1", "seed=1"], "`seed`"),
        ("seed: 1", ["seed.x=1"], "seed is a value, not a section"),
        ("[1, 2]", [], "a config is a YAML mapping"),
        ("a: [", [], "not valid YAML"),
        ("ingest: {inputs: [{category: A}, {category: A}]}", [], "each category may be named once"),
        ("", ["evaluate.methods=nextquill"], "`evaluate.methods`: it takes a list; write [nextquill]"),
        ("", ["evaluate.methods=qwen,nextquill"], "`evaluate.methods`: it takes a list; write [qwen, nextquill]"),
        (
            "",
            ["evaluate.methods=[nextqill]"],
            "`evaluate.methods`: unknown value 'nextqill'; did you mean `nextquill`?",
        ),
        ("", ["train.method=Context-SFT"], "`train.method`: unknown value 'Context-SFT'; did you mean `contextsft`?"),
        ("", ["train.deepspeed.zero_stage=5"], "unknown value 5; one of: 0, 1, 2, 3"),
        ("", ["train.launcher.processes=x"], "unknown value 'x'; one of: auto or write a whole number"),
        ("", ["score.workers=atuo"], "unknown value 'atuo'; did you mean `auto`? or write a whole number"),
        ("", ["ingest.inputs=r.jsonl"], "`ingest.inputs`: it takes a list; write [{category: …}], got 'r.jsonl'"),
        ("", ["ingest.inputs=[{reviews: r.jsonl}]"], "`ingest.inputs.0.category`: it is missing"),
        ("model: 5", [], "`model`: it takes a section of keys; got 5"),
        ("store: 5", [], "`store`: it takes a text; put it in quotes: '5'"),
        ("train: {epochs: yes}", [], "`train.epochs`: it takes a whole number; got True"),
        ("", ["train.alpha=on"], "`train.alpha`: it takes a number; got True"),
        ("", ["seed=false"], "`seed`: it takes a whole number; got False"),
        ("", ["train.launcher.processes=true"], "`train.launcher.processes`: it takes a whole number; got True"),
        ("", ["train.deepspeed.zero_stage=true"], "`train.deepspeed.zero_stage`: it takes a whole number; got True"),
        ("", ["evaluate.style.newest=true"], "`evaluate.style.newest`: it takes a whole number; got True"),
        ("model: {name_or_path: ''}", [], "`model.name_or_path`: it takes at least 1 character"),
        (
            "",
            ["evaluate.judge.model=' '"],
            "`evaluate.judge.model`: it takes at least 1 character that is not white space",
        ),
        ("model: {tiny: {heads: 5}}", [], "heads 5 does not fit hidden_size 128: set heads to 4"),
        ("model: {tiny: {heads: 900}}", [], "heads 900 does not fit hidden_size 128: set heads to 64"),
        ("prompt: {max_history: 2.5}", [], "`prompt.max_history`: it takes a whole number; got 2.5"),
        ("model: {trust_remote_code: maybe}", [], "`model.trust_remote_code`: it takes true or false; got 'maybe'"),
    ],
)
def test_faults_are_one_line(tmp_path: Path, text: str, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(write(tmp_path, text), overrides if message != "`seed`" else ["seed.x=1"])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def choices(section: type[Section], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted key and one allowed value of every setting with a choice of words."""
    for name, field in section.model_fields.items():
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, Section):
                yield from choices(kind, f"{prefix}{name}.")
            elif get_origin(kind) is Literal and isinstance(get_args(kind)[-1], str):
                yield prefix + name, get_args(kind)[-1]


@pytest.mark.parametrize(("key", "allowed"), [pair for pair in choices(Config) if "ingest.inputs" not in pair[0]])
def test_a_misspelt_choice_suggests_the_nearest(tmp_path: Path, key: str, allowed: str) -> None:
    misspelt = allowed.upper() + "x"
    for value in (misspelt, f"[{misspelt}]"):
        with pytest.raises(UserError) as caught:
            load_config(write(tmp_path, ""), [f"{key}={value}"])
        if "unknown value" in str(caught.value):
            assert f"`{key}`: unknown value {misspelt!r}; did you mean `{allowed}`?" in str(caught.value)
            return
    pytest.fail(f"{key} is not known as a choice: {caught.value}")


def test_an_empty_section_means_its_defaults(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("model: {name_or_path: tiny, tiny: null}\ntrain:\nweights: null\n")
    defaults = Config()
    config = load_config(path)
    assert (config.train, config.weights, config.model.tiny) == (defaults.train, defaults.weights, defaults.model.tiny)
    assert load_config(path, ["train.lora.r=4", "weights.delta=0.1"]).train.lora.r == 4


def test_missing_file() -> None:
    with pytest.raises(UserError, match="cannot read the config"):
        load_config("nowhere.yaml")


def test_operational_fields_take_no_part() -> None:
    fields = Config().fingerprint_fields()
    assert "store" not in fields
    assert "batch_tokens" not in fields["score"]
    assert "launcher" not in fields["train"]
    assert fields["weights"] == {"policy": "threshold", "delta": 0.05, "high": 0.9, "low": 0.1, "options": {}}


def test_a_served_model_of_an_unknown_method_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"`evaluate\.server\.models`: .*`nextqill` is no method; .*`nextquill`"):
        load_config(write(tmp_path, "evaluate: {server: {models: {nextqill: x}}}"))


def test_folds_decide_only_where_adapters_score(tmp_path: Path) -> None:
    assert ScoreConfig(folds=5).fingerprint_fields() == {"effect_source": "initial"}
    assert ScoreConfig(effect_source="adapter", folds=5).fingerprint_fields() == {
        "effect_source": "adapter",
        "folds": 5,
    }
    with pytest.raises(UserError, match=r"`score\.folds`: Input should be greater than or equal to 2"):
        load_config(write(tmp_path, "score: {effect_source: adapter, folds: 1}"))


@pytest.mark.parametrize("path", sorted(REPO.glob("configs/*.yaml")), ids=lambda path: path.name)
def test_every_config_in_the_repository_is_valid(path: Path) -> None:
    load_config(path)
    assert path.read_text().startswith("# nextquill run --config")
