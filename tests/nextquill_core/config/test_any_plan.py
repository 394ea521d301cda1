"""Any accepted config has a plan, and fingerprints follow the marks of its keys: operational ones move nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nextquill_core.config import Config, parse_config
from nextquill_core.pipeline.run import Run
from storage.errors import UserError
from tests.effort import trials
from tests.nextquill_core.config.test_operational import KEYS, merged, nested, value_for
from tests.nextquill_core.config.test_yaml_text import KEYS as EVERY_KEY
from tests.nextquill_core.config.test_yaml_text import VALUES
from tests.nextquill_core.pipeline.test_plan import every_step
from tests.world import small_settings

OPERATIONAL = [path for path, _, operational in KEYS if operational and path != "store"]
OTHERS = [path for path, _, operational in KEYS if not operational and path not in ("privacy.forget", "ingest.inputs")]
ALWAYS = ("seed", "prompt.max_history", "prompt.max_prompt_tokens", "prompt.max_target_tokens", "weights.delta")
"""Keys that count whatever the others are."""
FEW = settings(
    max_examples=trials(150), deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
)


def planned(values: dict[str, Any]) -> tuple[Config, dict[str, str]] | None:
    """The config of these values and its plan's fingerprints by step; None where they are refused in one line."""
    try:
        config = parse_config(values, "the test")
        return config, {step.name: step.fingerprint for step in every_step(Run(config, fetch=False).plan)}
    except UserError:  # its text is one line whatever it holds
        return None


@pytest.fixture
def base(small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(tmp_path)  # relative paths are made here
    for name in ("NEXTQUILL_PSEUDONYM_KEY", "OTHER_KEY"):
        monkeypatch.setenv(name, "a secret of more than sixteen bytes")
    return small_settings(small_world, tmp_path / "store")


def test_any_values_give_a_plan_or_one_line(base: dict[str, Any]) -> None:
    accepted = 0

    @FEW
    @given(st.lists(st.tuples(st.sampled_from(EVERY_KEY), VALUES), min_size=1, max_size=2))
    def try_it(chosen: list[tuple[tuple[str, ...], Any]]) -> None:
        nonlocal accepted
        values = base
        for path, value in chosen:
            if path[0] != "store":
                values = merged(values, nested(".".join(path), value))
        found = planned(values)
        accepted += found is not None
        assert planned(values) == found, "the same values have the same plan"

    try_it()
    assert accepted > trials(2)


def test_fingerprints_follow_the_marks_of_the_keys(base: dict[str, Any]) -> None:
    accepted = 0

    @FEW
    @given(
        st.lists(st.sampled_from(OTHERS), max_size=4, unique=True),
        st.lists(st.sampled_from(OPERATIONAL), max_size=4, unique=True),
        st.sampled_from(ALWAYS),
    )
    def try_it(others: list[str], operational: list[str], always: str) -> None:
        nonlocal accepted
        values = base
        for path in others:
            values = merged(values, nested(path, value_for(path)))
        same = values
        for path in operational:
            same = merged(same, nested(path, value_for(path)))
        before, after = planned(values), planned(same)
        if before is None or after is None:
            return
        accepted += 1
        assert before[0].fingerprint_fields() == after[0].fingerprint_fields()
        assert before[1] == after[1], operational
        number = getattr(before[0], always) if always == "seed" else None
        section, _, key = always.partition(".")
        number = number if number is not None else getattr(getattr(before[0], section), key)
        changed = planned(merged(values, nested(always, number / 2 if isinstance(number, float) else number + 1)))
        assert changed is not None
        assert changed[1]["evaluate"] != before[1]["evaluate"], always

    try_it()
    assert accepted > trials(50)
