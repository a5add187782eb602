"""Sphere phantoms of 5, 10, 20 and 30 %: the shipped network and the classical methods in one table.

    python tests/benchmarks/phantoms.py                       # 112^3 voxels, spheres of 16, noise as in figures
    python tests/benchmarks/phantoms.py --size 256 --diameter 62 --method network

Dice is that of filled spheres against the exact labels. Masks of the classical methods are filled (holes in 3D and in
all planes) before they are scored. Objects are separated by the same method for all. Counted are those of at least
half the nominal volume; the median diameter is that of objects that do not touch the border. Rims are as wide as at 62
voxels of diameter, scaled. Goals: Dice >= 0.95, count within 2 %, median diameter within 1 voxel, fraction within 0.5
points.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from scipy import ndimage

from keras_microseg.image import Image
from keras_microseg.metrics.instance import match
from keras_microseg.segmentation.separation import SeparationSettings, separate
from keras_microseg.simulation.phantoms import PRESETS, PhantomSettings, make_phantom


def network_mask(volume: np.ndarray, options: argparse.Namespace) -> np.ndarray:
    """Foreground of the network."""
    from keras_microseg import backend, io
    from keras_microseg.inference.volumes import open_volume_predictor, predict_volume

    backend.select()
    backend.configure_device(threads=1)
    predictor = open_volume_predictor(options.model)
    with tempfile.TemporaryDirectory() as folder:
        result = predict_volume(
            predictor, Image(volume, "ZYX"), folder, diameter=options.diameter, maps=["foreground"],
            flips=options.flips, halo=options.halo, suffix=".npy",
        )  # fmt: skip
        threshold = options.threshold or predictor.card.get("decode", {}).get("threshold", 0.5)
        return np.asarray(io.open_volume(result.paths["foreground"]).data[...]) > 255 * threshold


def clahe_otsu_mask(volume: np.ndarray, options: argparse.Namespace) -> np.ndarray:
    """The mask preset of the source, filled."""
    from keras_microseg.segmentation.pseudo_labels import clahe_otsu

    return filled(clahe_otsu(volume) > 0)


def kmeans_mask(volume: np.ndarray, options: argparse.Namespace) -> np.ndarray:
    """Brighter of two clusters of grey value and smoothed grey value, filled."""
    from keras_microseg.segmentation.voxel_classes import fit_kmeans

    return filled(fit_kmeans(volume, 2, sample=200_000)(volume) == 1)


def depth_map_mask(volume: np.ndarray, options: argparse.Namespace) -> np.ndarray:
    """Cumulative gradient map of the source above its 75th percentile, filled."""
    from keras_microseg.segmentation.depth_maps import cumulative_depth

    smooth = cumulative_depth(volume)[1]
    return filled(smooth > np.percentile(smooth, 75))


def multi_otsu_mask(volume: np.ndarray, options: argparse.Namespace) -> np.ndarray:
    """Brightest of three classes, filled."""
    from keras_microseg.intensity import volume_statistics

    return filled(volume > volume_statistics(volume).multi_otsu(3)[-1])


METHODS = {
    "network": network_mask, "clahe_otsu": clahe_otsu_mask, "kmeans": kmeans_mask, "depth_map": depth_map_mask,
    "multi_otsu": multi_otsu_mask,
}  # fmt: skip


def filled(mask: np.ndarray) -> np.ndarray:
    """Holes filled in 3D and in the planes of all three orientations."""
    mask = ndimage.binary_fill_holes(mask)
    for axis in range(3):
        planes = np.moveaxis(mask, axis, 0)
        for plane in planes:
            plane |= ndimage.binary_fill_holes(plane)
    return mask


def score(mask: np.ndarray, truth: np.ndarray, diameter: float) -> dict[str, float]:
    """Scores of one mask against exact labels."""
    solid = truth > 0
    smallest = int(0.05 * np.pi / 6 * diameter**3)
    labels = separate(mask, SeparationSettings(sigma=max(0.5, diameter / 16), min_size=smallest))
    inner, inner_truth = whole(labels), whole(truth)
    half = 0.5 * np.pi / 6 * diameter**3
    count, wanted = (int((np.bincount(part.ravel())[1:] >= half).sum()) for part in (labels, truth))
    found = match(truth, labels, 0.5)
    return {
        "dice": 2 * np.count_nonzero(mask & solid) / max(1, np.count_nonzero(mask) + np.count_nonzero(solid)),
        "count": count, "true_count": wanted, "count_error": 100 * (count / max(1, wanted) - 1),
        "diameter_error": float(np.median(inner) - np.median(inner_truth)) if len(inner) else np.nan,
        "fraction_error": 100 * (mask.mean() - solid.mean()), "precision": found.precision, "recall": found.recall,
    }  # fmt: skip


def whole(labels: np.ndarray) -> np.ndarray:
    """Equivalent diameters of the objects that do not touch the border, voxels."""
    sizes = np.bincount(labels.ravel())
    at_border = np.unique(np.concatenate([np.take(labels, i, axis).ravel() for axis in range(3) for i in (0, -1)]))
    sizes[at_border] = 0
    sizes[0] = 0
    return np.cbrt(6 / np.pi * sizes[sizes > 0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--diameter", type=float, default=16.0)
    parser.add_argument("--fractions", default="0.05,0.1,0.2,0.3")
    parser.add_argument("--looks", default="far,near", help=f"of {', '.join(PRESETS)}")
    parser.add_argument("--method", default="all", help=f"all, or some of {', '.join(METHODS)}")
    parser.add_argument("--model", default="spheres3d")
    parser.add_argument("--flips", type=int, default=0)
    parser.add_argument("--threshold", type=float, default=None, help="probability; default: the model's")
    parser.add_argument("--halo", type=int, default=None, help="of the network's windows; default: the model's")
    parser.add_argument("--seed", type=int, default=12)
    options = parser.parse_args()
    names = list(METHODS) if options.method == "all" else options.method.split(",")
    print("look  fraction  method       Dice  objects (true)  count%  diameter  fraction  precision  recall   CPU s")
    for look in options.looks.split(","):
        for fraction in (float(part) for part in options.fractions.split(",")):
            settings = PhantomSettings(
                **{
                    **PRESETS[look], "fringe_width": max(0.8, PRESETS[look]["fringe_width"] * options.diameter / 62),
                    "shape": (options.size,) * 3, "diameter": options.diameter, "fraction": fraction,
                    "seed": options.seed, "clustering": 0.3,
                }
            )  # fmt: skip
            phantom = make_phantom(settings)
            for name in names:
                start = time.process_time()
                try:
                    mask = METHODS[name](phantom.volume, options)
                except ImportError as error:
                    print(f"{look:5} {fraction:8.0%}  {name:11} not available: {error}")
                    continue
                seconds = time.process_time() - start
                s = score(mask, phantom.labels, options.diameter)
                print(
                    f"{look:5} {fraction:8.0%}  {name:11} {s['dice']:.3f}  {s['count']:5d} ({s['true_count']:5d})  "
                    f"{s['count_error']:+6.1f}  {s['diameter_error']:+7.2f}  {s['fraction_error']:+7.2f}  "
                    f"{s['precision']:9.3f}  {s['recall']:6.3f}  {seconds:6.1f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
