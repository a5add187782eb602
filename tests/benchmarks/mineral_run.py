"""The whole path on simulated rock with known truth: registration, IoU beside thresholds, porosity, intervals.

    python tests/benchmarks/mineral_run.py --out RUNS --edge 2000 --minutes 20
    python tests/benchmarks/mineral_run.py --out RUNS --edge 8000 --preset gpu --minutes 8 --seeds 3
    python tests/benchmarks/mineral_run.py --out RUNS --method thresholds

What the mineral map itself names wrongly (`--mixing`) stays in the shares: they are those of the map's method.

Goals: mean IoU above that of thresholds, porosity off by less than a point, intervals that hold the truth.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import pandas as pd

from keras_microseg import io
from keras_microseg.metrics.pixel import confusion_matrix, counts_of, iou
from keras_microseg.segmentation.grey_classes import GreyClassified
from keras_microseg.simulation.rock_files import write_rock
from keras_microseg.simulation.rocks import MINERALS, RockSettings
from keras_microseg.workflows import mineral_run
from keras_microseg.workflows.mineral_clean import SEM
from keras_microseg.workflows.mineral_quantify import open_numbers
from keras_microseg.workflows.steps import read_json


def true_iou(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """IoU of each class against the exact classes of the rock, inside the sample."""
    inside = truth > 0
    table = confusion_matrix(truth[inside].astype(int) - 1, predicted[inside], len(MINERALS) - 1)
    return iou(counts_of(table), "none")


def main() -> None:
    """Print what came out for each seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--edge", type=int, default=2000)
    parser.add_argument("--grain", type=float, default=60.0)
    parser.add_argument("--mixing", type=float, default=0.0, help="share of clay that the map names otherwise")
    parser.add_argument("--method", default="network")
    parser.add_argument("--preset", default="cpu")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--epochs", type=int, help="instead of minutes: the same training on a busy machine")
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    length = {"epochs": options.epochs} if options.epochs else {"minutes": options.minutes, "epochs": 400}
    for seed in range(options.seeds):
        folder = options.out / f"rock{seed}"
        shape = (options.edge, options.edge)
        settings = RockSettings(
            shape, seed, options.grain, scale=4, pitch=(90, 90), sem_field=options.edge // 4, mixing=options.mixing
        )
        rock = write_rock(folder, settings)
        start = time.perf_counter()
        asked = mineral_run.MineralRunSettings(
            str(folder / "sem.tif"), str(folder / "map.png"), options.method, palette=str(folder / "palette.csv"),
            train={"preset": options.preset, **length},
        )  # fmt: skip
        run = mineral_run.run(asked, folder / options.method, resume=True).path
        spent = time.perf_counter() - start
        registration = read_json(run / "register" / "registration.json")
        truth = rock.classes[...]
        found = true_iou(truth, open_numbers(mineral_run.map_path(run)).read())
        grey = io.open_image(run / "clean" / SEM).data
        thresholds = true_iou(truth, GreyClassified(grey, mineral_run.fit_thresholds(run))[...])
        fractions = pd.read_csv(run / "tables" / "fractions.csv", comment="#").set_index("class")
        exact = pd.Series(rock.fractions())
        inside = (fractions["low"] <= exact) & (exact <= fractions["high"])
        print(
            f"seed {seed}, {options.method}: {spent:.0f} s; registration, held-out mean "
            f"{registration['held_out_mean']:.3f} map px; mean IoU {found.mean():.3f} (thresholds "
            f"{thresholds.mean():.3f}); porosity counted {100 * fractions['raw']['pore']:.2f}, corrected "
            f"{100 * fractions['share']['pore']:.2f}, true {100 * exact['pore']:.2f} %; {inside.sum()} of "
            f"{len(inside)} intervals hold the truth",
            flush=True,
        )
        table = pd.DataFrame({"IoU": found, "thresholds": thresholds}, index=MINERALS[1:])
        print(pd.concat([table, fractions[["raw", "share", "low", "high"]], exact.rename("true")], axis=1).round(4))
        io.write_image(run / "truth.png", truth)


if __name__ == "__main__":
    main()
