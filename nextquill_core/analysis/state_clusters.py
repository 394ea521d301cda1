"""Clusters of hidden states by k-means, and a map of them in two dimensions.

States are scaled to length 1, because in language models the lengths of a few states exceed all others. The clusters
are found in the first principal components, of which the first two are the map.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CLUSTERS = 6
COMPONENTS = 50
STARTS = 4  # of k-means, of which the best one counts
LEAST = 10
"""States for each cluster; with fewer, there are fewer clusters."""


@dataclass(frozen=True)
class StateClusters:
    """N states in clusters.

    Attributes:
        labels_N: The cluster of each state, from 0, the largest cluster first.
        map_N2: The place of each state on the map.
        explained: Share of the variance that the map shows, 0 to 1.
        silhouette: Mean silhouette of the clusters, −1 to 1: near 1 they lie apart, near 0 they touch each other.
    """

    labels_N: NDArray[np.int64]
    map_N2: NDArray[np.float64]
    explained: float
    silhouette: float


def cluster_states(states_ND: NDArray[np.float32], *, seed: int) -> StateClusters | None:
    """Return the clusters of states; None if there are too few for two clusters, or if all are equal.

    Args:
        states_ND: Hidden states, one a row.
        seed: Seed of k-means and of the principal components; the same states and seed give the same clusters.
    """
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA
    from sklearn.metrics import silhouette_score

    count = min(CLUSTERS, len(states_ND) // LEAST)
    if count < 2:
        return None
    states_ND = states_ND.astype(np.float64)
    states_ND /= np.maximum(np.linalg.norm(states_ND, axis=1, keepdims=True), 1e-12)
    distinct = len(np.unique(states_ND, axis=0))
    if distinct < count or states_ND.shape[1] < 2:
        return None
    pca = PCA(min(COMPONENTS, *states_ND.shape), svd_solver="randomized", random_state=seed)
    points = pca.fit_transform(states_ND)
    found = KMeans(count, n_init=STARTS, random_state=seed).fit_predict(points)
    order = np.argsort(-np.bincount(found, minlength=count), kind="stable")
    labels = np.argsort(order)[found]
    explained = float(pca.explained_variance_ratio_[:2].sum())
    return StateClusters(labels, points[:, :2], explained, float(silhouette_score(points, labels)))
