"""The summary of effects against numbers worked out by hand and against a slow reference in plain Python."""

from __future__ import annotations

import json
import math
import struct
import tempfile
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextquill_core.causal.summary import EDGES, EffectsSummary, TopToken, summarise
from nextquill_core.errors import DataError
from nextquill_core.schemas import EFFECTS
from tests.effort import trials

Row = tuple[str, list[tuple[int, float, float]]]  # example id; (token, p with history, p without) of each token


def single(value: float) -> float:
    """The nearest number of single precision."""
    return float(struct.unpack("f", struct.pack("f", value))[0])


def table(rows: list[Row]) -> pa.Table:
    return pa.table(
        {
            "example_id": [example_id for example_id, _ in rows],
            "target_ids": [[token for token, _, _ in tokens] for _, tokens in rows],
            "logp_factual": [[math.log(p) for _, p, _ in tokens] for _, tokens in rows],
            "logp_counterfactual": [[math.log(q) for _, _, q in tokens] for _, tokens in rows],
            "effect": [[p - q for _, p, q in tokens] for _, tokens in rows],
        },
        schema=EFFECTS,
    )


def written(folder: Path, *shards: list[Row]) -> list[Path]:
    paths = [folder / f"{number:05d}.parquet" for number in range(len(shards))]
    for path, rows in zip(paths, shards, strict=True):
        pq.write_table(table(rows), path)
    return paths


ROWS: list[Row] = [
    ("A:u1:0", [(3, 0.5, 0.25), (4, 0.5, 0.5)]),  # effects 0.25, 0
    ("A:u2:0", [(3, 0.75, 0.25), (5, 0.25, 0.5)]),  # 0.5, −0.25
    ("B:u1:0", [(4, 0.25, 0.25), (5, 0.125, 0.125), (7, 0.5, 0.5)]),  # without history
]
CATEGORY = {example_id: example_id[0] for example_id, _ in ROWS}


def count(summary: EffectsSummary, histogram: tuple[int, ...]) -> dict[tuple[float, float], int]:
    return {edges: tokens for edges, tokens in zip(pairwise(summary.edges), histogram, strict=True) if tokens}


def test_numbers_worked_out_by_hand(tmp_path: Path) -> None:
    summary = summarise(written(tmp_path, ROWS), CATEGORY | {"C:u9:0": "C"}, delta=0.25)
    first, second = summary.categories
    assert (first.category, first.tokens, first.preference_tokens, first.preference_share) == ("A", 4, 1, 0.25)
    assert first.mean_effect == 0.125
    assert first.mean_logp_gain == pytest.approx((math.log(2) + 0 + math.log(3) - math.log(2)) / 4)
    assert (second.category, second.tokens, second.preference_tokens, second.mean_effect) == ("B", 3, 0, 0.0)
    assert (summary.overall.tokens, summary.overall.preference_tokens) == (7, 1)
    assert summary.overall.mean_effect == pytest.approx(0.5 / 7)
    # δ became an edge, and an effect of exactly δ lies below it.
    assert count(summary, first.histogram) == {(-0.3, -0.2): 1, (-0.001, 0.001): 1, (0.2, 0.25): 1, (0.3, 0.5): 1}
    assert count(summary, second.histogram) == {(-0.001, 0.001): 3}
    assert summary.min_count == 2
    assert summary.top_tokens == (TopToken(3, 2, 0.375),)  # 4 has no effect, 5 a negative one, 7 was seen once
    assert [answer.example_id for answer in summary.answers] == ["A:u2:0", "A:u1:0"]
    assert summary.answers[0].effect == (0.5, -0.25)
    plain = json.loads(json.dumps(summary.to_json()))
    assert plain["categories"][0]["preference_share"] == 0.25
    assert plain["top_tokens"] == [{"token_id": 3, "count": 2, "mean_effect": 0.375}]


def test_shards_do_not_matter(tmp_path: Path) -> None:
    rows = [
        (f"{'AB'[n % 2]}:u{n % 7}:{n}", [((n * k) % 11, 0.1 + (n * k % 13) / 17, 0.1 + k / 19) for k in range(1, 9)])
        for n in range(60)
    ]
    category = {example_id: example_id[0] for example_id, _ in rows}
    (tmp_path / "one").mkdir()
    whole = summarise(written(tmp_path / "one", rows), category, delta=0.05)
    assert summarise(written(tmp_path, rows[:13], [], rows[13:14], rows[14:]), category, delta=0.05) == whole


def test_without_tokens_there_is_nothing(tmp_path: Path) -> None:
    for paths in ([], written(tmp_path, []), written(tmp_path, [("A:u:0", [])])):
        summary = summarise(paths, {"A:u:0": "A"}, delta=0.05)
        assert (summary.categories, summary.top_tokens, summary.answers) == ((), (), ())
        assert (summary.overall.tokens, summary.overall.mean_effect, summary.overall.preference_share) == (0, 0.0, 0.0)
        assert json.dumps(summary.to_json())


