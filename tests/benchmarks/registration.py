"""Error of the registration of simulated micrographs and mineral maps, against the exact transform.

    python tests/benchmarks/registration.py                                # 1,600 px, 24 fields of 90
    python tests/benchmarks/registration.py --fields 13 --pitch 360 --scale 19.8 --grain 200      # as the source's data

Fields repeat 3 rows and 5 columns, are sheared by 1 and 3 px, shifted at random (0.7 px) and turned by 0.48 degrees.
The micrograph is made window by window while it is read once, so its size costs time only, not memory.
Goals: mean error below 0.5 map pixel, 95 % below 1 pixel.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from keras_microseg.registration import align, find_mosaic
from keras_microseg.simulation.rocks import Rock, RockSettings


def true_errors(rock: Rock, transform, step: int = 3) -> np.ndarray:
    """Distance of every `step`-th map pixel inside the sample from where it belongs, map px."""
    rows, columns = np.indices(rock.map_shape)[:, ::step, ::step]
    points = np.stack([rows, columns], axis=-1)
    truth, shape = rock.map_to_sem(points), np.array(rock.settings.shape)
    inside = np.hypot(*np.moveaxis(truth - (shape - 1) / 2, -1, 0)) < rock.settings.disc * shape.min() / 2
    return np.hypot(*np.moveaxis(transform(points) - truth, -1, 0))[inside] / rock.settings.scale


def main() -> None:
    """Print one line per seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fields", type=int, default=5)
    parser.add_argument("--pitch", type=int, default=90)
    parser.add_argument("--scale", type=float, default=4.0)
    parser.add_argument("--grain", type=float, default=40.0)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    edge = int(options.fields * (options.pitch - 5) * options.scale * 0.94)
    for seed in range(options.seeds):
        start = time.process_time()
        rock = Rock(
            RockSettings(
                (edge, edge - 40), seed, options.grain, scale=options.scale, pitch=(options.pitch,) * 2, sem_field=256
            )
        )
        labels, sem = rock.mineral_map[...], rock.sem
        made = time.process_time()
        mosaic = find_mosaic(labels)
        found = align(sem, labels, borders=mosaic.borders)
        spent = time.process_time() - made
        error, figures = true_errors(rock, found.transform), found.figures()
        print(
            f"seed {seed}: {sem.shape} and {labels.shape}, pitch {mosaic.pitch} overlap {mosaic.overlap} shear "
            f"{mosaic.shear}; error mean {error.mean():.3f} p95 {np.percentile(error, 95):.3f} max {error.max():.2f}; "
            f"own figure mean {figures['held_out_mean']:.3f} p95 {figures['held_out_p95']:.3f}; "
            f"{spent:.1f} s CPU with making the micrograph, {made - start:.1f} s for the map; "
            f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB",
            flush=True,
        )


if __name__ == "__main__":
    main()
