"""The paper's pictures: their numbers by hand, and what a run shows of them or says instead."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from nextquill_core.evaluation.metrics import HISTORY_GAIN
from nextquill_core.pipeline.clusters import FILE, OF_ONE_REVIEW, draw_tokens
from nextquill_core.pipeline.evaluate import read_results
from nextquill_core.pipeline.report.paper_pictures import difference_edges, history_differences
from nextquill_core.pipeline.run import Run
from nextquill_core.schemas import CLUSTERS
from tests.stages import make
from tests.world import small_config


def test_tokens_are_drawn_by_review_until_they_suffice() -> None:
    preferred = {"a": range(50), "b": range(100, 104), "c": [], "d": range(200, 230)}
    sample = draw_tokens(preferred, 30, seed=1)
    assert sum(map(len, sample.values())) == 30
    assert max(map(len, sample.values())) <= OF_ONE_REVIEW
    assert all(set(places) <= set(preferred[name]) and places == sorted(set(places)) for name, places in sample.items())
    assert draw_tokens(dict(reversed(preferred.items())), 30, seed=1) == sample, "the order of the reviews is nothing"
    assert draw_tokens(preferred, 30, seed=2) != sample
    everything = draw_tokens(preferred, 1000, seed=1)
    assert {name: len(places) for name, places in everything.items()} == {"a": 20, "b": 4, "d": 20}
    assert draw_tokens({}, 10, seed=1) == {}


def test_means_and_shares_of_differences_by_hand() -> None:
    values = [np.array([0.5, -0.25, 3.0]), np.array([0.25])]
    chosen = [np.array([True, True, True]), np.array([True])]
    found = history_differences("m", values, chosen, [-1.0, 0.0, 1.0], ["u", "v"], samples=200, seed=0)
    assert found.mean == pytest.approx(3.5 / 4)
    assert found.share_B.tolist() == [0.25, 0.75], "what lies beyond the edges is in the outermost bin"
    assert (found.low, found.high) == pytest.approx((0.25, 3.25 / 3)), "all resamples hold u, v or both"
    some = history_differences(
        "m", values, [np.array([True, False, False]), np.array([False])], [-1.0, 0.0, 1.0], ["u", "v"],
        samples=200, seed=0,
    )  # fmt: skip
    assert (some.mean, some.tokens) == (0.5, 1)


def test_edges_are_around_zero_and_hold_nearly_everything() -> None:
    edges = difference_edges([np.array([0.0, -0.12]), np.array([0.3] * 400)])
    assert (edges[0], edges[20], edges[-1], len(edges)) == (-0.3, 0.0, pytest.approx(0.3), 41)
    assert difference_edges([np.array([7.2])])[-1] == 7.5
    assert difference_edges([])[-1] == pytest.approx(0.001)


@pytest.mark.pipeline
def test_an_evaluation_draws_what_is_there_and_says_how_to_get_the_rest(whole: Run) -> None:
    folder = whole.artifact(whole.plan.evaluate).folder
    page = (folder / "report.html").read_text()
    assert (
        "The store has no sweep over α and λ with all else as here: run <code>nextquill sweep train.alpha=0.01" in page
    )
    assert "The clusters have not been computed: run <code>nextquill evaluate</code>" in page
    rows = pq.read_table(folder / "figures" / "log-probabilities.parquet").to_pylist()
    of_all = {row["method"]: row["mean"] for row in rows if row["tokens"] == "All tokens"}
    measured = read_results(whole.artifact(whole.plan.evaluate)).rows
    gains = {row["method"]: row["value"] for row in measured if row["metric"] == HISTORY_GAIN}
    assert of_all == pytest.approx(gains), "the mean over all tokens is the history gain"
    assert sum(row["share"] for row in rows if (row["method"], row["tokens"]) == ("nextquill", "All tokens")) == (
        pytest.approx(1)
    )


@pytest.mark.pipeline
def test_clusters_words_and_sweeps_of_a_run_are_pictures_with_their_data(whole: Run, small_world: Path) -> None:
    run = Run(small_config(small_world, whole.store.root, weights={"delta": 0.0}))
    clusters = run.plan.evaluation.clusters
    assert clusters is not None
    make(run, clusters, run.plan.evaluate)
    artifact = run.artifact(clusters)
    table = pq.read_table(artifact.folder / FILE)
    assert table.schema.equals(CLUSTERS)
    points, stats = table.to_pylist(), artifact.manifest.stats
    assert len(points) == stats["tokens"] <= stats["preference_tokens"]
    assert all(row["effect"] > 0 for row in points)
    assert {row["cluster"] for row in points} == set(range(6))
    evaluation = run.artifact(run.plan.evaluate)
    figures = evaluation.folder / "figures"
    drawn = {"clusters", "log-probabilities", "word-cloud-1", "words-1"}
    assert drawn <= {path.stem for path in figures.glob("*.png")} & {path.stem for path in figures.glob("*.parquet")}
    shown = pq.read_table(figures / "clusters.parquet").to_pylist()
    assert [{key: row[key] for key in points[0]} for row in shown] == points
    words = pq.read_table(figures / "words-1.parquet").to_pylist()
    assert [row["rank"] for row in words] == list(range(1, len(words) + 1))
    assert all(0 < row["preferred"] <= row["places"] for row in words)
    page = (evaluation.folder / "report.html").read_text()
    assert f"{len(points):,} tokens of {stats['reviews']:,} reviews" in page
    first = artifact.folder / FILE
    before = first.read_bytes()
    again = shutil.copytree(whole.store.root, whole.store.root.parent / "again")
    other = Run(small_config(small_world, again, weights={"delta": 0.0}))
    assert other.plan.evaluation.clusters is not None
    forced = other.make(other.plan.evaluation.clusters, force=True)
    assert (forced.artifact.folder / FILE).read_bytes() == before, "the same sample, states and clusters"
