"""Dividing a teacher's last filters among branches, so that filters that fire together stay together.

Source: Bhardwaj and others, Memory- and Communication-Aware Model Compression for Distributed Deep Learning
Inference on IoT (NoNN), 2019: a graph of filters whose links grow with joint activity, and its communities.
"""

from __future__ import annotations

import networkx
import numpy as np
import numpy.typing as npt

_MOST_ACTIVE = 0.25  # share of an image's filters that count as active
_STRONGEST = 0.2  # share of all links that are kept


def link_weights(activity: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the links between filters, (filters, filters), from their activity (images, filters), at least 0.

    w_jk sums a_j · a_k · |a_j − a_k| over the images in which both are among the most active.
    """
    filters = activity.shape[1]
    kept = max(2, round(filters * _MOST_ACTIVE))
    bound = np.partition(activity, filters - kept, axis=1)[:, filters - kept, None]
    active = np.where(activity >= bound, activity, 0.0)
    # |a − b| = max(a, b) − min(a, b), filter by filter, so that no (images, filters, filters) array is needed.
    weights = np.zeros((filters, filters))
    for j in range(filters):
        one = active[:, j, None]
        weights[j] = (one * active * np.abs(one - active)).sum(axis=0)
    np.fill_diagonal(weights, 0.0)
    return weights


def partition(activity: npt.NDArray[np.float64], branches: int, seed: int = 0) -> tuple[tuple[int, ...], ...]:
    """Divide filters into `branches` groups of one size, by communities of the graph of joint activity.

    activity: (images, filters), the number of filters a multiple of `branches`. Returns each group's filters,
    ascending. Whole communities go into the group with the most room; what does not fit flows over.
    """
    weights = link_weights(activity)
    filters = len(weights)
    if filters % branches:
        raise ValueError(f"{filters} filters cannot be divided into {branches} equal groups")
    links = weights[np.triu_indices(filters, 1)]
    bound = np.quantile(links, 1.0 - _STRONGEST)
    graph = networkx.Graph()
    graph.add_nodes_from(range(filters))
    rows, columns = np.nonzero(np.triu(weights, 1) >= max(bound, np.finfo(float).tiny))
    graph.add_weighted_edges_from((int(j), int(k), float(weights[j, k])) for j, k in zip(rows, columns, strict=True))
    communities = networkx.community.louvain_communities(graph, seed=seed)
    groups: list[list[int]] = [[] for _ in range(branches)]
    size = filters // branches
    for community in sorted(communities, key=lambda members: (-len(members), min(members))):
        left = sorted(community)
        while left:
            group = min(groups, key=len)
            room = size - len(group)
            group += left[:room]
            left = left[room:]
    return tuple(tuple(sorted(group)) for group in groups)
