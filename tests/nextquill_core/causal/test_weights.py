"""Weight policies by hand, their settings, those of other packages, and tables derived from stored effects."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from nextquill_core.causal import TokenEffects, preference_weights, token_effects
from nextquill_core.causal.weights import (
    BUILT_IN,
    asks_for_answers,
    parameters,
    perce,
    random_order,
    soft,
    threshold,
    token_weights,
    weight_settings,
    weights_table,
)
from nextquill_core.config import WeightsConfig
from nextquill_core.errors import ModelError, UserError
from nextquill_core.records import ShownAnswer
from nextquill_core.schemas import EFFECTS, WEIGHTS
from tests.conftest import REPO
from tests.plugins import add_package

DELTA = 0.05  # an effect of exactly δ is the fp32 number nearest to it
fp32 = {"allow_nan": False, "width": 32}


def stored(factual: list[float], counterfactual: list[float]) -> TokenEffects:
    """Effects of tokens with these probabilities."""
    with_history, without = torch.tensor(factual), torch.tensor(counterfactual)
    return TokenEffects(with_history.log(), without.log(), with_history - without)


def of(effect: list[float]) -> TokenEffects:
    """Tokens of which only the effect matters."""
    unused = torch.full((len(effect),), math.nan)
    return TokenEffects(unused, unused, torch.tensor(effect))


def test_eq_3_by_hand_and_an_effect_of_exactly_delta_is_not_above_it() -> None:
    above = torch.nextafter(torch.tensor(DELTA), torch.tensor(1.0)).item()
    effects = [0.06, DELTA, above, 0.04, -1.0]
    expected = torch.tensor([0.9, 0.1, 0.9, 0.1, 0.1])
    assert torch.equal(preference_weights(torch.tensor(effects), delta=DELTA, high=0.9, low=0.1), expected)
    assert torch.equal(threshold(of(effects)), expected)
    assert threshold(of(effects), delta=-1.0, high=2.0, low=0.0).tolist() == [2.0, 2.0, 2.0, 2.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_eq_3_keeps_shape_and_dtype(dtype: torch.dtype) -> None:
    weight = preference_weights(torch.tensor([[0.5], [0.0]], dtype=dtype), delta=0.25, high=0.9, low=0.1)
    assert torch.equal(weight, torch.tensor([[0.9], [0.1]], dtype=dtype))


def test_perce_is_the_clipped_log_ratio() -> None:
    """From 0.1 to 0.1·e² is 2 nats; equal is 0, below the floor; 1e-4 → 0.9 is ln 9000 = 9.1, above the ceiling."""
    effects = stored([0.1 * math.exp(2), 0.5, 0.1, 0.9], [0.1, 0.5, 0.5, 1e-4])
    torch.testing.assert_close(perce(effects), torch.tensor([2.0, 0.8, 0.8, 5.0]))
    torch.testing.assert_close(perce(effects, floor=0.0, ceiling=9.0), torch.tensor([2.0, 0.0, 0.0, 9.0]))
    assert perce(effects, floor=2.0, ceiling=2.0).tolist() == [2.0] * 4, "the bounds may be equal"


def test_perce_is_a_ratio_where_the_paper_is_a_difference() -> None:
    """0.001 → 0.01 is ten times as likely and yet an effect of 0.009 only."""
    rare = stored([0.01], [0.001])
    torch.testing.assert_close(perce(rare), torch.tensor([math.log(10)]))
    assert threshold(rare).item() == pytest.approx(0.1)


def test_soft_by_hand() -> None:
    """Half-way at δ; a temperature above it sigmoid(1) = 0.7311; an effect of 0 has gone sigmoid(−2.5) = 0.0759."""
    weight = soft(of([0.05, 0.07, 0.0, 0.1, -1.0, 1.0]))
    expected = [0.5, 0.1 + 0.8 * 0.731059, 0.1 + 0.8 * 0.075858, 0.1 + 0.8 * 0.924142, 0.1, 0.9]
    torch.testing.assert_close(weight, torch.tensor(expected), atol=1e-6, rtol=0)
    assert weight.dtype == torch.float32


def test_soft_becomes_eq_3_as_the_temperature_falls() -> None:
    effects = of([-1.0, 0.0, 0.049, 0.051, 0.1, 1.0])
    torch.testing.assert_close(soft(effects, temperature=1e-5), threshold(effects))


@given(
    effect=st.lists(st.floats(-1, 1, **fp32), min_size=1, max_size=50),
    delta=st.floats(-1, 1, **fp32),
    bounds=st.tuples(st.floats(0, 100, **fp32), st.floats(0, 100, **fp32)),
    temperature=st.floats(1e-6, 10),
)
def test_soft_lies_between_low_and_high_and_grows_with_the_effect(
    effect: list[float], delta: float, bounds: tuple[float, float], temperature: float
) -> None:
    low, high = sorted(bounds)
    weight = soft(of(sorted(effect)), delta=delta, high=high, low=low, temperature=temperature)
    assert low <= weight.min().item()
    assert weight.max().item() <= high
    assert bool((weight.diff() >= 0).all())


@pytest.mark.parametrize(
    ("policy", "settings", "message"),
    [
        (perce, {"floor": 6.0}, "weights.options: floor 6 is above ceiling 5; exchange them"),
        (soft, {"temperature": 0.0}, "weights.options: temperature 0 is not positive; 0.02 is the default"),
        (soft, {"temperature": -0.02}, "weights.options: temperature -0.02 is not positive; 0.02 is the default"),
    ],
)
def test_settings_that_make_no_sense(policy: Callable[..., Any], settings: dict[str, float], message: str) -> None:
    with pytest.raises(UserError) as caught:
        policy(of([0.0]), **settings)
    assert str(caught.value) == message


def test_an_effect_is_a_difference_of_probabilities_by_hand() -> None:
    """0.5 − 0.2 = 0.3, 0.1 − 0.4 = −0.3 and 1 − 1 = 0, in the shape of the log-probabilities, and no ratio."""
    factual, counterfactual = torch.tensor([[0.5, 0.1, 1.0]]).log(), torch.tensor([[0.2, 0.4, 1.0]]).log()
    torch.testing.assert_close(token_effects(factual, counterfactual), torch.tensor([[0.3, -0.3, 0.0]]))


GUIDE = (REPO / "docs" / "how-to" / "extend.md").read_text(encoding="utf-8")
REFERENCE = (REPO / "docs" / "reference" / "weights.md").read_text(encoding="utf-8")


def effects_table(rows: list[list[float]]) -> pa.Table:
    """A stored table with these effects, every token at p = 0.5 without history."""
    factual = [[math.log(0.5 + effect) for effect in row] for row in rows]
    return pa.table(
        {
            "example_id": [f"C:u:{number}" for number in range(len(rows))],
            "target_ids": [[7] * len(row) for row in rows],
            "logp_factual": factual,
            "logp_counterfactual": [[math.log(0.5)] * len(row) for row in rows],
            "effect": rows,
        },
        schema=EFFECTS,
    )


def configured(**weights: Any) -> dict[str, Any]:
    return weight_settings(**WeightsConfig.model_validate(weights).fingerprint_fields())


def test_settings_are_those_that_the_policy_uses() -> None:
    assert configured() == {"policy": "threshold", "delta": 0.05, "high": 0.9, "low": 0.1}
    assert configured(policy="perce", delta=0.3) == {"policy": "perce", "floor": 0.8, "ceiling": 5.0}
    assert configured(policy="perce", options={"ceiling": 3}) == {"policy": "perce", "floor": 0.8, "ceiling": 3.0}
    assert configured(policy="soft", high=0.7, options={"temperature": 0.1}) == {
        "policy": "soft", "delta": 0.05, "high": 0.7, "low": 0.1, "temperature": 0.1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"policy": "treshold"}, "weights.policy: unknown weight policy `treshold`; did you mean `threshold`?"),
        (
            {"policy": "xyz"},
            "weights.policy: unknown weight policy `xyz`; one of: threshold, perce, soft, random, grounded",
        ),
        (
            {"policy": "soft", "options": {"temprature": 1}},
            "weights.options: unknown option `temprature`; did you mean `temperature`?",
        ),
        ({"policy": "perce", "options": {"xyz": 1}}, "weights.options: unknown option `xyz`; one of: floor, ceiling"),
        ({"options": {"floor": 1}}, "weights.options: unknown option `floor`; `threshold` takes none"),
        ({"options": {"delta": 0.1}}, "weights.options: `delta` is not an option; set `weights.delta`"),
    ],
)
def test_settings_that_are_refused(weights: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        configured(**weights)
    assert str(caught.value) == message


def test_a_setting_that_is_not_finite_is_refused() -> None:
    with pytest.raises(UserError, match=r"weights\.high: not a finite number; got inf"):
        weight_settings("threshold", {}, delta=0.05, high=math.inf, low=0.1)


def test_tables_follow_effects_row_by_row() -> None:
    """Rows without tokens, slices, and tables of several chunks, each against a plain loop."""
    rows = [[0.25, -0.25], [], [0.1], [0.0, 0.05, 0.2]]
    whole = effects_table(rows)
    for table in (whole, whole.slice(1, 2), whole.slice(0, 0), pa.concat_tables([whole, whole.slice(3)])):
        for policy, weigh in (
            ("threshold", lambda effect: 0.9 if effect > torch.tensor(0.05).item() else 0.1),
            ("soft", lambda effect: 0.1 + 0.8 / (1 + math.exp(-(effect - 0.05) / 0.02))),
            ("perce", lambda effect: min(max(math.log(0.5 + effect) - math.log(0.5), 0.8), 5.0)),
        ):
            derived = weights_table(table, policy=policy)
            assert derived.schema == WEIGHTS
            assert derived["example_id"].to_pylist() == table["example_id"].to_pylist()
            expected = [[weigh(effect) for effect in row] for row in table["effect"].to_pylist()]
            assert derived["weight"].to_pylist() == [pytest.approx(row, abs=1e-6) for row in expected]


HALF = [[0.3, 0.0, 0.0, 0.0, 0.2], [0.3, 0.0, 0.0, 0.0, 0.0]]
"""Two and one of five tokens above δ."""


def test_random_places_by_hand() -> None:
    """The order of the tokens is that of SHAKE-256 of `SEED:ID`, eight bytes a token, as `openssl dgst` prints it.

    `0:C:u:0` begins with f0…, ed…, df…, 09…, cb…: sorted, these are the tokens 3, 4, 2, 1, 0, and token i gets the
    weight of the i-th of them. `0:C:u:1` has 4a, 1d, 4c, 99, 24, and `1:C:u:0` has c4, be, 02, 7e, d3.
    """
    assert random_order("C:u:0", 5, 0) == [3, 4, 2, 1, 0]
    assert random_order("C:u:1", 5, 0) == [1, 4, 0, 2, 3]
    assert random_order("C:u:0", 5, 1) == [2, 3, 1, 0, 4]
    low, high = (pytest.approx(weight) for weight in (0.1, 0.9))
    derived = weights_table(effects_table(HALF), **configured(policy="random"))
    assert derived["weight"].to_pylist() == [[low, high, low, low, high], [low, low, high, low, low]]
    derived = weights_table(effects_table(HALF[:1]), **configured(policy="random", high=2, low=0, options={"seed": 1}))
    assert derived["weight"].to_pylist() == [[0.0, 0.0, 0.0, 2.0, 2.0]]


def test_every_order_is_equally_likely() -> None:
    """6,000 examples and six orders of three tokens: 1,000 each, and 5 standard deviations of that are 144."""
    orders = Counter(tuple(random_order(f"C:u:{number}", 3, 0)) for number in range(6000))
    assert len(orders) == 6
    assert all(abs(count - 1000) < 144 for count in orders.values())


@given(
    rows=st.lists(st.lists(st.floats(-0.25, 0.25, **fp32), max_size=40), max_size=5),
    delta=st.floats(-0.2, 0.2),
    seed=st.integers(-(2**31), 2**31),
    data=st.data(),
)
def test_random_places_keep_each_example_s_weights_whatever_stands_beside_it(
    rows: list[list[float]], delta: float, seed: int, data: st.DataObject
) -> None:
    table = effects_table(rows)
    settings = configured(policy="random", delta=delta, options={"seed": seed})
    found = weights_table(table, **settings)["weight"].to_pylist()
    expected = weights_table(table, **configured(delta=delta))["weight"].to_pylist()
    assert [sorted(row) for row in found] == [sorted(row) for row in expected]
    start = data.draw(st.integers(0, len(rows)))
    count = data.draw(st.integers(0, len(rows) - start))
    assert weights_table(table.slice(start, count), **settings)["weight"].to_pylist() == found[start : start + count]


def test_other_seeds_and_other_examples_have_other_places() -> None:
    table = effects_table([[0.0, 0.3] * 32] * 8)
    found = {
        str(row)
        for seed in range(5)
        for row in weights_table(table, **configured(policy="random", options={"seed": seed}))["weight"].to_pylist()
    }
    assert len(found) == 5 * 8


def test_a_seed_that_is_not_a_whole_number_is_refused() -> None:
    with pytest.raises(UserError, match=r"weights\.options: seed 0\.5 is not a whole number"):
        weights_table(effects_table(HALF), **configured(policy="random", options={"seed": 0.5}))


def test_tables_take_what_the_configuration_resolves_to() -> None:
    table = effects_table([[0.25, 0.0]])
    derived = weights_table(table, **configured(delta=0.0, high=2.0, low=1.0))
    assert derived["weight"].to_pylist() == [[2.0, 1.0]]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str, Mapping[str, str]], None]:
    """Installs a distribution with one module and weight policies, as pip would leave it on the path."""
    return lambda module, code, policies: add_package(
        tmp_path, monkeypatch, module, code, "nextquill.weights", policies
    )


def snippet(language: str) -> str:
    """The one block in this language of the guide's section on weight policies."""
    section = GUIDE.partition("## A weight policy")[2].partition("\n## ")[0]
    (found,) = re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)
    return str(found)


