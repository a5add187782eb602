"""Speed of the particle table beside `skimage.measure.regionprops_table`, in process CPU time, one run after the other.

    python tests/benchmarks/measuring.py [--particles 4000] [--repeats 3]

Both sides compute the same kinds of quantities of the same label image. Where the definitions coincide the values are
compared; hull and Feret diameters differ by convention (corners of pixels here, middles of pixel edges there), and the
greatest difference is printed. For these, skimage has no least Feret diameter, Feret at 90 degrees or least rectangle,
so the comparison is in its favour.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np  # noqa: E402
from skimage.measure import regionprops_table  # noqa: E402

from keras_microseg.measurement import measure_particles  # noqa: E402

SAME = {  # ours: skimage's, equal by definition
    "area": "area",
    "equivalent_diameter": "equivalent_diameter_area",
    "perimeter": "perimeter_crofton",
    "centroid_y": "centroid-0",
    "centroid_x": "centroid-1",
    "bbox_y0": "bbox-0",
    "bbox_x1": "bbox-3",
    "intensity_mean": "intensity_mean",
    "intensity_min": "intensity_min",
    "intensity_max": "intensity_max",
    "intensity_std": "intensity_std",
}
SIMILAR = {"feret_max": "feret_diameter_max", "hull_area": "area_convex", "solidity": "solidity"}
THEIRS = ("label", "area", "bbox", "centroid", "equivalent_diameter_area", "perimeter_crofton", "axis_major_length",
          "axis_minor_length", "orientation", "intensity_mean", "intensity_min", "intensity_max", "intensity_std",
          "feret_diameter_max", "area_convex", "solidity")  # fmt: skip
OURS = (*SAME, *SIMILAR, "bbox_x0", "bbox_y1", "ellipse_major", "ellipse_minor", "ellipse_angle")


def particle_image(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Ellipses with half axes of 6 to 16 pixels (areas like the particles of real images, median near 380 px)."""
    rng = np.random.default_rng(seed)
    side = int(np.ceil(np.sqrt(count)))
    y, x = np.mgrid[-17:18, -17:18]
    labels = np.zeros((36 * side, 36 * side), np.int32)
    for label in range(1, count + 1):
        a, b = rng.uniform(6, 16, 2)
        turn = rng.uniform(0, np.pi)
        u, v = x * np.cos(turn) + y * np.sin(turn), -x * np.sin(turn) + y * np.cos(turn)
        row, column = (36 * n for n in divmod(label - 1, side))
        labels[row : row + 35, column : column + 35][(u / a) ** 2 + (v / b) ** 2 <= 1] = label
    return labels, rng.integers(0, 256, labels.shape).astype(np.uint8)


def cpu_seconds(function, repeats: int) -> tuple[float, object]:
    best, result = np.inf, None
    for _ in range(repeats):
        begin = time.process_time()
        result = function()
        best = min(best, time.process_time() - begin)
    return best, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--particles", type=int, default=4000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    labels, grey = particle_image(options.particles)
    measure_particles(labels[:100, :100], intensity=grey[:100, :100])

    ours_s, ours = cpu_seconds(lambda: measure_particles(labels, intensity=grey, quantities=OURS), options.repeats)
    theirs_s, theirs = cpu_seconds(lambda: regionprops_table(labels, grey, properties=THEIRS), 1)
    full_s, full = cpu_seconds(lambda: measure_particles(labels, intensity=grey), options.repeats)
    bare_s, _ = cpu_seconds(lambda: measure_particles(labels), options.repeats)

    count = len(full)
    print(f"{count} particles, median {np.median(full.area):.0f} px, image {labels.shape[0]} x {labels.shape[1]}")
    print(f"same quantities ({len(OURS)} columns): {ours_s:.3f} s here, {theirs_s:.2f} s skimage")
    print(f"ratio to regionprops_table: {theirs_s / ours_s:.0f}")
    print(f"particles/s, same quantities: {count / ours_s:,.0f} (skimage {count / theirs_s:,.0f})")
    print(f"particles/s, whole table ({full.shape[1]} columns): {count / full_s:,.0f}; no image: {count / bare_s:,.0f}")
    for mine, other in SAME.items():
        np.testing.assert_allclose(ours[mine], theirs[other], rtol=1e-9, err_msg=mine)
    print(f"equal to 1e-9: {', '.join(SAME)}")
    for mine, other in {"ellipse_major": "axis_major_length", "ellipse_minor": "axis_minor_length"}.items():
        np.testing.assert_allclose(ours[mine] ** 2, theirs[other] ** 2 + 4 / 3, rtol=1e-9, err_msg=mine)
    print("equal to 1e-9 after 4/3 px² for the size of a pixel: squares of ellipse_major, ellipse_minor")
    for mine, other in SIMILAR.items():
        difference = np.abs(ours[mine] - theirs[other])
        print(f"by convention: {mine} - {other}: at most {difference.max():.3g}, of {np.median(ours[mine]):.4g}")


if __name__ == "__main__":
    main()
