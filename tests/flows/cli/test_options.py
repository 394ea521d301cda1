"""Options that several commands share; what they refuse is one line, before Prefect starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.flows.cli.test_main import nextquill, refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--preset", "papre"], "--preset: no preset 'papre'; did you mean 'paper'?"),
        (["run", "--preset", "nowhere.yaml"], "nowhere.yaml: cannot read the config"),
        (["export", "--to", "out"], "the train artifact is missing"),
        (["export", "--to", "out", "--method", "latestk"], "`latestk` trains no adapter"),
        (
            ["sweep", "train.alfa=1,2"],
            "nextquill: sweep train.alfa=1: unknown config key `train.alfa`; did you mean `train.alpha`?\n",
        ),
        (["sweep", "train.alpha"], "a sweep takes KEY=VALUE,VALUE"),
        (["sweep", "evaluate.split=val,test"], "a sweep always looks at val"),
        (["sweep", "train.batch_tokens=1,2"], "make the same predictions"),
    ],
)
def test_invalid_input_is_one_line(
    monkeypatch: Any, capsys: Any, config: Path, arguments: list[str], message: str
) -> None:
    assert message in refused(monkeypatch, capsys, *arguments, "--config", config)


@pytest.mark.parametrize(
    "arguments",
    [
        ["gc", "--older-than", "nan", "--apply"],
        ["serve", "--poll", "nan"],
        ["serve", "--drain", "inf"],
        ["alerts", "--late", "nan"],
        ["alerts", "--long", "1e300"],
    ],
)
def test_a_number_without_an_end_is_refused(monkeypatch: Any, capsys: Any, config: Path, arguments: list[str]) -> None:
    """As a minimum age it would compare as false, and everything would be removed."""
    options = [] if arguments[0] == "alerts" else ["--config", config]
    assert nextquill(monkeypatch, *arguments, *options) == 2
    assert f"Invalid value for '{arguments[1]}'" in capsys.readouterr().err


def test_a_preset_leads_to_other_artifacts_and_set_overrides_it(monkeypatch: Any, capsys: Any, config: Path) -> None:
    def trained(*arguments: str) -> str:
        assert nextquill(monkeypatch, "status", "--json", "--config", config, *arguments) == 0
        rows = {row["stage"]: row["path"] for row in json.loads(capsys.readouterr().out)}
        return str(rows["train"])

    own, tuned = trained(), trained("--preset", "tuned")
    assert own != tuned
    assert trained("--preset", "tuned", "--set", "train.alpha=0.05") == tuned
    assert trained("--preset", "tuned", "--set", "train.alpha=0.2") != tuned