def test_the_policy_of_the_guide(package: Callable[..., None]) -> None:
    """ε + (λ − ε)·min(|effect| / 0.1, 1) with λ = 0.8 from the configuration and ε = 0.1 from its default."""
    (point,) = re.findall(r'^\[project.entry-points."nextquill.weights"\]\n(\S+) = "(\S+)"$', snippet("toml"), re.M)
    package("nextquill_magnitude", snippet("python"), dict([point]))
    settings = configured(**yaml.safe_load(snippet("yaml"))["weights"])
    assert settings == {"policy": "magnitude", "high": 0.8, "low": 0.1, "scale": 0.1}
    derived = weights_table(effects_table([[0.05, -0.05], [0.0, 0.4]]), **settings)
    assert derived["weight"].to_pylist() == [pytest.approx([0.45, 0.45]), pytest.approx([0.1, 0.8])]


def test_the_reference_names_every_policy_and_setting() -> None:
    for name in BUILT_IN:
        assert f"| `{name}` |" in REFERENCE
        assert all(f"`{setting}`" in REFERENCE for setting in parameters(name))


BAD = """
import torch
def short(effects): return effects.effect[:-1]
def listed(effects): return effects.effect.tolist()
def below(effects): return effects.effect
def undefined(effects, *, scale=0.0): return (effects.effect / scale)
def infinite(effects): return effects.effect.double().abs() * 1e300
def exact(effects): return effects.effect.abs().double()
def positional(effects, scale=1.0): return effects.effect
def demanding(effects, *, scale): return effects.effect
def worded(effects, *, kind="abs"): return effects.effect
def nothing(): return None
def keywords(*, scale=1.0): return None
def three(effects, answers, more): return effects.effect
def presumed(effects, answers=None): return effects.effect
def spread(effects, *answers): return effects.effect
def open(effects, **settings): return effects.effect
number = 3
"""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("short", "policy `short` gave shape (2,) for 3 tokens; return a tensor with one weight per token"),
        ("listed", "policy `listed` gave list for 3 tokens; return a tensor with one weight per token"),
        ("below", "policy `below` gave 1 of 3 tokens a weight like -0.25"),
        ("undefined", "policy `undefined` gave 3 of 3 tokens a weight like inf"),
        ("infinite", "policy `infinite` gave 2 of 3 tokens a weight like inf"),
    ],
)
def test_what_a_policy_gives_is_checked(package: Callable[..., None], name: str, message: str) -> None:
    package("bad_policies", BAD, {name: f"bad_policies:{name}"})
    with pytest.raises(UserError, match=re.escape(f"weights.policy: {message}")):
        weights_table(effects_table([[0.25, -0.25], [0.0]]), **configured(policy=name))