def test_a_threshold_is_compared_in_single_precision_as_the_weights_do(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from nextquill_core.causal import preference_weights

    effects = [single(0.05), math.nextafter(single(0.05), 1), 0.06, single(0.05) + 1e-8]
    rows = table([("A:u:0", [(0, 0.5, 0.5)] * 4)]).set_column(4, "effect", pa.array([effects], EFFECTS.types[4]))
    pq.write_table(rows, tmp_path / "0.parquet")
    above = summarise([tmp_path / "0.parquet"], {"A:u:0": "A"}, delta=0.05).overall
    weights = preference_weights(torch.tensor(effects), delta=0.05, high=1.0, low=0.0)
    assert above.preference_tokens == int(weights.sum())


def test_answers_are_spread_over_categories_and_users(tmp_path: Path) -> None:
    strong, weak, none = [(1, 0.75, 0.25)], [(1, 0.5, 0.4)], [(1, 0.5, 0.5)]
    rows: list[Row] = [
        *((f"A:u1:{n}", strong) for n in range(5)),
        ("A:u2:0", weak),
        ("A:u3:0", none),
        ("B:u1:0", weak),
        ("B:u1:1", [*weak, *none * 3]),  # the same sum in more tokens
    ]
    category = {example_id: example_id[0] for example_id, _ in rows}
    found = summarise(written(tmp_path, rows), category, delta=0.05, answers=5).answers
    assert [answer.example_id for answer in found] == ["A:u1:0", "B:u1:0", "A:u2:0", "B:u1:1", "A:u1:1"]


def test_faults_are_named(tmp_path: Path) -> None:
    (path,) = written(tmp_path, ROWS)
    with pytest.raises(DataError, match="B:u1:0"):
        summarise([path], {"A:u1:0": "A", "A:u2:0": "A"}, delta=0.05)
    broken = table(ROWS).set_column(4, "effect", pa.array([[0.0]] * 3, EFFECTS.types[4]))
    pq.write_table(broken, path)
    with pytest.raises(DataError, match="different lengths"):
        summarise([path], CATEGORY, delta=0.05)


def reference(rows: list[Row], delta: float, min_count: int) -> dict[str, Any]:
    # The same, token by token.
    edges = sorted({*EDGES, delta})
    tokens = [(e[0], t, single(p - q)) for e, part in rows for t, p, q in part]
    by_category: dict[str, list[float]] = defaultdict(list)
    by_token: dict[int, list[float]] = defaultdict(list)
    for name, token, effect in tokens:
        by_category[name].append(effect)
        by_token[token].append(effect)

    def bin_of(effect: float) -> int:
        return next(i for i, end in enumerate(edges[1:]) if effect <= single(end))

    def counted(effects: list[float]) -> list[int]:
        return [sum(bin_of(effect) == i for effect in effects) for i in range(len(edges) - 1)]

    frequent = {t: (math.fsum(e) / len(e), len(e)) for t, e in by_token.items() if len(e) >= min_count}
    return {
        "histogram": {name: counted(effects) for name, effects in by_category.items()},
        "above": {name: sum(e > single(delta) for e in effects) for name, effects in by_category.items()},
        "mean": {name: math.fsum(effects) / len(effects) for name, effects in by_category.items()},
        "tokens": {token: both for token, both in frequent.items() if both[0] > 1e-9},
    }


def reference_answers(rows: list[Row], answers: int) -> list[str]:
    """The rule read aloud, over all answers at once."""
    left = {}
    for example_id, part in rows:
        gain = math.fsum(max(0.0, single(p - q)) for _, p, q in part)
        if gain > 0:
            left[example_id] = gain / math.sqrt(len(part))
    names = list(dict.fromkeys(example_id[0] for example_id, _ in rows))
    chosen: list[str] = []
    while left and len(chosen) < answers:
        for name in names:
            own = [e for e in left if e[0] == name]
            if own and len(chosen) < answers:
                users = [e.rsplit(":", 1)[0] for e in chosen]
                best = min(own, key=lambda e: (users.count(e.rsplit(":", 1)[0]), -left[e], e))
                chosen.append(best)
                del left[best]
    return chosen


EIGHTHS = st.integers(1, 8).map(lambda eighths: eighths / 8)  # exact, so that equal scores are equal
TOKENS = st.lists(st.tuples(st.integers(0, 5), EIGHTHS, EIGHTHS), max_size=4)
ANSWERS = st.lists(st.tuples(st.sampled_from("AB"), st.integers(0, 4), TOKENS), max_size=14)


@settings(max_examples=trials(60), deadline=None)
@given(
    ANSWERS, st.sampled_from([-0.2, 0.0, 0.05, 0.125, 0.3]), st.integers(1, 3), st.integers(0, 14), st.integers(1, 5)
)
def test_summary_equals_the_slow_reference(
    drawn: list[tuple[str, int, list[tuple[int, float, float]]]], delta: float, minimum: int, cut: int, answers: int
) -> None:
    rows = [(f"{name}:u{user}:{n}", tokens) for n, (name, user, tokens) in enumerate(drawn)]
    category = {example_id: example_id[0] for example_id, _ in rows}
    with tempfile.TemporaryDirectory() as folder:
        paths = written(Path(folder), rows[:cut], rows[cut:])
        summary = summarise(paths, category, delta=delta, min_count=minimum, answers=answers)
    expected = reference(rows, delta, minimum)
    assert {part.category: list(part.histogram) for part in summary.categories} == expected["histogram"]
    assert {part.category: part.preference_tokens for part in summary.categories} == expected["above"]
    assert {part.category: part.mean_effect for part in summary.categories} == pytest.approx(expected["mean"])
    found = {top.token_id: (top.mean_effect, top.count) for top in summary.top_tokens if top.mean_effect > 1e-9}
    assert found == {token: pytest.approx(both) for token, both in expected["tokens"].items()}
    means = [top.mean_effect for top in summary.top_tokens]
    assert means == sorted(means, reverse=True)
    assert [answer.example_id for answer in summary.answers] == reference_answers(rows, answers)
