"""Trains a network on class maps of real or simulated micrographs and scores it beside methods without one.

    KERAS_BACKEND=tensorflow python tests/benchmarks/class_maps.py --data superalloy --root DATA --out OUT --minutes 28
    KERAS_BACKEND=torch python tests/benchmarks/class_maps.py --data ebc --fold 0 --root DATA --out OUT --preset gpu
    KERAS_BACKEND=torch python tests/benchmarks/class_maps.py --data rock --out OUT --preset gpu --minutes 6

DATA holds `nasa_superalloy` and `nasa_ebc`. `--minutes` bounds each training. The run always ends with a table; it is
resumed when OUT holds a part of it. Weights start at random.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from keras_microseg import backend  # noqa: E402

BACKEND = backend.select()

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402

from keras_microseg.cli.shared import parse_changes  # noqa: E402
from keras_microseg.simulation import RockSettings  # noqa: E402
from keras_microseg.simulation.rock_files import write_rock_pairs  # noqa: E402
from keras_microseg.workflows import mineral_evaluate, mineral_train  # noqa: E402
from keras_microseg.workflows.mineral_train_settings import SAME_GREY  # noqa: E402
from keras_microseg.workflows.steps import read_json  # noqa: E402

PALETTE = "id,name,colour,takes_others\n0,matrix,#808080,yes\n1,secondary,#0000ff,\n2,tertiary,#ff0000,\n"
GPU = {
    "superalloy": {"filters": (32, 64, 128, 256, 512), "steps_per_epoch": 40, "epochs": 100},
    "ebc": {
        "filters": (16, 32, 64, 128, 256, 256, 256),
        "tile": 768,
        "batch_size": 4,
        "steps_per_epoch": 40,
        "epochs": 60,
    },
    "rock": {"filters": (32, 64, 128, 256, 256), "steps_per_epoch": 60, "epochs": 60},
}
# Layers lie flat in a cross section: up is not down. Grey levels differ from image to image.
LAYERS = {
    "flips": "mirror",
    "rotate": 8.0,
    "zoom": 1.5,
    "contrast": 0.5,
    "gamma": 0.45,
    "noise": 0.06,
    "blur": 1.5,
    "invert": 0.1,
}


def rock_folder(path: Path, size: int, train: int = 4) -> Path:
    """Pairs of simulated micrographs and their exact classes; every image is another rock of the same kind."""
    if (path / "done").exists():
        return path
    rocks = [
        RockSettings(shape=(size, size), seed=number, grain_size=90, disc=0, sem_field=512)
        for number in range(train + 2)
    ]
    write_rock_pairs(path, {"train": rocks[:train], "val": rocks[train:-1], "test": rocks[-1:]})
    (path / "done").touch()
    return path


def settings_of(data: str, options: argparse.Namespace) -> mineral_train.TrainSettings:
    given = parse_changes(options.set)
    folder = {"superalloy": "nasa_superalloy", "ebc": "nasa_ebc"}.get(data)
    changes: dict = {"seed": options.seed, "minutes": options.minutes}
    if data == "rock":
        folder = rock_folder(Path(options.out) / "rock", options.size)
        changes |= {"normalization": "fixed", "focus": 0.0, "augment": SAME_GREY}
    else:
        folder = Path(options.root) / folder
    if data == "superalloy":
        palette = Path(options.out) / "superalloy.csv"
        palette.parent.mkdir(parents=True, exist_ok=True)
        palette.write_text(PALETTE)
        changes |= {"palette": str(palette)}
    if data == "ebc":
        changes |= {"classes": ("background", "oxide", "crack"), "split": "leave-one-out", "hold": str(options.fold)}
        changes |= {"augment": LAYERS, "monitor": ("background", "oxide"), "focus": 0.2, "loss.focal_weight": 2.0}
        changes |= {"filters": (12, 24, 48, 96, 128, 128), "tile": 256}
    if options.preset == "gpu":
        changes |= GPU[data]
    return mineral_train.preset(options.preset, str(folder), **{**changes, **given})


def run(options: argparse.Namespace) -> pd.DataFrame:
    settings = settings_of(options.data, options)
    name = f"{options.data}{options.fold if options.data == 'ebc' else ''}_{options.preset}_{BACKEND}"
    folder = Path(options.out) / (options.name or name)
    start = time.process_time()
    done = mineral_train.train(
        settings, folder / "model", resume=True, progress=lambda *a: print(*a, flush=True) if options.verbose else None
    )
    spent = time.process_time() - start
    part = "test" if options.data == "rock" else "validation"
    mineral_evaluate.evaluate(
        mineral_evaluate.EvaluateSettings(str(done.model_path), settings.data, part), folder / "scores", overwrite=True
    )
    overall = pd.read_csv(folder / "scores" / "scores.csv").set_index("method")
    classes = pd.read_csv(folder / "scores" / "classes.csv")
    wide = classes.pivot(index="method", columns="class", values="iou").add_prefix("IoU ")
    errors = classes.pivot(index="method", columns="class", values="error_points").add_prefix("error ")
    columns = ["mean_iou", "mean_iou_low", "mean_iou_high", "accuracy", "mean_iou_band_2"]
    table = pd.concat([overall[columns], wide, errors], axis=1).loc[overall.index]
    facts = read_json(folder / "model" / "train_settings.json")
    print(
        f"\n{folder.name}: {done.card['name']}, {len(done.history)} epochs, best {facts['best_epoch']}, "
        f"{facts['seconds'] / 60:.1f} minutes of training ({spent / 60:.1f} CPU minutes), {os.cpu_count()} cores, "
        f"{read_json(folder / 'model' / 'run.json')['device']}"
    )
    print(table.round(3).T.to_string(), flush=True)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("superalloy", "ebc", "rock"), required=True)
    parser.add_argument("--root", help="folder of the real data")
    parser.add_argument("--out", required=True)
    parser.add_argument("--name", help="of the folder in OUT")
    parser.add_argument("--preset", default="cpu", choices=("cpu", "gpu"))
    parser.add_argument("--minutes", type=float, default=28)
    parser.add_argument("--fold", type=int, help="of ebc; default: all three, one after the other")
    parser.add_argument("--size", type=int, default=1024, help="edge of the simulated images, px")
    parser.add_argument("--set", action="append", default=[], help="further settings, name=value")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    if options.data != "rock" and not options.root:
        parser.error("--root is needed for real data")
    tables = []
    for fold in (0, 1, 2) if options.data == "ebc" and options.fold is None else (options.fold,):
        options.fold = fold
        tables.append(run(options))
    if len(tables) > 1:
        print("\nMean over the folds\n" + (sum(tables) / len(tables)).round(3).T.to_string())
    if options.data == "superalloy":
        print(f"mean IoU {tables[0].loc['prediction', 'mean_iou']:.3f}; to reach 0.88, floor 0.54")
    elif options.data == "ebc":
        oxide = np.mean([table.loc["prediction", "IoU oxide"] for table in tables])
        print(f"oxide IoU {oxide:.3f}; to reach 0.75, floor 0.21 (mean of {len(tables)} folds)")
    else:
        own, others = tables[0].loc["prediction"], tables[0].drop(index="prediction")
        print(
            f"mean IoU {own['mean_iou']:.3f} against {others['mean_iou'].max():.3f} without a network; "
            f"porosity error {own['error pore']:+.2f} points (to stay below 1)"
        )


if __name__ == "__main__":
    main()