def test_another_precision_becomes_fp32(package: Callable[..., None]) -> None:
    package("bad_policies", BAD, {"exact": "bad_policies:exact"})
    derived = weights_table(effects_table([[0.25, -0.25], [0.0]]), policy="exact")
    assert derived["weight"].to_pylist() == [[0.25, 0.25], [0.0]]


@pytest.mark.parametrize(
    "name",
    ["positional", "demanding", "worded", "nothing", "number", "keywords", "three", "presumed", "spread", "open"],
)
def test_what_is_not_a_policy_is_refused(package: Callable[..., None], name: str) -> None:
    package("bad_policies", BAD, {name: f"bad_policies:{name}"})
    with pytest.raises(UserError, match=f"weights.policy: `{name}` is not a weight policy; give a function"):
        configured(policy=name)


def test_a_package_that_cannot_be_loaded_is_one_line(package: Callable[..., None]) -> None:
    package("bad_policies", BAD, {"absent": "nowhere_at_all:weigh"})
    with pytest.raises(UserError) as caught:
        configured(policy="absent")
    assert str(caught.value) == (
        "nowhere_at_all:weigh: weight policy `absent` cannot be loaded: No module named 'nowhere_at_all'; "
        "fix or reinstall its package"
    )
    with pytest.raises(UserError, match="did you mean `absent`"):
        configured(policy="absnt")


