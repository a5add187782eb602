"""Do the multi-scale options help? Equal trainings on simulated rocks with labels coarser than the image.

    python tests/benchmarks/multi_scale.py --out RUNS                       # all variants, about 3 CPU minutes each
    python tests/benchmarks/multi_scale.py --out RUNS --only unet label_grid --labels 6 --epochs 12

Labels of the training and validation rocks are the most frequent class of squares of `--labels` px; scores come from
the exact classes of other rocks, where outlines finer than the labels count. Seeds are the same for all variants.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from keras_microseg import backend  # noqa: E402

BACKEND = backend.select()

import pandas as pd  # noqa: E402

from keras_microseg import io  # noqa: E402
from keras_microseg.data.map_tiles import block_modes  # noqa: E402
from keras_microseg.simulation import RockSettings  # noqa: E402
from keras_microseg.simulation.rock_files import write_rock_pairs  # noqa: E402
from keras_microseg.workflows import mineral_evaluate, mineral_train  # noqa: E402
from keras_microseg.workflows.mineral_train_settings import SAME_GREY  # noqa: E402


def variants(labels: int) -> dict[str, dict]:
    """Name -> changes to the preset `cpu`."""
    return {
        "unet": {},
        "label_grid": {"label_grid": labels},
        "deep_supervision": {"deep_supervision": 2},
        "two_branch": {"architecture": "two_branch", "filters": (12, 24, 48, 96)},
    }


def write_data(folder: Path, size: int, labels: int) -> Path:
    if (folder / "done").exists():
        return folder
    rocks = [RockSettings((size, size), seed, grain_size=90, disc=0, sem_field=512) for seed in range(7)]
    write_rock_pairs(folder, {"train": rocks[:4], "val": rocks[4:5], "test": rocks[5:]})
    for path in [*(folder / "train_annot").glob("*.tif"), *(folder / "val_annot").glob("*.tif")]:
        exact = io.open_image(path).read()
        coarse = block_modes(exact, labels, 6).repeat(labels, 0).repeat(labels, 1)
        full = exact.copy()  # a rim that no square covers stays exact
        full[: len(coarse), : coarse.shape[1]] = coarse
        io.write_image(path, full)
    (folder / "done").touch()
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", help="variants")
    parser.add_argument("--labels", type=int, default=8, help="image pixels per label pixel; a divisor of 128")
    parser.add_argument("--size", type=int, default=1024, help="edge of the rocks, px")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    data = write_data(options.out / f"rocks{options.labels}", options.size, options.labels)
    rows = []
    for name, changes in variants(options.labels).items():
        if options.only and name not in options.only:
            continue
        folder, start = options.out / f"{name}{options.labels}_{options.seed}", time.process_time()
        common = {"normalization": "fixed", "focus": 0.0, "augment": SAME_GREY, "epochs": options.epochs}
        settings = mineral_train.preset("cpu", str(data), seed=options.seed, **common, **changes)
        done = mineral_train.train(settings, folder / "model", resume=True)
        spent = time.process_time() - start
        asked = mineral_evaluate.EvaluateSettings(str(done.model_path), str(data), "test", baselines=False)
        mineral_evaluate.evaluate(asked, folder / "scores", overwrite=True)
        scores = pd.read_csv(folder / "scores" / "scores.csv").iloc[0]
        classes = pd.read_csv(folder / "scores" / "classes.csv")
        rows.append(
            {
                "variant": name,
                **{key: scores[key] for key in ("mean_iou", "mean_iou_low", "mean_iou_high", "boundary_f1")},
                "largest error, points": classes["error_points"].abs().max(),
                "CPU s": round(spent),
            }
        )
        print(pd.DataFrame(rows[-1:]).round(3).to_string(index=False, header=len(rows) == 1), flush=True)


if __name__ == "__main__":
    main()
