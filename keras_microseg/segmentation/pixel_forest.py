"""A small random forest in NumPy: extremely randomized trees on float features, grown level by level.

Every node tries `num_cuts` random (feature, threshold) pairs and keeps the one of least Gini impurity. All nodes of a
level are grown together, so there is no loop over nodes or samples.

Reference: Breiman (2001), Random Forests; Geurts, Ernst and Wehenkel (2006), Extremely randomized trees.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from keras_microseg.checks import check_number

_CHUNK = 1 << 18


@dataclasses.dataclass(frozen=True)
class Forest:
    """Complete binary trees.

    Attributes:
        feature: (trees, 2^depth - 1) int16 feature asked at each inner node, in level order.
        threshold: same shape, float32; larger values go to the right.
        leaves: (trees, 2^depth, classes) float32 share of the classes.
    """

    feature: np.ndarray
    threshold: np.ndarray
    leaves: np.ndarray

    def predict(self, values: np.ndarray) -> np.ndarray:
        """(N, classes) float32 mean class shares for (N, F) features."""
        depth = int(np.log2(self.leaves.shape[1]))
        result = np.zeros((len(values), self.leaves.shape[2]), np.float32)
        for start in range(0, len(values), _CHUNK):
            part = values[start : start + _CHUNK]
            rows = np.arange(len(part))
            for feature, threshold, leaves in zip(self.feature, self.threshold, self.leaves, strict=True):
                node = np.zeros(len(part), np.int32)
                for _ in range(depth):
                    node = 2 * node + 1 + (part[rows, feature[node]] > threshold[node])
                result[start : start + len(part)] += leaves[node - (2**depth - 1)]
        return result / len(self.leaves)


def fit_forest(
    values: np.ndarray,
    classes: np.ndarray,
    num_classes: int,
    *,
    num_trees: int = 20,
    depth: int = 10,
    num_cuts: int = 12,
    seed: int = 0,
) -> Forest:
    """Grow a forest.

    Args:
        values: (N, F) finite float features.
        classes: (N,) int 0..num_classes - 1.
        num_classes: number of classes.
        num_trees: trees, each on a bootstrap sample.
        depth: levels of questions.
        num_cuts: random cuts tried per node.
        seed: of samples and cuts.
    """
    check_number("num_trees", num_trees, minimum=1, integer=True)
    check_number("depth", depth, minimum=1, maximum=16, integer=True)
    rng = np.random.default_rng(seed)
    feature = np.zeros((num_trees, 2**depth - 1), np.int16)
    threshold = np.zeros((num_trees, 2**depth - 1), np.float32)
    leaves = np.zeros((num_trees, 2**depth, num_classes), np.float32)
    for tree in range(num_trees):
        drawn = rng.integers(0, len(values), len(values))
        part, target = values[drawn], classes[drawn]
        node = np.zeros(len(part), np.int64)
        rows = np.arange(len(part))
        share = np.bincount(target, minlength=num_classes)[None] / len(target)  # of the parent, for empty nodes
        for level in range(depth):
            nodes = 2**level
            best = np.full(nodes, -np.inf)
            first = nodes - 1
            order = np.argsort(node, kind="stable")
            starts = np.searchsorted(node[order], np.arange(nodes))
            counts = np.bincount(node, minlength=nodes)
            for _ in range(num_cuts):
                asked = rng.integers(0, values.shape[1], nodes)
                # the threshold is a blend of two samples of the node: inside its range whatever the distribution
                picks = starts + (rng.random((2, nodes)) * np.maximum(counts, 1)).astype(np.int64)
                picks = order[np.minimum(picks, len(order) - 1)]
                blend = rng.random(nodes)
                cut = part[picks[0], asked] * blend + part[picks[1], asked] * (1 - blend)
                right = part[rows, asked[node]] > cut[node]
                table = np.bincount((node * 2 + right) * num_classes + target, minlength=nodes * 2 * num_classes)
                table = table.reshape(nodes, 2, num_classes).astype(np.float64)
                total = np.maximum(table.sum(axis=2), 1e-9)
                purity = (np.square(table).sum(axis=2) / total).sum(axis=1)  # N - sum of Gini impurities
                better = purity > best
                best = np.where(better, purity, best)
                feature[tree, first : first + nodes][better] = asked[better]
                threshold[tree, first : first + nodes][better] = cut[better]
            went = part[rows, feature[tree, first + node]] > threshold[tree, first + node]
            node = 2 * node + went
            table = np.bincount(node * num_classes + target, minlength=2 * nodes * num_classes)
            table = table.reshape(2 * nodes, num_classes).astype(np.float64)
            total = table.sum(axis=1, keepdims=True)
            share = np.where(total > 0, table / np.maximum(total, 1), np.repeat(share, 2, axis=0))
        leaves[tree] = share
    return Forest(feature, threshold, leaves)