def test_another_package_cannot_replace_a_built_in_policy(package: Callable[..., None]) -> None:
    package("bad_policies", BAD, {"threshold": "bad_policies:below"})
    assert weights_table(effects_table([[0.25]]))["weight"].to_pylist() == [[pytest.approx(0.9)]]


def answer(example_id: str, text: str, spans: list[tuple[int, int]]) -> ShownAnswer:
    return ShownAnswer(example_id, text, [7] * len(spans), spans, ())


TEXTS = {
    "C:u:0": answer("C:u:0", "NO way", [(0, 2), (2, 6), (6, 6)]),
    "C:u:1": answer("C:u:1", "WOW", [(0, 1), (1, 3)]),
}


def test_another_package_s_policy_may_read_the_answers(package: Callable[..., None]) -> None:
    """The policy of the reference page: λ for pieces in capitals, `NO`, `W` and `OW`, and ε for ` way` and the stop."""
    (code,) = re.findall(r"```python\n(.*?)```", REFERENCE, re.DOTALL)
    package("shouting", code, {"shouted": "shouting:shouted"})
    assert asks_for_answers("shouted")
    assert [name for name in BUILT_IN if asks_for_answers(name)] == ["random", "grounded"]
    table = effects_table([[0.1, 0.0, 0.0], [0.2, 0.0]])
    settings = configured(policy="shouted", high=2.0)
    asked: list[list[str]] = []

    def look_up(example_ids: Sequence[str]) -> list[ShownAnswer]:
        asked.append(list(example_ids))
        return [TEXTS[example_id] for example_id in example_ids]

    derived = weights_table(table, look_up, **settings)
    low, high = pytest.approx(0.1), pytest.approx(2.0)
    assert derived["weight"].to_pylist() == [[high, low, low], [high, high]]
    assert weights_table(table.slice(1), look_up, **settings)["weight"].to_pylist() == [[high, high]]
    weights_table(table, look_up, **configured())
    assert asked == [["C:u:0", "C:u:1"], ["C:u:1"]], "only a policy that asks for texts has them read"


def test_texts_of_other_tokens_are_refused() -> None:
    table = effects_table([[0.1, 0.0], [0.2, 0.0]])
    with pytest.raises(ModelError, match="the stored effects of C:u:0 are of other tokens; run `nextquill score --for"):
        weights_table(table, lambda ids: [TEXTS[one] for one in ids], **configured(policy="grounded"))
    with pytest.raises(ValueError, match="reads the texts of 2 answers, and nothing was given to look them up"):
        weights_table(table, **configured(policy="grounded"))


def test_effects_alone_suffice_for_most_policies() -> None:
    assert token_weights(of([0.06, 0.04]), **configured()).tolist() == pytest.approx([0.9, 0.1])
