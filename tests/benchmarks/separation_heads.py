"""Which map separates touching particles best? The experiment that chose the outputs of the default model.

One network learns all maps at once (so every way of decoding sees the same features):

    python tests/benchmarks/separation_heads.py --train HEADS       # about 20 minutes on 2 cores, resumable
    python tests/benchmarks/separation_heads.py --model HEADS/model.keras

The second command decodes the same predictions in four ways and prints pooled scores at IoU > 0.5 on the real images:

* distance: seeds where the relative distance to the edge exceeds a threshold, watershed on it;
* boundary: seeds are what the contact boundary leaves of the foreground, watershed on the boundary probability;
* combined: distance - boundary as the landscape;
* flow: every pixel follows the direction to its centre; pixels that end together are one particle.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from real_images import DATASETS, load_dataset  # noqa: E402

from keras_microseg.data.targets import MAPS  # noqa: E402
from keras_microseg.inference import Segmenter  # noqa: E402
from keras_microseg.metrics import instance  # noqa: E402
from keras_microseg.segmentation.labeling import label_components, remove_small, seeded_watershed  # noqa: E402

THRESHOLD = 0.5
MIN_AREA = 10


def decode_distance(maps: np.ndarray, level: float) -> np.ndarray:
    """Seeds: distance above `level`."""
    inside = maps[..., 0] > THRESHOLD
    return seeded_watershed(-maps[..., 2], label_components(inside & (maps[..., 2] > level)), inside)


def decode_boundary(maps: np.ndarray, level: float) -> np.ndarray:
    """Seeds: foreground where the boundary probability is below `level`."""
    inside = maps[..., 0] > THRESHOLD
    seeds = remove_small(label_components(inside & (maps[..., 1] < level)), 6)
    return seeded_watershed(maps[..., 1], seeds, inside)


def decode_combined(maps: np.ndarray, level: float) -> np.ndarray:
    """Seeds: distance - boundary above `level`."""
    inside = maps[..., 0] > THRESHOLD
    landscape = maps[..., 2] - maps[..., 1]
    return seeded_watershed(-landscape, label_components(inside & (landscape > level)), inside)


def decode_flow(maps: np.ndarray, reach: float, steps: int = 60) -> np.ndarray:
    """Pixels that arrive within `reach` px of the same peak of arrivals."""
    inside = maps[..., 0] > THRESHOLD
    rows, columns = np.nonzero(inside)
    labels = np.zeros(inside.shape, np.int32)
    if not len(rows):
        return labels
    limit = np.array(inside.shape) - 1
    position = np.stack([rows, columns], axis=1).astype(np.float32)
    for _ in range(steps):
        at = np.clip(np.rint(position).astype(int), 0, limit)
        position += maps[at[:, 0], at[:, 1], 3:5]
    at = np.clip(np.rint(position).astype(int), 0, limit)
    arrivals = np.zeros(inside.shape)
    np.add.at(arrivals, (at[:, 0], at[:, 1]), 1)
    arrivals = ndimage.uniform_filter(arrivals, 5) * 25
    peaks = (arrivals == ndimage.maximum_filter(arrivals, 7)) & (arrivals > MIN_AREA)
    seeds = label_components(ndimage.binary_dilation(peaks, np.ones((3, 3))))
    distance, nearest = ndimage.distance_transform_edt(seeds == 0, return_indices=True)
    found = seeds[nearest[0][at[:, 0], at[:, 1]], nearest[1][at[:, 0], at[:, 1]]]
    labels[rows, columns] = np.where(distance[at[:, 0], at[:, 1]] <= reach, found, 0)
    return labels


DECODERS: dict[str, tuple[Callable[..., np.ndarray], tuple[float, ...]]] = {
    "distance": (decode_distance, (0.4, 0.5, 0.6, 0.7)),
    "boundary": (decode_boundary, (0.1, 0.2, 0.35, 0.5)),
    "combined": (decode_combined, (0.15, 0.3, 0.45, 0.6)),
    "flow": (decode_flow, (3.0, 6.0, 9.0)),
}


def compare(model: str, data: list[str]) -> None:
    """Print one row per decoder, level and data set; images are scaled so that the median particle measures 28 px."""
    segmenter = Segmenter(model)
    if segmenter.predictor.outputs != list(MAPS):
        raise SystemExit(f"{model}: needs the outputs {', '.join(MAPS)}; train it with --train.")
    for name in data:
        items = []
        for sample in load_dataset(name):
            areas = np.bincount(sample.truth.ravel())[1:]
            diameter = float(np.sqrt(4 / np.pi * np.median(areas[areas > 0])))
            scale = 1.0 if diameter < 45 else 28 / diameter
            items.append((segmenter.segment(sample.image, scale=scale, return_maps=True).maps, sample.truth))
        print(f"{name}, {len(items)} images")
        for kind, (decode, levels) in DECODERS.items():
            for level in levels:
                start = time.process_time()
                matches = []
                for maps, truth in items:
                    labels = remove_small(decode(maps, level), MIN_AREA)
                    rows, columns = (
                        ((np.arange(n) + 0.5) * small / n).astype(int)
                        for n, small in zip(truth.shape, labels.shape, strict=True)
                    )
                    matches.append(instance.match(truth, labels[np.ix_(rows, columns)]))
                pooled = instance.pool(matches)
                print(
                    f"  {kind:9s} {level:4.2f}  F1 {pooled.f1:.3f}  precision {pooled.precision:.3f}  "
                    f"recall {pooled.recall:.3f}  PQ {pooled.panoptic_quality:.3f}  "
                    f"{(time.process_time() - start) / len(items):.2f} CPU s per image"
                )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", metavar="FOLDER", help="train a network with all maps")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--model", help="score this network")
    parser.add_argument("--data", default=",".join(DATASETS))
    options = parser.parse_args()
    if options.train:
        from keras_microseg.workflows.default_model import train_default

        print(train_default(options.train, resume=True, outputs=MAPS, epochs=options.epochs))
    if options.model:
        compare(options.model, options.data.split(","))


if __name__ == "__main__":
    main()
