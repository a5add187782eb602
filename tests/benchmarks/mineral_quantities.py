"""Time and peak memory of measuring mineral maps of growing size, each in a process of its own.

    python tests/benchmarks/mineral_quantities.py --edges 6000 12000 24000

Maps are a simulated rock of 2,000 px laid out again and again, mirrored at the seams, and written as TIFF. Memory must
not grow with the map; time grows with its area.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from keras_microseg.image import LazyArray, PixelSize
from keras_microseg.io.images import write_tiff
from keras_microseg.io.palettes import write_palette
from keras_microseg.simulation.rock_files import rock_palette
from keras_microseg.simulation.rocks import Rock, RockSettings
from keras_microseg.workflows.mineral_quantify import QuantifySettings, quantify


class Mirrored(LazyArray):
    """A square array laid out again and again, mirrored at the seams."""

    def __init__(self, cell: np.ndarray, edge: int):
        self.cell, self.shape, self.dtype = cell, (edge, edge), cell.dtype

    def read_block(self, block: tuple[slice, ...]) -> np.ndarray:
        index = []
        for part, n in zip(block, self.cell.shape, strict=True):
            at = np.arange(part.start, part.stop) % (2 * n)
            index.append(np.where(at < n, at, 2 * n - 1 - at))
        return self.cell[np.ix_(*index)]


def main() -> None:
    """Print one line per size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edges", type=int, nargs="+", default=[6000, 12000, 24000])
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.process_time()
        quantify(
            QuantifySettings(str(options.one / "map.tif"), str(options.one / "palette.csv")), options.one / "tables"
        )
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(
            f"{time.process_time() - start:.1f} s CPU, peak memory {peak / 2**20:.2f} GiB ({before / 2**20:.2f} before)"
        )
        return
    cell = Rock(RockSettings((2000, 2000), seed=1, grain_size=60, disc=0)).classes[...]
    for edge in options.edges:
        with tempfile.TemporaryDirectory() as folder:
            write_tiff(Path(folder) / "map.tif", Mirrored(cell, edge), "YX", PixelSize((0.5, 0.5), "um"))
            write_palette(Path(folder) / "palette.csv", rock_palette())
            found = subprocess.run([sys.executable, __file__, "--one", folder], capture_output=True, text=True)
            print(f"{edge:6d} px, {edge**2 / 1e6:8.0f} Mpx: {(found.stdout or found.stderr).strip()}", flush=True)


if __name__ == "__main__":
    main()
