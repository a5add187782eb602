"""Masks simulated per second on one core, from outlines that are there already.

    OMP_NUM_THREADS=1 python tests/benchmarks/simulating.py [--count 40]

Masks of 384 x 384 px with 100 to 150 particles; processor time, so that other work on the machine does not count. The
source system needs 9.4 s for one mask.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from keras_microseg.simulation import MaskSettings, Particles, simulate_mask

PARTICLES = Particles.analytic(seed=0, count=500, median=32.0, spread=0.25)
CASES = {
    "random": MaskSettings(),
    "noise patches": MaskSettings(mode="noise"),
    "clusters": MaskSettings.sem(count=(100, 150)),
    "clusters, coverage 0.23": MaskSettings.sem(coverage=(0.23,)),
    "small particles (16 px)": MaskSettings(diameter=(16.0, 0.3)),
    "tem": MaskSettings.tem(),
    "cubic, correlated rotation": MaskSettings(mode="cubic", rotation="correlated"),
    "packed": MaskSettings(mode="packed"),
    "paper (some 1000 candidates)": MaskSettings.paper(),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=40, help="masks per case")
    count = parser.parse_args().count
    print(f"{'case':<30}{'masks/s':>9}{'particles':>11}{'coverage':>10}")
    for name, settings in CASES.items():
        simulate_mask(np.random.default_rng(0), PARTICLES, settings)
        start = time.process_time()
        facts = [simulate_mask(np.random.default_rng([1, i]), PARTICLES, settings).facts for i in range(count)]
        rate = count / (time.process_time() - start)
        shown = [np.mean([fact[key] for fact in facts]) for key in ("particles", "coverage")]
        print(f"{name:<30}{rate:>9.0f}{shown[0]:>11.0f}{shown[1]:>10.2f}", flush=True)


if __name__ == "__main__":
    main()
