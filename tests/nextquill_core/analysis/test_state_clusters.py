"""Clusters of states: what is apart is found apart, and the same seed gives the same."""

from __future__ import annotations

import numpy as np

from nextquill_core.analysis.state_clusters import CLUSTERS, LEAST, cluster_states


def directions(counts: list[int], size: int = 12) -> np.ndarray:
    """Return states near one axis for each count, of very different lengths."""
    generator = np.random.default_rng(0)
    rows = []
    for axis, count in enumerate(counts):
        states = np.zeros((count, size), dtype=np.float32)
        states[:, axis] = 1
        rows.append((states + generator.normal(0, 0.02, states.shape)) * generator.uniform(0.1, 900, (count, 1)))
    return np.concatenate(rows).astype(np.float32)


def test_directions_that_are_apart_are_clusters_the_largest_first() -> None:
    found = cluster_states(directions([5, 9, 6, 7, 13, 20]), seed=3)
    assert found is not None
    assert np.bincount(found.labels_N).tolist() == [20, 13, 9, 7, 6, 5]
    assert [len(set(part)) for part in np.split(found.labels_N, [5, 14, 20, 27, 40])] == [1] * CLUSTERS
    assert found.map_N2.shape == (60, 2)
    assert 0.2 < found.explained < 1
    assert found.silhouette > 0.9


def test_the_same_states_and_seed_give_the_same_clusters() -> None:
    states = np.random.default_rng(1).normal(size=(200, 70)).astype(np.float32)
    first, second = cluster_states(states, seed=5), cluster_states(states.copy(), seed=5)
    assert first is not None
    assert second is not None
    assert np.array_equal(first.labels_N, second.labels_N)
    assert np.allclose(first.map_N2, second.map_N2)


def test_few_states_have_few_clusters_and_very_few_have_none() -> None:
    found = cluster_states(directions([LEAST, LEAST]), seed=0)
    assert found is not None
    assert set(found.labels_N.tolist()) == {0, 1}
    assert cluster_states(directions([LEAST, LEAST - 1]), seed=0) is None
    assert cluster_states(np.ones((50, 4), dtype=np.float32), seed=0) is None, "all are equal"
    assert cluster_states(np.zeros((0, 4), dtype=np.float32), seed=0) is None
