"""Tests for results on parts of the examples, and for the control with strangers' histories."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from nextquill_core.evaluation.metrics import ExampleScores, score_examples
from nextquill_core.evaluation.slices import (
    BUCKETS,
    DAYS,
    DIFFERENCE,
    GAP,
    GAP_BUCKETS,
    HISTORY_LENGTH,
    LENGTH_BUCKETS,
    OWN,
    STRANGER,
    control_rows,
    gap_bucket,
    length_bucket,
    slice_labels,
    slice_rows,
)
from nextquill_core.schemas import SLICES, Example, Item, Review

DAY = 24 * 60 * 60 * 1000
REFERENCES = [f"a very good book about the number {number} and its many friends" for number in range(8)]
USERS = [f"user{number // 2}" for number in range(8)]
CATEGORIES = ["Books"] * 4 + ["Movies"] * 4


def example(times: list[int], target: int) -> Example:
    item = Item("item", "")
    history = tuple(Review(item, 5.0, "title", "text", time) for time in times)
    return Example("e", "u", "C", "test", Review(item, 5.0, "title", "text", target), history)


@pytest.fixture(scope="module")
def scores() -> dict[tuple[str, str], ExampleScores]:
    good = [text.replace("very", "rather") for text in REFERENCES]
    return {
        ("qwen", "paper"): score_examples(["nothing to see"] * 8, REFERENCES),
        ("nextquill", "paper"): score_examples(good, REFERENCES),
    }


@pytest.mark.parametrize(
    ("length", "bucket"),
    [(0, "none"), (1, "1–3"), (3, "1–3"), (7, "4–7"), (8, "8–15"), (17, "16–31"), (63, "32–63"), (500, "128+")],
)
def test_lengths(length: int, bucket: str) -> None:
    assert length_bucket(example([1] * length, 2)) == bucket
    assert bucket in LENGTH_BUCKETS


def test_gaps_at_their_edges() -> None:
    """A gap of exactly seven days is no longer under a week; a millisecond less is."""
    target = 10_000 * DAY
    for place, days in enumerate(DAYS):
        assert gap_bucket(example([target - days * DAY], target)) == GAP_BUCKETS[place + 1]
        assert gap_bucket(example([target - days * DAY + 1], target)) == GAP_BUCKETS[place]
    assert gap_bucket(example([target - 40 * DAY, target], target)) == "under a week"  # the newest counts


def test_what_has_no_gap() -> None:
    """No history; or a time before 1970 and one after the target, which no clock can have given."""
    assert gap_bucket(example([], 5)) == ""
    assert gap_bucket(example([6], 5)) == ""
    assert gap_bucket(example([-3 * DAY], -DAY)) == "under a week"


def test_labels() -> None:
    examples = [example([0] * 20, 100 * DAY), example([], 0)]
    assert slice_labels(examples) == {HISTORY_LENGTH: ["16–31", "none"], GAP: ["under 6 months", ""]}
    assert slice_labels(examples, dated=False).keys() == {HISTORY_LENGTH}


def test_slices_are_the_scores_of_their_examples(scores: dict[tuple[str, str], ExampleScores]) -> None:
    labels = {GAP: ["under a week"] * 3 + ["2 years or more"] * 4 + [""]}
    rows = slice_rows(scores, USERS, CATEGORIES, labels, samples=100)
    assert pa.Table.from_pylist(rows, schema=SLICES).num_rows == len(rows)
    assert all(set(row) == set(SLICES.names) for row in rows)
    sizes = {(row["bucket"], row["category"]): row["n"] for row in rows}
    assert sizes == {
        ("under a week", "Books"): 3,
        ("under a week", "all"): 3,
        ("2 years or more", "Books"): 1,
        ("2 years or more", "Movies"): 3,
        ("2 years or more", "all"): 4,
    }
    found = {(row["bucket"], row["category"], row["method"], row["metric"]): row["value"] for row in rows}
    mine = scores["nextquill", "paper"]
    assert found["2 years or more", "all", "nextquill", "bleu"] == mine.take(np.arange(3, 7)).value("bleu")
    assert found["under a week", "Books", "qwen", "rouge1"] == 0
    assert all(row["p_value"] is None for row in rows)
    assert all(row["ci_low"] <= row["value"] + 1e-9 <= row["ci_high"] + 2e-9 for row in rows)


def test_slices_come_in_the_order_of_their_buckets(scores: dict[tuple[str, str], ExampleScores]) -> None:
    labels = {HISTORY_LENGTH: ["64–127", "none", "8–15", "8–15", "none", "4–7", "128+", "1–3"]}
    rows = slice_rows(scores, USERS, ["Books"] * 8, labels, samples=100)
    order = list(dict.fromkeys(row["bucket"] for row in rows))
    assert order == ["none", "1–3", "4–7", "8–15", "64–127", "128+"]
    assert order == [bucket for bucket in BUCKETS[HISTORY_LENGTH] if bucket in order]


def test_labels_must_be_of_all_examples(scores: dict[tuple[str, str], ExampleScores]) -> None:
    with pytest.raises(ValueError, match="gap of 1 examples for 8"):
        slice_rows(scores, USERS, CATEGORIES, {GAP: ["under a week"]})


def test_control_by_hand() -> None:
    """Two users with own scores 0.5 and 0.7 and strangers' 0.3 and 0.7: the difference of the means is 0.1.

    A resample has the first user twice (0.2), once (0.1) or never (0), so the interval is [0, 0.2].
    """
    counts = ExampleScores({"length_ratio": np.ones((2, 2)), "bleu": np.ones((2, 10))})
    own = {("latestk", "sane"): counts.plus({"rouge1": [0.5, 0.7]})}
    stranger = {("latestk", "sane"): counts.plus({"rouge1": [0.3, 0.7]})}
    rows = [row for row in control_rows(own, stranger, ["a", "b"], ["C", "C"]) if row["metric"] == "rouge1"]
    assert pa.Table.from_pylist(rows, schema=SLICES).num_rows == 3
    assert [row["bucket"] for row in rows] == [OWN, STRANGER, DIFFERENCE]
    assert [row["value"] for row in rows] == pytest.approx([0.6, 0.5, 0.1])
    assert [rows[2]["ci_low"], rows[2]["ci_high"]] == pytest.approx([0, 0.2])
    assert {row["method"] for row in rows} == {"latestk"}
    assert rows[0]["p_value"] is None


def test_control_corrects_over_all_methods(scores: dict[tuple[str, str], ExampleScores]) -> None:
    """Methods that read no history write the same either way: the difference is 0, and p is 1."""
    stranger = {("nextquill", "paper"): scores["qwen", "paper"], ("qwen", "paper"): scores["qwen", "paper"]}
    rows = control_rows(scores, stranger, USERS, CATEGORIES, samples=999)
    tests = {(row["method"], row["metric"], row["category"]): row for row in rows if row["bucket"] == DIFFERENCE}
    assert tests["nextquill", "rouge1", "all"]["p_value"] < 0.01
    assert tests["nextquill", "rouge1", "all"]["p_adjusted"] == pytest.approx(
        8 * tests["nextquill", "rouge1", "all"]["p_value"]  # two methods in four metrics
    )
    assert tests["qwen", "rouge1", "all"]["value"] == 0
    assert tests["qwen", "rouge1", "all"]["p_value"] == 1
    assert {category for *_, category in tests} == {"Books", "Movies", "all"}


def test_control_needs_both_sides(scores: dict[tuple[str, str], ExampleScores]) -> None:
    with pytest.raises(ValueError, match="oppu"):
        control_rows(scores, {("oppu", "paper"): scores["qwen", "paper"]}, USERS, CATEGORIES)
