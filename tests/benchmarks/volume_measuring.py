"""Speed of components and particle table of volumes beside scikit-image, in process CPU time, one run after the other.

    python tests/benchmarks/volume_measuring.py [--sizes 200 300] [--repeats 3]

Both sides label the same mask (26 neighbours) and compute the same quantities; values are compared. A second line adds
what one usually wants as well (surface, sphericity, Euler number), for which scikit-image needs a mesh per object.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np  # noqa: E402
from scipy import ndimage  # noqa: E402
from skimage import measure  # noqa: E402

from keras_microseg.measurement import label_particles  # noqa: E402

SAME = {  # ours: skimage's, equal by definition
    "volume": "area", "equivalent_diameter": "equivalent_diameter_area", "centroid_z": "centroid-0",
    "centroid_y": "centroid-1", "centroid_x": "centroid-2", "bbox_z0": "bbox-0", "bbox_y0": "bbox-1",
    "bbox_x0": "bbox-2", "bbox_z1": "bbox-3", "bbox_y1": "bbox-4", "bbox_x1": "bbox-5",
    "intensity_mean": "intensity_mean", "intensity_min": "intensity_min", "intensity_max": "intensity_max",
    "intensity_std": "intensity_std",
}  # fmt: skip
THEIRS = ("label", "area", "bbox", "centroid", "equivalent_diameter_area", "axis_major_length", "axis_minor_length",
          "intensity_mean", "intensity_min", "intensity_max", "intensity_std")  # fmt: skip
SHORT = ("volume", "equivalent_diameter", "centroid_z", "centroid_y", "centroid_x")


def cpu_seconds(function, repeats: int) -> tuple[float, object]:
    best, result = np.inf, None
    for _ in range(repeats):
        begin = time.process_time()
        result = function()
        best = min(best, time.process_time() - begin)
    return best, result


def theirs_table(mask: np.ndarray, grey: np.ndarray | None, names: tuple[str, ...]) -> dict:
    return measure.regionprops_table(measure.label(mask, connectivity=3), grey, properties=names)


def mesh_areas(mask: np.ndarray) -> list[float]:
    labels = measure.label(mask, connectivity=3)
    areas = []
    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        vertices, faces, _, _ = measure.marching_cubes(np.pad(labels[box] == label, 1).astype(np.float32), 0.5)
        areas.append(measure.mesh_surface_area(vertices, faces))
    return areas


def compare(name: str, edge: int, ours: Callable[[], tuple], theirs: Callable[[], object], repeats: int) -> tuple:
    """Print one line; returns both tables."""
    ours_s, (_, table) = cpu_seconds(ours, repeats)
    theirs_s, other = cpu_seconds(theirs, repeats)
    print(f"{edge:4d}  {len(table):7d}  {name:28s}  {ours_s:6.3f}  {theirs_s:9.3f}  {theirs_s / ours_s:5.1f}")
    return table, other


def run(edge: int, repeats: int) -> None:
    rng = np.random.default_rng(0)
    noise = ndimage.gaussian_filter(rng.standard_normal((edge,) * 3, dtype=np.float32), 3)
    mask, grey = noise > noise.std(), rng.random((edge,) * 3, dtype=np.float32)
    label_particles(mask[:40, :40, :40], intensity=grey[:40, :40, :40])
    short = ("label", "area", "centroid", "equivalent_diameter_area")
    compare(
        "volume, centroid", edge, lambda: label_particles(mask, quantities=SHORT),
        lambda: theirs_table(mask, None, short), repeats,
    )  # fmt: skip
    names = (*SAME, "ellipsoid_major", "ellipsoid_minor")
    table, other = compare(
        "the same, axes, boxes, grey", edge, lambda: label_particles(mask, intensity=grey, quantities=names),
        lambda: theirs_table(mask, grey, THEIRS), repeats,
    )  # fmt: skip
    for mine, their in SAME.items():
        np.testing.assert_allclose(table[mine], other[their], rtol=1e-5, atol=1e-9, err_msg=mine)
    np.testing.assert_allclose(table.ellipsoid_major**2, other["axis_major_length"] ** 2 + 20 / 12, rtol=1e-9)
    table, areas = compare(
        "surface by marching cubes", edge, lambda: label_particles(mask, quantities=["surface_area"]),
        lambda: mesh_areas(mask), repeats,
    )  # fmt: skip
    np.testing.assert_allclose(table.surface_area, areas, rtol=1e-4)
    everything = (*names, "surface_area", "sphericity")
    compare(
        "all of these in one table", edge, lambda: label_particles(mask, intensity=grey, quantities=everything),
        lambda: (theirs_table(mask, grey, THEIRS), mesh_areas(mask)), repeats,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[200, 300])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print("edge  objects  quantities                    ours s  skimage s  ratio")
    for edge in options.sizes:
        run(edge, options.repeats)
    print(
        f"equal: {', '.join(SAME)}; surface_area to 1e-4; squares of the axes after 20/12 px² for the size of a voxel"
    )


if __name__ == "__main__":
    main()
