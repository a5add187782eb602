"""Time, memory and agreement of `segment` on the three backends.

    python tests/benchmarks/segmenting.py                        # a simulated 1024 x 712 image
    python tests/benchmarks/segmenting.py --images FOLDER        # every image of a folder, e.g. bam_tio2/sem
    python tests/benchmarks/segmenting.py --large 20000          # one image of that side, out of core

Every backend runs in a process of its own. Printed per backend: start to finish of the process, the first image, the
median of the further ones (after start-up), post-processing, peak memory; then how many pixels of the label images
differ between backends, up to the numbering of the particles.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from keras_microseg import io  # noqa: E402
from keras_microseg.metrics import instance  # noqa: E402

BACKENDS = ("jax", "tensorflow", "torch")
CHILD = """
import json, resource, sys, time
start = time.perf_counter()
sys.path.insert(0, sys.argv[1])
out, large, *paths = sys.argv[2:]
from keras_microseg import io
from keras_microseg.inference import Segmenter, segment_large
segmenter = Segmenter()
seconds = []
labelling = []
for number, path in enumerate(paths):
    begin = time.perf_counter()
    image = io.open_image(path)
    if large == "1":
        result = segment_large(segmenter, image, out, scale=1.0)
        count = int(max(result.labels[r : r + 1024].max() for r in range(0, result.labels.shape[0], 1024)))
    else:
        result = segmenter.segment(image)
        count = int(result.labels.max())
        io.write_labels(f"{out}/{number:04d}.tif", result.labels)
    seconds.append(time.perf_counter() - begin)
    labelling.append(result.seconds.get("labels", 0.0))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
print(json.dumps({"total": time.perf_counter() - start, "seconds": seconds, "labelling": labelling, "peak": peak,
                  "particles": count}))
"""


def simulated_image(folder: Path, shape: tuple[int, int]) -> Path:
    """A simulated SEM image; large ones are repetitions of one part."""
    from keras_microseg.simulation import simulate_micrograph

    part = tuple(min(n, 1024) for n in shape)
    made = simulate_micrograph(np.random.default_rng(4), part, "sem", diameter=(22, 24), captions=False)
    grey = np.rint(made.image * 255).astype(np.uint8)
    repeats = [-(-n // p) for n, p in zip(shape, part, strict=True)]
    path = folder / "image.tif"
    io.write_image(path, np.tile(grey, repeats)[: shape[0], : shape[1]], axes="YX")
    return path


def run(backend: str, paths: list[Path], out: Path, large: bool) -> dict:
    """Segment the images in a new process."""
    out.mkdir()
    environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-c", CHILD, str(ROOT), str(out), "01"[large], *map(str, paths)]
    begin = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{backend} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1]) | {"process": time.perf_counter() - begin}


def differing_pixels(first: Path, second: Path) -> tuple[int, int, float]:
    """(pixels that belong to other particles, all pixels, F1 at IoU > 0.5) over the label images of two folders."""
    different = total = 0
    matches = []
    for path in sorted(first.glob("*.tif")):
        a, b = (np.asarray(io.read_labels(folder / path.name).data) for folder in (first, second))
        found = instance.match(a, b)
        matches.append(found)
        partner = np.zeros(int(a.max()) + 1, np.int64)
        partner[found.pairs[:, 0]] = found.pairs[:, 1]
        different += int(np.count_nonzero((partner[a] != b) | ((a > 0) != (b > 0))))
        total += a.size
    return different, total, instance.pool(matches).f1


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--large", type=int, metavar="SIDE")
    parser.add_argument("--backends", default=",".join(BACKENDS))
    options = parser.parse_args()
    backends = options.backends.split(",")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if options.images:
            paths = io.find_images(options.images)
        elif options.large:
            paths = [simulated_image(folder, (options.large, options.large))]
        else:
            paths = [simulated_image(folder, (712, 1024))] * 4
        print(f"{len(paths)} images of {' x '.join(map(str, io.open_image(paths[0]).spatial_shape))} px")
        print("backend     process s  first s  further s  labelling s  peak MB  particles in the last")
        for backend in backends:
            figures = run(backend, paths, folder / backend, bool(options.large))
            further = np.median(figures["seconds"][1:] or [np.nan])
            print(
                f"{backend:10s} {figures['process']:10.1f} {figures['seconds'][0]:8.2f} {further:10.2f} "
                f"{np.median(figures['labelling']):12.3f} {figures['peak']:8.0f} {figures['particles']:10d}",
                flush=True,
            )
        if not options.large:
            for other in backends[1:]:
                different, total, f1 = differing_pixels(folder / backends[0], folder / other)
                print(f"{backends[0]} and {other}: {different} of {total} pixels differ, F1 {f1:.4f}")


if __name__ == "__main__":
    main()
