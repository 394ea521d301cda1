"""The author metric: by hand on vectors, beside a loop over pairs, and in an evaluation of a small world."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nextquill_core.evaluation.author import AuthorScorer, nearer_share
from nextquill_core.evaluation.ceilings import ceiling, ceiling_note
from nextquill_core.evaluation.metrics import AUTHOR
from nextquill_core.pipeline.evaluate import read_results, read_scores
from nextquill_core.pipeline.run import Run
from tests.stages import make
from tests.world import small_config

ANGLES = {"east": 0, "north": 90, "west": 180, "south": 270, "northeast": 45}


def compass(texts: Sequence[str]) -> Tensor:
    """Vectors of length 3 in the direction that a text names, by its word or in degrees."""
    angles = [float(ANGLES.get(text, text)) * np.pi / 180 for text in texts]
    return torch.tensor([[3 * np.cos(angle), 3 * np.sin(angle)] for angle in angles]).float().reshape(len(texts), 2)


def test_the_share_of_pairs_by_hand() -> None:
    assert nearer_share(np.array([0.9, 0.1]), np.array([0.5])) == 0.5
    assert nearer_share(np.array([0.9, 0.1]), np.array([0.5, 0.0, 0.95])) == 3 / 6
    assert nearer_share(np.array([0.5]), np.array([0.5])) == 0.5
    assert nearer_share(np.array([0.5]), np.array([0.5 + 1e-7])) == 0.5, "what differs by rounding is a tie"


def test_texts_by_hand() -> None:
    """The user's reviews point to the east and north, the other's to the west."""
    scorer = AuthorScorer(compass, [["east", "north"]] * 5, [["west"]] * 5)
    # 120 degrees: 120 and 30 from the own reviews, 60 from the other's. 135: 135 and 45, and 45.
    texts = ["northeast", "120", "135", "west", "  "]
    assert scorer(texts).tolist() == [[1.0, 1.0], [0.5, 1.0], [0.25, 1.0], [0.0, 1.0], [0.0, 1.0]]


def test_an_example_without_reviews_on_both_sides_is_not_measured() -> None:
    scorer = AuthorScorer(compass, [["east"], [], ["east"]], [["west"], ["west"], []])
    assert scorer(["east", "east", "east"]).tolist() == [[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]
    nothing = AuthorScorer(compass, [[]], [[]])
    assert nothing(["east"]).tolist() == [[0.0, 0.0]]
    found = ceiling(AUTHOR, nothing(["east"]), ["u"], ["C"], samples=100, seed=0)
    assert found == {}
    note = "Author by minilm: nothing was measured, for no example has what it needs."
    assert ceiling_note(AUTHOR, {"by": "minilm", "ceiling": found}) == note


def test_other_numbers_of_examples_are_refused() -> None:
    with pytest.raises(ValueError, match="own reviews of 1 examples and others' reviews of 0"):
        AuthorScorer(compass, [["east"]], [])
    with pytest.raises(ValueError, match="2 texts for 1 examples"):
        AuthorScorer(compass, [["east"]], [["west"]])(["east", "east"])


angles = st.integers(0, 359).map(str)


@given(st.lists(angles, min_size=1, max_size=5), st.lists(angles, min_size=1, max_size=5), angles)
def test_beside_a_loop_over_pairs(own: list[str], others: list[str], text: str) -> None:
    wins = 0.0
    for mine in own:
        for theirs in others:
            near, far = (round(float(np.cos(np.deg2rad(float(text) - float(one)))), 5) for one in (mine, theirs))
            wins += 1.0 if near > far else 0.5 if near == far else 0.0
    assert AuthorScorer(compass, [own], [others])([text])[0, 0] == pytest.approx(wins / (len(own) * len(others)))


def test_the_ceiling_is_that_of_the_true_reviews_by_category() -> None:
    scorer = AuthorScorer(compass, [["east"]] * 4, [["west"]] * 3 + [[]])
    statistics = scorer(["east", "west", "north", "east"])
    users, categories = ["A/u", "A/v", "B/u", "B/w"], ["A", "A", "B", "B"]
    found = ceiling(AUTHOR, statistics, users, categories, samples=200, seed=1)
    assert {name: (row["value"], row["examples"]) for name, row in found.items()} == {
        "A": (0.5, 2), "B": (0.5, 1), "all": (0.5, 3),
    }  # fmt: skip
    assert (found["A"]["ci_low"], found["A"]["ci_high"]) == (0.0, 1.0)


@pytest.mark.pipeline
def test_an_evaluation_measures_it_with_intervals_tests_and_ceiling(
    small_world: Path, prepared_store: Path, tmp_path: Path
) -> None:
    """Against vectors that are computed one text at a time, without our batches."""
    store = shutil.copytree(prepared_store, tmp_path / "store")
    evaluation = {"methods": ["qwen", "latestk"], "decoding": ["sane"], "retrieval": {"author": "base"}}
    run = Run(small_config(small_world, store, evaluate=evaluation, train={"method": "contextsft"}))
    make(run, *run.plan.evaluation.steps, run.plan.evaluate)
    results = read_results(run.artifact(run.plan.evaluate))
    how = results.settings[AUTHOR]
    assert (how["by"], how["similarity"]) == ("base", "cosine")
    assert 0 <= how["ceiling"]["Small"]["value"] <= 1
    rows = {row["method"]: row for row in results.rows if row["metric"] == AUTHOR}
    assert rows.keys() == {"qwen", "latestk"}
    assert all(row["ci_low"] <= row["value"] <= row["ci_high"] for row in rows.values())
    tests = json.loads((run.artifact(run.plan.evaluate).folder / "metrics.json").read_text())["comparisons"]
    assert [row["p_adjusted"] <= 1 for row in tests if row["metric"] == AUTHOR] == [True]
    assert any(caution.startswith("Author by base: the true reviews reach") for caution in results.cautions)
    ids, scores = read_scores(run.artifact(run.plan.evaluate))
    assert len(ids) == rows["qwen"]["n"]
    assert scores["qwen", "sane"].value(AUTHOR) == rows["qwen"]["value"]
