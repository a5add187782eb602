"""Scores: pixels, instances, and the three scores of the source system. No network is needed.

The same pixel scores as `keras.metrics` objects are in `metrics.tracked`, which is not imported here.
"""

from keras_microseg.metrics.instance import (
    Interval,
    Match,
    OverlapTable,
    aggregated_jaccard,
    average_precision,
    bootstrap_interval,
    count_split_merge,
    match,
    mean_best_iou,
    overlap_table,
    panoptic_quality,
    pool,
)

__all__ = [
    "Interval",
    "Match",
    "OverlapTable",
    "aggregated_jaccard",
    "average_precision",
    "bootstrap_interval",
    "count_split_merge",
    "match",
    "mean_best_iou",
    "overlap_table",
    "panoptic_quality",
    "pool",
]
